"""scripts/healthcheck.sh, which is `reef healthcheck` in the container: it answers as the command
does that the server's own settings make, and takes next to no time of the processor."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import ENVIRON
from tests.server.conftest import MakeServer, Server
from tests.support import ROOT

KEY = "correct-horse-battery-staple"
MOST_CPU_S = 0.02


def check(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Ask once."""
    return subprocess.run(
        [ROOT / "scripts" / "healthcheck.sh"],
        env=ENVIRON | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_is_0_while_the_server_is_ready(server: Server, tmp_path: Path) -> None:
    done = check(tmp_path, REEF_PORT=str(server.port))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('{"ready":true,')
    assert server.stop() == 0
    gone = check(tmp_path, REEF_PORT=str(server.port))
    assert (gone.returncode, gone.stderr) == (1, "")
    assert gone.stdout == f"http://127.0.0.1:{server.port}/ready: Connection refused\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "localhost"])
def test_it_asks_where_the_server_listens(
    start_server: MakeServer, tmp_path: Path, host: str
) -> None:
    server = start_server(REEF_HOST=host, REEF_API_KEY=KEY, wait=False)
    server.wait_until(lambda: any("Ready" in line for line in server.lines))
    environ = {"REEF_HOST": host, "REEF_API_KEY": KEY, "REEF_PORT": str(server.port)}
    assert check(tmp_path, **environ).returncode == 0


@pytest.mark.parametrize("where", ["file", "named file", "variable of Windows"])
def test_what_is_not_plain_is_read_as_the_server_reads_it(
    server: Server, tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "of its own"
    folder.mkdir()
    named = folder / ("reef.yaml" if where == "file" else "other.yaml")
    named.write_text(f"port: {server.port}\n")
    environ = {"REEF_CONFIG": str(named)} if where == "named file" else {}
    if where == "variable of Windows":
        environ = {"REEF_PORT": f'"{server.port}"\r'}
    assert check(folder, **environ).returncode == 0


def test_it_is_1_when_no_device_is_ready(start_server: MakeServer, tmp_path: Path) -> None:
    server = start_server(REEF_DEVICES="usb", REEF_CPU_FALLBACK="off", wait=False)
    server.wait_until(lambda: any("Listening" in line for line in server.lines))
    done = check(tmp_path, REEF_PORT=str(server.port))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith('{"ready":false,')


def test_it_takes_next_to_no_time_of_the_processor(server: Server, tmp_path: Path) -> None:
    environ = {"REEF_PORT": str(server.port)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(10):
        assert check(tmp_path, **environ).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    assert took / 10 <= MOST_CPU_S
