"""The Docker engine, through its command line, and a container as operators and clients see it."""

import json
import os
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.client import Client

IMAGE = os.environ.get("REEF_IMAGE") or "reef:local"
BENCH_IMAGE = "reef-bench:local"
PORT = 5000
LABEL = f"reef.test={uuid.uuid4().hex}"
"""What this run creates carries it, and what carries it is removed at the end."""

HARDENED = (
    *("--read-only", "--tmpfs", "/tmp"),  # noqa: S108 - the container's own
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
EAGER_HEALTH = (
    *("--health-interval", "1s", "--health-timeout", "2s"),
    *("--health-retries", "1", "--health-start-period", "1ms"),
)
"""The image's own check, so often that a test needn't wait."""

INSIDE = Path(__file__).with_name("inside.py").read_text()


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Everything, stdout first."""
        return (self.out + self.err).splitlines()


def docker(*arguments: str, data: bytes = b"", within_s: float = 60) -> Said:
    """Run a `docker` command, whatever comes of it."""
    done = subprocess.run(
        ["docker", *arguments], input=data, capture_output=True, timeout=within_s, check=False
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def told(*arguments: str, data: bytes = b"", within_s: float = 60) -> str:
    """What a `docker` command answers; fails the test when it fails."""
    said = docker(*arguments, data=data, within_s=within_s)
    assert said.status == 0, f"docker {' '.join(arguments[:3])} …: {said.err}"
    return said.out.strip()


def why_no_engine() -> str | None:
    """Why there is nothing to run containers, or None."""
    try:
        said = docker("version", "--format", "{{.Server.Version}}")
    except FileNotFoundError:
        return "there is no command `docker`"
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return None if said.status == 0 else (said.err.strip() or "no Docker engine").splitlines()[-1]


def once(*command: str, options: Sequence[str] = ()) -> Said:
    """`docker run IMAGE command`, to its end."""
    return docker("run", "--rm", "--label", LABEL, *options, IMAGE, *command)


def sweep() -> None:
    """Remove every container, network and volume of this run."""
    for kind, remove in (
        ("container", ("--force", "--volumes")),
        ("network", ()),
        ("volume", ("--force",)),
    ):
        every = ("--all",) if kind == "container" else ()
        left = told(kind, "ls", *every, "--quiet", "--filter", f"label={LABEL}").split()
        if left:
            told(kind, "rm", *remove, *left)


@contextmanager
def exported(container: str) -> Iterator[tarfile.TarFile]:
    """The files of a container, as a tar archive to be read once, from its beginning."""
    with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield archive
        process.stdout.read()
    assert process.returncode == 0


@contextmanager
def saved(image: str) -> Iterator[tarfile.TarFile]:
    """An image as `docker save` writes it: its layers, each an archive, and their description."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        told("save", "--output", file.name, image, within_s=120)
        with tarfile.open(file.name) as archive:
            yield archive


class Container(Client):
    """A container of the image, and what a client and an operator need of it."""

    def __init__(self, name: str) -> None:
        """One that is there; `name` may be its id."""
        self.id = told("container", "inspect", "--format", "{{.Id}}", name)
        self.find_port()

    @classmethod
    def run(
        cls,
        *options: str,
        settings: dict[str, str] | None = None,
        command: Sequence[str] = (),
        published: bool = True,
    ) -> "Container":
        """Create one and start it. `options` are those of `docker run`."""
        environ = [f"--env={name}={value}" for name, value in (settings or {}).items()]
        ports = [f"--publish=127.0.0.1::{PORT}"] if published else []
        made = told("create", "--label", LABEL, *ports, *options, *environ, IMAGE, *command)
        try:
            told("start", made)
            return cls(made)
        except BaseException:
            docker("rm", "--force", "--volumes", made)
            raise

    def find_port(self) -> None:
        """Where it is reached; an engine may choose another port at each start."""
        found = docker("port", self.id, f"{PORT}/tcp").out
        self.port = int(found.split()[0].rpartition(":")[2]) if found else 0

    # ------------------------------------------------------------ what an operator does

    def remove(self) -> None:
        """End it, and everything of it."""
        told("rm", "--force", "--volumes", self.id)

    def stop(self, grace_s: int = 10) -> int:
        """`docker stop`; the exit status."""
        told("stop", "--time", str(grace_s), self.id, within_s=grace_s + 30)
        return int(self.inspect()["State"]["ExitCode"])

    def log(self) -> str:
        """What it wrote, stdout first."""
        said = docker("logs", self.id)
        return said.out + said.err

    def inspect(self) -> dict[str, Any]:
        """What the engine knows of it."""
        (found,) = json.loads(told("container", "inspect", self.id))
        return dict(found)

    def changes(self) -> str:
        """`docker diff`: what differs from the image, outside volumes and tmpfs."""
        return told("diff", self.id)

    @property
    def running(self) -> bool:
        """Whether its first process runs."""
        return bool(self.inspect()["State"]["Running"])

    @property
    def health(self) -> str:
        """What HEALTHCHECK found: starting, healthy or unhealthy."""
        return str(self.inspect()["State"]["Health"]["Status"])

    # ------------------------------------------------------------ what goes on inside

    def exec(self, *command: str, data: bytes = b"") -> Said:
        """`docker exec`."""
        return docker("exec", "--interactive", self.id, *command, data=data)

    def inside(self, function: str, *arguments: object, data: bytes = b"") -> Any:
        """Call a function of inside.py in the container; what it returns."""
        said = self.exec("python3", "-c", INSIDE, function, json.dumps(arguments), data=data)
        assert said.status == 0, said.err
        return json.loads(said.out)

    @contextmanager
    def neighbour(
        self, function: str, *arguments: object, data: bytes = b""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Call a function of inside.py in a second container, which shares this one's network and
        outlives it. Clients there see refused connections as such; the proxy in front of a
        published port would accept them. Its stdout is what the function returns, as JSON."""
        command = ["docker", "run", "--rm", "--interactive", "--label", LABEL, "--no-healthcheck"]
        command += ["--network", f"container:{self.id}", "--entrypoint", "python3", IMAGE]
        command += ["-c", INSIDE, function, json.dumps(arguments)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin
            process.stdin.write(data)
            process.stdin.close()
            process.stdin = None  # or `communicate` would flush it
            yield process

    @property
    def device(self) -> int | None:
        """The device process's pid, as the container counts."""
        pid: int | None = self.get("/devices")[1]["devices"][0]["pid"]
        return pid

    @property
    def worker(self) -> int:
        """The HTTP worker's pid, as the container counts: the parent of the device process."""
        return int(self.inside("parent", self.device))

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to one of its processes, as the container's own user. When the container
        ends of it, so does what sent it, and says nothing."""
        self.exec("python3", "-c", INSIDE, "kill", json.dumps([pid, number]))
