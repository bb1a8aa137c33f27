"""A checkout as users have it: `make up` and its kin, with a project and an image of its own."""

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from tests.client import ENVIRON, free_port
from tests.container.engine import Said, docker, told
from tests.support import ROOT

BUILD_S = 900  # where nothing of the image is in the builder's cache
NOBODY = "127.0.0.1:9"  # of the build's own network, where nothing listens


@dataclass
class Checkout:
    """This checkout, with variables that tell it apart from what a developer runs from it."""

    environ: dict[str, str]
    image: str
    folder: Path = ROOT

    @classmethod
    def make_own(cls, host_root: Path) -> "Checkout":
        """One on a computer without an Edge TPU, whatever this one has."""
        project = f"reef-test-{uuid4().hex[:8]}"
        image = f"reef:{project}"
        own = {"COMPOSE_PROJECT_NAME": project, "REEF_IMAGE": image, "REEF_PORT": str(free_port())}
        return cls(ENVIRON | own | {"HOST_ROOT": str(host_root)}, image)

    def copied_to(self, folder: Path) -> "Checkout":
        """The same with its files elsewhere, where a .env may be written. It has no port yet."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        environ = {name: value for name, value in self.environ.items() if name != "REEF_PORT"}
        return replace(self, folder=folder, environ=environ)

    @property
    def project(self) -> str:
        """What Compose calls it."""
        return self.environ["COMPOSE_PROJECT_NAME"]

    @property
    def mirror(self) -> str:
        """A site for the Edge TPU's files that can't be reached, and that nobody else asks."""
        return f"http://{NOBODY}/{self.project}"

    @property
    def env_file(self) -> Path:
        """What its user sets."""
        return self.folder / ".env"

    def make(self, target: str, *chosen: str, **variables: str) -> Said:
        """`make target NAME=VALUE…`, to its end; `variables` are the shell's."""
        done = subprocess.run(
            ["make", "--no-print-directory", target, *chosen],
            cwd=self.folder,
            env=self.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def containers(self) -> list[str]:
        """The ids of its containers, stopped ones too."""
        mine = f"label=com.docker.compose.project={self.project}"
        return told("container", "ls", "--all", "--quiet", "--no-trunc", "--filter", mine).split()

    def remove(self) -> None:
        """Everything that it made."""
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        for kind, every in (("container", ("--all",)), ("network", ()), ("volume", ())):
            for listed in told(kind, "ls", *every, *mine).split():
                docker(kind, "rm", *(("--force",) if kind != "network" else ()), listed)
        docker("image", "rm", self.image)


def curl_line(out: str) -> str:
    """The command that was printed for its user."""
    (line,) = (line for line in out.splitlines() if line.startswith("  curl "))
    return line.strip()


def detects(line: str, checkout: Checkout) -> bool:
    """Whether a person is found by a printed command, in a shell that knows nothing else."""
    answer = subprocess.run(
        ["bash", "-c", f"{line} --silent"],
        cwd=checkout.folder,
        env=checkout.environ,
        capture_output=True,
        check=True,
    ).stdout
    return bool(json.loads(answer)["predictions"][0]["class"] == "person")
