"""scripts/fetch.py against a site on this machine: good, short, tampered with, refusing, absent."""

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.site import LocalSite, QuietHandler
from tests.support import ROOT

DEB = "libedgetpu1-std_16.0tf2.19.1-1.bookworm_amd64.deb"
MODEL = "finder_edgetpu.tflite"
MODEL_BYTES = b"TFL3" * 5000
LIBRARY_BYTES = b"\x7fELF, or so it says"


class Site(LocalSite):
    """A web site with files by name; `promise` is what it says of a file's length."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.promise: dict[str, int] = {}
        self.status = 200
        site = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                found = name in site.files
                self.send_response(site.status if found else 404)
                body = site.files.get(name, b"")
                self.send_header("Content-Length", str(site.promise.get(name, len(body))))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)


@pytest.fixture
def site(package: bytes) -> Iterator[Site]:
    """A site that has everything, unharmed."""
    site = Site()
    site.files = {DEB: package, MODEL: MODEL_BYTES}
    yield site
    with contextlib.suppress(OSError):
        site.close()


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Debian package with a library where libedgetpu's has its own."""
    return make_package(tmp_path_factory.mktemp("package"), "libedgetpu.so.1.0")


def make_package(folder: Path, library: str) -> bytes:
    """A Debian package with one library."""
    (folder / "root" / "DEBIAN").mkdir(parents=True)
    (folder / "root" / "DEBIAN" / "control").write_text(
        "Package: libedgetpu1-std\nVersion: 1\nArchitecture: amd64\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: a test\n"
    )
    installed = folder / "root" / "usr" / "lib" / "x86_64-linux-gnu"
    installed.mkdir(parents=True)
    (installed / library).write_bytes(LIBRARY_BYTES)
    made = folder / DEB
    command = ["dpkg-deb", "--root-owner-group", "--build", str(folder / "root"), str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made.read_bytes()


class Fetch:
    """Runs the script, with a manifest of one small model and that package's checksum."""

    def __init__(self, folder: Path, package: bytes) -> None:
        self.into = folder / "into"
        self._manifest = folder / "manifest.yaml"
        self._sha256 = sha256(package)
        file = {"url": f"https://models.example/{MODEL}", "sha256": sha256(MODEL_BYTES)}
        manifest = {
            "default": {"edgetpu": "finder"},
            "models": {"finder": {"files": {"edgetpu": file}}},
        }
        self._manifest.write_text(yaml.safe_dump(manifest))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run(
            [sys.executable, ROOT / "scripts" / "fetch.py", "--into", self.into,
             "--manifest", self._manifest, "--sha256", self._sha256,
             "--architecture", "amd64", *arguments],
            capture_output=True, text=True, timeout=60, env={"no_proxy": "*", "PATH": "/usr/bin"},
        )  # fmt: skip

    @property
    def record(self) -> dict[str, Any]:
        """What it wrote about what it did."""
        record: dict[str, Any] = json.loads((self.into / "image.json").read_text())
        return record


@pytest.fixture
def fetch(tmp_path: Path, package: bytes) -> Fetch:
    """The script."""
    return Fetch(tmp_path, package)


def sha256(data: bytes) -> str:
    """Its checksum."""
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_good_files_are_put_in_their_places(site: Site, fetch: Fetch, mode: str) -> None:
    assert fetch("--mode", mode, "--mirror", site.url).returncode == 0
    assert (fetch.into / "models" / MODEL).read_bytes() == MODEL_BYTES
    assert (fetch.into / "lib" / "libedgetpu.so.1").read_bytes() == LIBRARY_BYTES
    assert {path.name for path in fetch.into.iterdir()} == {"lib", "models", "image.json"}
    assert fetch.record["edgetpu"] == ["libedgetpu 16.0tf2.19.1-1 std", "finder (edgetpu)"]
    assert fetch.record["notes"] == []


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("name", [DEB, MODEL])
def test_a_file_that_was_tampered_with_stops_the_build(
    site: Site, fetch: Fetch, mode: str, name: str
) -> None:
    right = sha256(site.files[name])
    site.files[name] = site.files[name][:-1] + b"!"
    ran = fetch("--mode", mode, "--mirror", site.url)
    assert ran.returncode == 1
    assert f"has sha256 {sha256(site.files[name])}, not {right}" in ran.stderr
    assert not (fetch.into / "image.json").exists()


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_was_cut_short_stops_the_build(
    site: Site, fetch: Fetch, mode: str, honest: bool
) -> None:
    if honest:
        site.promise[MODEL] = len(MODEL_BYTES)
    site.files[MODEL] = MODEL_BYTES[:1000]
    ran = fetch("--mode", mode, "--mirror", site.url)
    assert ran.returncode == 1
    assert ("cut short: 1000 of 20000 bytes" if honest else "has sha256") in ran.stderr


def test_a_file_without_end_stops_the_build(site: Site, fetch: Fetch) -> None:
    site.files[MODEL] = bytes(64 * 1024 * 1024 + 100)
    assert fetch("--mirror", site.url).returncode == 1


def test_a_package_without_the_library_stops_the_build(
    site: Site, fetch: Fetch, tmp_path: Path
) -> None:
    other = make_package(tmp_path / "other", "libsomething.so.1")
    site.files[DEB] = other
    ran = fetch("--mirror", site.url, "--sha256", sha256(other))
    assert ran.returncode == 1
    assert "is no package with one libedgetpu.so.1.0" in ran.stderr


def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_where_the_site_refuses_auto_goes_on_and_says_so(fetch: Fetch) -> None:
    ran = fetch("--mode", "auto", "--mirror", nobody())
    assert ran.returncode == 0
    assert fetch.record["edgetpu"] == []
    (note,) = fetch.record["notes"]
    assert note.startswith("this image lacks libedgetpu 16.0tf2.19.1-1 std, finder (edgetpu): ")
    assert "could not be reached at the build" in note
    assert "Connection refused" in note
    assert "build it again with a network" in note
    assert note in ran.stderr


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_where_the_site_answers_an_error_auto_goes_on_and_says_so(
    site: Site, fetch: Fetch, status: int
) -> None:
    site.status = status
    assert fetch("--mirror", site.url).returncode == 0
    assert f"answered {status}" in fetch.record["notes"][0]


def test_where_the_site_has_one_of_the_files_auto_takes_it(site: Site, fetch: Fetch) -> None:
    del site.files[DEB]
    assert fetch("--mirror", site.url).returncode == 0
    assert fetch.record["edgetpu"] == ["finder (edgetpu)"]
    assert "lacks libedgetpu" in fetch.record["notes"][0]


def test_where_the_site_refuses_required_stops_and_says_why(fetch: Fetch) -> None:
    ran = fetch("--mode", "required", "--mirror", nobody())
    assert ran.returncode == 1
    assert "libedgetpu 16.0tf2.19.1-1 std is required: " in ran.stderr
    assert "Connection refused" in ran.stderr


def test_none_asks_nobody(site: Site, fetch: Fetch) -> None:
    assert fetch("--mode", "none", "--mirror", site.url).returncode == 0
    assert fetch.record["edgetpu"] == []
    assert "EDGETPU=none" in fetch.record["notes"][0]


def test_a_mirror_is_a_web_site(fetch: Fetch) -> None:
    assert fetch("--mirror", "file:///etc").returncode == 1


def test_the_fast_variant_needs_a_checksum_of_the_users_own(fetch: Fetch) -> None:
    ran = fetch("--variant", "max", "--sha256", "")
    assert ran.returncode == 2
    assert "--sha256" in ran.stderr


def test_an_architecture_without_a_library_is_told(fetch: Fetch) -> None:
    assert "no libedgetpu for riscv64" in fetch("--architecture", "riscv64").stderr
