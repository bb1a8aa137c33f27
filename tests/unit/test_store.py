"""`reef models`, against a site on this machine: good, broken off, tampered with, refusing."""

import hashlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.advice import HERE, Place
from app.download import Checksum, CutShort, Damaged, download
from app.errors import ModelError
from app.manifest import Manifest, read_manifest
from app.store import Store
from tests import colour_model
from tests.client import free_port
from tests.site import LocalSite, QuietHandler
from tests.support import ROOT, make_settings
from tests.unit.test_main import run

MODEL = colour_model.build()
NAME = "finder.tflite"


class Site(LocalSite):
    """A web site with one file; `cut` is after how many bytes it breaks off."""

    def __init__(self) -> None:
        self.body = MODEL
        self.cut: int | None = None
        self.status = 200
        self.ranges = True
        self.asked: list[str | None] = []
        site = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                wanted = self.headers["Range"]
                site.asked.append(wanted)
                start = int(wanted[6:-1]) if wanted and site.ranges else 0
                if start >= len(site.body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else site.status)
                body = site.body[start:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: site.cut])

        super().__init__(Handler)
        self.url += f"/{NAME}"


@pytest.fixture
def site() -> Iterator[Site]:
    """A site that has the model."""
    site = Site()
    yield site
    site.close()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """Where the model is to be."""
    return tmp_path / NAME


SHA256 = Checksum(sha256=hashlib.sha256(MODEL).hexdigest())


def git_blob(path: Path) -> str:
    """What git itself calls a file of these bytes."""
    told = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_a_file_is_downloaded_and_its_progress_told(site: Site, into: Path) -> None:
    told: list[tuple[int, int | None]] = []
    download(site.url, into, SHA256, lambda have, whole: told.append((have, whole)))
    assert into.read_bytes() == MODEL
    assert told[-1] == (len(MODEL), len(MODEL))
    assert list(into.parent.iterdir()) == [into]


