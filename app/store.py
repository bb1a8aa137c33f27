"""`reef models`: which models there are, and getting their files."""

import os
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app import tflite
from app.advice import HERE, Place, unreadable
from app.download import CutShort, Damaged, Refused, Unreachable, download
from app.errors import ModelError
from app.manifest import Manifest, ManifestFile, locate, read_manifest
from app.settings import Settings

BAR_WIDTH = 24
MB = 1_000_000

State = Literal["here", "embedded", "missing", "damaged"]


@dataclass(frozen=True)
class File:
    """A file of the manifest, and where it is or would be."""

    model: str
    kind: str
    entry: ManifestFile
    path: Path

    @property
    def state(self) -> State:
        """How it is, every byte checked."""
        if not os.path.lexists(self.path):
            return "missing"
        if self.objection():
            return "damaged"
        return "here" if self.entry.url else "embedded"

    def objection(self) -> str:
        """What is wrong with it; empty when nothing is."""
        try:
            data = self.path.read_bytes()
            if objection := self.entry.checksum.objection(data):
                return objection
            tflite.read(data)
        except OSError as error:
            return f"can't be read: {unreadable(self.path, error)}"
        except ValueError as error:
            return str(error)
        return ""


class Store:
    """The manifest's files, in the folder of the settings and among the embedded ones."""

    def __init__(
        self, settings: Settings, manifest: Manifest | None = None, place: Place = HERE
    ) -> None:
        """Raises ModelError if the manifest can't be read."""
        self._place = place
        self._folder = settings.models_dir
        self._manifest = manifest or read_manifest()

    def files(self, name: str = "", kind: str = "all") -> list[File]:
        """The files of one model, or of all. Raises ModelError for a name that isn't known."""
        if name and name not in self._manifest.models:
            known = ", ".join(sorted(self._manifest.models))
            raise ModelError(f"no model {name[:80]!r} is in the manifest, which has: {known}")
        return [
            File(each, of_kind, entry, locate(entry.path, self._folder))
            for each, model in self._manifest.models.items()
            for of_kind, entry in model.files.items()
            if name in ("", each) and kind in ("all", of_kind)
        ]

    def listing(self) -> Iterator[str]:
        """A line per model, and what of it is here."""
        states = {(file.model, file.kind): file.state for file in self.files()}
        width = max(map(len, self._manifest.models))
        yield f"{'NAME':{width}}  {'CPU':8}  {'EDGE TPU':8}  WHAT IT IS"
        for name, model in self._manifest.models.items():
            cpu, edgetpu = (states.get((name, kind), "-") for kind in ("cpu", "edgetpu"))
            defaults = [kind for kind, default in self._manifest.default.items() if default == name]
            about = model.about + "".join(f" [default of {kind}]" for kind in defaults)
            yield f"{name:{width}}  {cpu:8}  {edgetpu:8}  {about}"

    def verify(self, name: str = "") -> tuple[list[str], bool]:
        """A line for each file that is here, or for each of one model; and whether all are well."""
        lines, well = [], True
        for file in self.files(name):
            state = file.state
            if state == "missing" and not name:
                continue
            what = f"{file.model} ({file.kind})"
            if state == "damaged":
                said = f"{file.path}: {file.objection()}; `{self._place.pull(file.model)}` mends it"
            elif state == "missing":
                said = f"{file.path}: missing; `{self._place.pull(file.model)}` fetches it"
            else:
                said = f"{file.path}: as it should be"
            well &= state in ("here", "embedded")
            lines.append(f"{what}: {said}")
        return lines, well

    def pull(self, name: str, kind: str, mirror: str = "") -> Iterator[str]:
        """Download the files of a model that are not here; a line for each.

        Raises ModelError naming the file, what is wrong and what to do.
        """
        for file in self.files(name, kind):
            what = f"{file.model} ({file.kind})"
            if file.state in ("here", "embedded"):
                yield f"{what}: is here already: {file.path}"
                continue
            url = file.entry.url
            if url is None:
                raise ModelError(f"{what}: is embedded; restore {file.path} from Reef's sources")
            if mirror:
                url = f"{mirror.rstrip('/')}/{url.rpartition('/')[2]}"
            into = self._folder / file.entry.path
            self._fetch(what, url, into, file.entry)
            yield f"{what}: {into}, verified by its {file.entry.checksum_kind}"

    def _fetch(self, what: str, url: str, into: Path, entry: ManifestFile) -> None:
        site = urllib.parse.urlsplit(url).netloc
        bar = Bar(what)
        try:
            download(url, into, entry.checksum, bar.show)
        except Unreachable as error:
            raise ModelError(
                f"{what}: {site} gave no file ({error}); look at the network, or name a site that "
                "has it with --mirror"
            ) from error
        except CutShort as error:
            raise ModelError(
                f"{what}: {url} {error}; run it again, it goes on from there"
            ) from error
        except (Damaged, Refused) as error:
            raise ModelError(f"{what}: {url} {error}") from error
        except OSError as error:
            raise ModelError(
                f"{what}: can't write to {into.parent} ({error.strerror}); {self._where_to_write()}"
            ) from error
        finally:
            bar.wipe()

    def _where_to_write(self) -> str:
        if self._place.in_image:
            pull = self._place.pull("NAME")
            return f"the server may only read its models; write to them with: {pull}"
        return f"let user {os.geteuid()} write there, or name another folder in REEF_MODELS_DIR"


class Bar:
    """How far a download is, where somebody watches."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._watched = sys.stderr.isatty()

    def show(self, have: int, whole: int | None) -> None:
        """So many bytes are here."""
        if not self._watched:
            return
        line = f"{self._what}: {have / MB:.1f} MB"
        if whole:
            done = "#" * (BAR_WIDTH * have // whole)
            line += f" of {whole / MB:.1f} [{done:{BAR_WIDTH}}] {100 * have // whole} %"
        self._write(line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1])

    def wipe(self) -> None:
        """Leave the line empty."""
        if self._watched:
            self._write("")

    def _write(self, line: str) -> None:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)  # noqa: T201
