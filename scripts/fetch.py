#!/usr/bin/env python3
"""Downloads libedgetpu and the Edge TPU's model for the image, and checks every byte of them.

    scripts/fetch.py --mode auto --into FOLDER [--mirror URL] [--variant max --sha256 SUM]

FOLDER gets lib/, models/ and image.json, which says what is there and what is missing and why.
What the mode decides is only what happens when a site gives no file: `auto` goes on without it,
`required` stops, `none` doesn't ask. A file that is there but isn't the right one always stops.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from app import download  # noqa: E402 - it stands beside this folder, in the build too
from app.download import Checksum, Damaged  # noqa: E402

# The rebuild of Google's last release against the TensorFlow Lite of today, for Debian 12, which
# runs on Debian 13 too. Google's own package of 2021 crashes any TensorFlow Lite since 2.10.
VERSION = "16.0tf2.19.1-1"
LIBEDGETPU = (
    "https://github.com/feranick/libedgetpu/releases/download/16.0TF2.19.1-1/"
    "libedgetpu1-{variant}_16.0tf2.19.1-1.bookworm_{architecture}.deb"
)
SHA256 = {
    "amd64": "23be53c72eff4d44afc2f727700da185791d3ca0867bd0b5e082ec3a0de21925",
    "arm64": "46ab47310d6de120bda4678febe5eb6143f5c7d7dd17c0d017ae5f6cd67dfec5",
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # by the kernel's name
LIBRARY = "libedgetpu.so.1.0"
SONAME = "libedgetpu.so.1"

NOT_ASKED = "it was built with EDGETPU=none; build it again without that to use an Edge TPU"


class Unreachable(Exception):
    """The site gave no file."""


@dataclass(frozen=True)
class Wanted:
    """A file, where it is had, and the only bytes that it may have."""

    what: str
    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its name at its site, and at a mirror."""
        return self.url.rpartition("/")[2]


def main() -> int:
    """Fetch what was asked for; returns the exit status."""
    options = parse()
    have: list[str] = []
    missing: dict[str, list[str]] = {}
    for wanted in (library(options), *models(options.manifest)):
        try:
            if options.mode == "none":
                raise Unreachable(NOT_ASKED)
            install(wanted, fetch(wanted, options.mirror, options.into), options.into)
        except Unreachable as error:
            if options.mode == "required":
                return stop(f"{wanted.what} is required: {error}")
            missing.setdefault(str(error), []).append(wanted.what)
        except Damaged as error:
            return stop(f"{wanted.url}: {error}")
        else:
            have.append(wanted.what)
    notes = [f"this image lacks {', '.join(what)}: {why}" for why, what in missing.items()]
    options.into.mkdir(parents=True, exist_ok=True)
    record = {"edgetpu": have, "notes": notes}
    (options.into / "image.json").write_text(json.dumps(record, indent=1) + "\n")
    for line in (*(f"this image has {each}" for each in have), *notes):
        say(line)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=("auto", "required", "none"), default="auto")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--mirror", default="", metavar="URL", help="has the files by their names")
    parser.add_argument("--variant", choices=("std", "max"), default="std")
    parser.add_argument("--sha256", default="", help="of the library's package; max has no other")
    parser.add_argument("--architecture", default=ARCHITECTURES.get(platform.machine(), ""))
    parser.add_argument("--manifest", type=Path, default=ROOT / "models" / "manifest.yaml")
    options = parser.parse_args()
    if options.architecture not in SHA256:
        parser.error(f"there is no libedgetpu for {options.architecture or platform.machine()}")
    if options.variant != "std" and not options.sha256:
        parser.error("for another variant than std, name the package's checksum in --sha256")
    return options


def library(options: argparse.Namespace) -> Wanted:
    """libedgetpu's package."""
    url = LIBEDGETPU.format(variant=options.variant, architecture=options.architecture)
    sha256 = options.sha256 or SHA256[options.architecture]
    return Wanted(f"libedgetpu {VERSION} {options.variant}", url, sha256)


def models(manifest: Path) -> list[Wanted]:
    """The files of the model that the manifest names as the Edge TPU's default."""
    known = yaml.safe_load(manifest.read_bytes())
    name = known["default"]["edgetpu"]
    return [
        Wanted(f"{name} ({kind})", file["url"], file["sha256"])
        for kind, file in known["models"][name]["files"].items()
    ]


def fetch(wanted: Wanted, mirror: str, into: Path) -> Path:
    """The file, verified. Raises Unreachable, or Damaged if its bytes are not the right ones."""
    url = f"{mirror.rstrip('/')}/{wanted.name}" if mirror else wanted.url
    into.mkdir(parents=True, exist_ok=True)
    try:
        download.download(url, into / wanted.name, Checksum(wanted.sha256))
    except download.Unreachable as error:
        raise unreachable(url, str(error)) from error
    except download.Refused as error:
        raise Damaged(f"{url} {error}; correct EDGETPU_MIRROR") from error
    except download.CutShort as error:
        raise Damaged(f"{error}; build again") from error
    return into / wanted.name


def unreachable(url: str, cause: str) -> Unreachable:
    """A site that gave no file, and what to do about it."""
    site = urllib.parse.urlsplit(url).netloc
    return Unreachable(
        f"{site} could not be reached at the build ({cause}); build it again with a network, "
        "or name a mirror in EDGETPU_MIRROR"
    )


def install(wanted: Wanted, file: Path, into: Path) -> None:
    """Put a file where it belongs; a package gives its library alone, and nothing of it is run."""
    if not wanted.name.endswith(".deb"):
        (into / "models").mkdir(parents=True, exist_ok=True)
        file.rename(into / "models" / wanted.name)
        return
    package, unpacked = file, into / "unpacked"
    unpacked.mkdir(parents=True)
    try:
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)  # noqa: S607
        (found,) = unpacked.glob(f"usr/lib/*/{LIBRARY}")
    except (subprocess.CalledProcessError, ValueError) as error:
        raise Damaged(f"is no package with one {LIBRARY} inside") from error
    (into / "lib").mkdir()
    found.rename(into / "lib" / LIBRARY)
    (into / "lib" / SONAME).symlink_to(LIBRARY)
    package.unlink()
    shutil.rmtree(unpacked)


def stop(why: str) -> int:
    """Say why the build can't go on; returns the exit status."""
    say(f"the build stops: {why}")
    return 1


def say(line: str) -> None:
    """One line for the build's log."""
    print(f"fetch: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