def test_a_git_blob_id_verifies_as_git_does(site: Site, into: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.write_bytes(MODEL)
    download(site.url, into, Checksum(git_blob=git_blob(same)))
    site.body = MODEL + b"!"
    with pytest.raises(Damaged, match="has git blob id "):
        download(site.url, into, Checksum(git_blob=git_blob(same)))


def test_what_broke_off_goes_on_where_it_was(site: Site, into: Path) -> None:
    site.cut = 1000
    with pytest.raises(CutShort, match=f"cut short: 1000 of {len(MODEL)} bytes"):
        download(site.url, into, SHA256)
    assert not into.exists()
    site.cut = None
    download(site.url, into, SHA256)
    assert site.asked == [None, "bytes=1000-"]
    assert into.read_bytes() == MODEL


def test_a_disk_that_is_full_is_not_the_sites_fault(site: Site, into: Path) -> None:
    site.body = MODEL * 100
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(MODEL), before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            download(site.url, into, SHA256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_site_that_knows_no_ranges_begins_anew(site: Site, into: Path) -> None:
    into.with_name(f"{NAME}.part").write_bytes(MODEL[:1000])
    site.ranges = False
    download(site.url, into, SHA256)
    assert into.read_bytes() == MODEL


@pytest.mark.parametrize("rest", [b"x" * 1000, b"x" * len(MODEL), b"x" * 2 * len(MODEL)])
def test_the_beginning_of_another_file_is_thrown_away(site: Site, into: Path, rest: bytes) -> None:
    into.with_name(f"{NAME}.part").write_bytes(rest)
    download(site.url, into, SHA256)
    assert into.read_bytes() == MODEL


def test_a_file_that_was_tampered_with_is_never_there(site: Site, into: Path) -> None:
    into.write_bytes(b"the old one")
    site.body = MODEL[:-1] + b"!"
    with pytest.raises(Damaged, match=r"has sha256 .* don't use it, find out why"):
        download(site.url, into, SHA256)
    assert into.read_bytes() == b"the old one"
    assert list(into.parent.iterdir()) == [into]


# ---------------------------------------------------------------------------- the command


def store(folder: Path, site: Site | None = None, place: Place = HERE) -> Store:
    """A store with one model of one file, whose address is the site's."""
    file = {
        "path": NAME,
        "sha256": SHA256.sha256,
        "url": site.url if site else f"http://127.0.0.1:{free_port()}/{NAME}",
    }
    model = {
        "about": "finds things",
        "licence": "Apache-2.0",
        "input": {"width": 32, "height": 32, "resize": "stretch"},
        "labels": "labels.txt",
        "files": {"cpu": file},
    }
    manifest = {"default": {"cpu": "finder"}, "models": {"finder": model}}
    return Store(make_settings(models_dir=folder), Manifest.model_validate(manifest), place)


def test_pull_fetches_what_is_missing_once(site: Site, tmp_path: Path) -> None:
    ours = store(tmp_path, site)
    assert "missing" in list(ours.listing())[1]
    (line,) = ours.pull("finder", "all")
    assert line.endswith(f"{NAME}, verified by its sha256")
    (line,) = ours.pull("finder", "all")
    assert "is here already" in line
    assert len(site.asked) == 1
    assert "here" in list(ours.listing())[1]
    assert ours.verify() == ([f"finder (cpu): {tmp_path / NAME}: as it should be"], True)


def test_pull_mends_a_damaged_file_and_verify_finds_it(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(MODEL[:-1])
    ours = store(tmp_path, site)
    (line,), well = ours.verify()
    assert not well
    assert "has sha256 " in line
    assert f"`{HERE.pull('finder')}` mends it" in line
    list(ours.pull("finder", "all"))
    assert ours.verify()[1]


def test_what_cannot_be_read_is_damaged_and_says_why(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (line,), well = store(tmp_path).verify()
    assert (well, "can't be read: Is a directory" in line) == (False, True)


def test_verify_minds_a_missing_file_only_where_it_is_named(tmp_path: Path) -> None:
    assert store(tmp_path).verify() == ([], True)
    (line,), well = store(tmp_path).verify("finder")
    assert (well, "missing" in line) == (False, True)


def test_a_mirror_has_the_file_by_its_name(site: Site, tmp_path: Path) -> None:
    elsewhere = store(tmp_path)
    list(elsewhere.pull("finder", "all", mirror=site.url.rpartition("/")[0]))
    assert (tmp_path / NAME).read_bytes() == MODEL


def test_a_site_that_refuses_is_told(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gave no file \(.*refused.*--mirror"):
        list(store(tmp_path).pull("finder", "all"))
    site.status = 404
    site.body = b"no such file"
    with pytest.raises(ModelError, match=r"has sha256|answered 404"):
        list(store(tmp_path, site).pull("finder", "all"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"can't write to .*REEF_MODELS_DIR"):
        list(store(tmp_path / "nowhere", site).pull("finder", "all"))
    in_image = Place(in_image=True)
    with pytest.raises(ModelError, match=r"can't write to .*docker run .* models pull NAME"):
        list(store(tmp_path / "nowhere", site, in_image).pull("finder", "all"))


def test_an_unknown_name_is_told_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model 'yolo' is in the manifest, which has: finder"):
        list(store(tmp_path).pull("yolo", "all"))


def test_the_commands(tmp_path: Path) -> None:
    listed = run("models", "list").stdout
    assert "efficientdet_lite0  " in listed
    assert "[default of edgetpu]" in listed
    verified = run("models", "verify")
    assert (verified.returncode, "as it should be" in verified.stdout) == (0, True)
    assert run("models", "verify", "ssdlite_mobiledet", REEF_MODELS_DIR=tmp_path).returncode == 1
    ran = run("models", "pull", "yolo")
    assert (ran.returncode, ran.stderr.count("\n")) == (3, 1)
    mirror = f"http://127.0.0.1:{free_port()}"
    told = {"REEF_MODELS_DIR": tmp_path, "no_proxy": "*"}
    ran = run("models", "pull", "ssdlite_mobiledet", "--for", "edgetpu", "--mirror", mirror, **told)
    assert (ran.returncode, "Connection refused" in ran.stderr) == (3, True)


# ---------------------------------------------------------------------------- the manifest


def test_the_manifest_has_corals_detectors_with_pinned_addresses() -> None:
    manifest = read_manifest()
    compiled = [name for name, model in manifest.models.items() if "edgetpu" in model.files]
    assert len(compiled) == 12
    for name in compiled:
        for kind, file in manifest.models[name].files.items():
            assert file.url
            commit, _, path = file.url.partition("/raw/")[2].partition("/")
            assert len(commit) == 40
            assert path == file.path
            assert ("_edgetpu." in path) == (kind == "edgetpu")
        assert (ROOT / "models" / manifest.models[name].labels).is_file()


def test_the_server_needs_no_downloader() -> None:
    """It never downloads by itself: nobody on its side calls `download`."""
    script = "import sys, app.server; print('app.store' in sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)
    assert told == "False\n"
