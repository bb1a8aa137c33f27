"""Where the system lacks what a server needs, it ends with a status that is not 0 and one line."""

import errno
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.devices.link import ROOT
from tests.client import ENVIRON, Client, free_port, picture
from tests.server.conftest import MakeServer
from tests.server.systems import (
    IN_MEMORY,
    TEMPORARY,
    behind_mounts,
    empty,
    needs_mounts,
    run,
    with_clone3_answering,
)

LACKS = 5


def the_line(ran: subprocess.CompletedProcess[str], status: int) -> str:
    """The only line of a program that ended so."""
    assert (ran.returncode, ran.stdout) == (status, ""), ran
    (line,) = ran.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", ["serve", "check", "doctor"])
def test_an_old_docker_that_forbids_threads_is_named(command: str) -> None:
    line = the_line(with_clone3_answering(errno.EPERM, command), LACKS)
    assert "Docker (before 20.10.10)" in line
    assert "libseccomp" in line


def test_a_limit_that_leaves_no_threads_is_named() -> None:
    line = the_line(with_clone3_answering(errno.EAGAIN, "serve"), LACKS)
    assert "only 0 can be started" in line
    assert "ulimit -u" in line
    assert "pids_limit" in line


def test_too_few_open_files_are_named() -> None:
    line = the_line(run("serve", before=("prlimit", "--nofile=100")), LACKS)
    assert "at least 128 open files, and the limit is 100" in line


def test_a_processor_that_is_too_old_is_named(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu sse sse2\n")
    line = the_line(run("serve", REEF_HOST_ROOT=str(tmp_path)), LACKS)
    assert "it has no cx16, popcnt, sse4_1, sse4_2, ssse3" in line


def test_what_the_system_lacks_and_what_is_wrong_is_told_at_once() -> None:
    ran = run("serve", before=("prlimit", "--nofile=100"), REEF_PORT="x", REEF_PROT="1")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (LACKS, 3)


def test_without_a_folder_for_temporary_files_the_programs_still_speak() -> None:
    needs_mounts()
    before = behind_mounts(*empty(*TEMPORARY), "cd /sys")
    ran = run("--version", before=before)
    assert (ran.returncode, ran.stderr) == (0, "")
    line = the_line(run("check", before=before, REEF_PORT=str(free_port())), 2)
    assert line.startswith("reef: REEF_RUN_DIR: '/tmp/reef-0' can't be written to")


def test_without_any_folder_that_can_be_written_it_says_which_it_needs() -> None:
    needs_mounts()
    before = behind_mounts(*empty(*TEMPORARY, IN_MEMORY), "cd /sys")
    line = the_line(run("serve", before=before, REEF_PORT=str(free_port())), LACKS)
    assert "no file can be made in /dev/shm, /tmp/reef-0, /tmp" in line


class Confined(Client):
    """A server behind mounts."""

    def __init__(self, *mounts: str, **settings: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [*behind_mounts(*mounts), sys.executable, "-m", "app", "serve"],
            env={**ENVIRON, "PYTHONPATH": str(ROOT), "REEF_PORT": str(self.port), **settings},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self) -> str:
        """Only once it has ended."""
        return self.process.communicate(timeout=30)[0] if self.process.poll() is not None else ""

    def stop(self) -> int:
        """End it; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            for each in psutil.Process(self.process.pid).children(recursive=True):
                each.kill()
            raise
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.mark.parametrize("missing", [(IN_MEMORY,), TEMPORARY], ids=["no /dev/shm", "no /tmp"])
def test_it_serves_without_this_where_the_run_folder_is_somewhere(
    missing: tuple[str, ...], colour_file: Path
) -> None:
    needs_mounts()
    model = f"cp {shlex.quote(str(colour_file))} /mnt/colour.tflite"
    server = Confined(
        *("mount -t tmpfs none /mnt", model, *empty(*missing), "cd /sys"),
        REEF_RUN_DIR="/mnt/run",
        REEF_MODEL="/mnt/colour.tflite",
        REEF_DRAIN_S="0",
    )
    try:
        server.wait_until(lambda: server.process.poll() is not None or server.is_ready())
        assert server.predict(picture(200))[0] == 200
    finally:
        assert server.stop() == 0


NO_IPV6_LOOPBACK = (
    "ip link set lo up",
    "echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6",
    "echo 1 >/proc/sys/net/ipv6/bindv6only",
)


def test_on_every_address_of_ipv6_it_is_healthy_without_its_loopback(tmp_path: Path) -> None:
    """In a network namespace whose loopback has IPv4 alone."""
    before = behind_mounts(*NO_IPV6_LOOPBACK)
    before.insert(1, "--net")
    if not shutil.which("ip") or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no network namespaces with IPv6")
    said = subprocess.run(
        [*before, "sh", "-c", SERVE_AND_ASK, "sh", sys.executable],
        env={**ENVIRON, "PYTHONPATH": str(ROOT), "REEF_HOST": "::", "REEF_RUN_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said
    assert '{"ready":true,' in said.stdout


SERVE_AND_ASK = """
"$1" -m app serve & server=$!
until "$1" -m app healthcheck; do kill -0 $server || exit 9; sleep 0.2; done
kill $server
wait $server
"""

KUBERNETES = {
    "REEF_PORT": "tcp://10.96.12.7:5000",
    "REEF_SERVICE_HOST": "10.96.12.7",
    "REEF_SERVICE_PORT_HTTP": "5000",
}


def test_in_a_pod_beside_a_service_called_reef_it_serves(
    start_server: MakeServer, tmp_path: Path
) -> None:
    port = free_port()
    file = tmp_path / "pod.yaml"
    file.write_text(f"port: {port}\n")  # the variable of that name is the Service's
    told = {**KUBERNETES, "REEF_CONFIG": str(file), "LOG_LEVEL": "debug"}
    server = start_server(wait=False, **told)
    server.port = port
    server.wait_until(server.is_ready)
    (line,) = (line for line in server.lines if "Kubernetes" in line)
    assert "DEBUG" in line
    assert line.rstrip().endswith(", ".join(sorted(KUBERNETES)))


def test_an_open_port_without_a_key_is_warned_of(start_server: MakeServer) -> None:
    server = start_server(REEF_HOST="0.0.0.0")
    (line,) = (line for line in server.lines if "WARNING" in line)
    assert "There is no API key" in line


def test_a_run_folder_that_is_none_is_warned_of_where_the_cpu_serves(
    start_server: MakeServer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server = start_server(REEF_RUN_DIR=str(tmp_path / "file"))
    (line,) = (line for line in server.lines if "WARNING" in line)
    assert f"REEF_RUN_DIR: '{tmp_path}/file' is no folder; name another" in line
