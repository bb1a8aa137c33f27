"""What messages advise where that depends on how Reef runs: in its image, or from a checkout."""

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from app import image

VOLUME = re.compile(r"/volumes/(?P<name>[^/]+)/_data$")


@dataclass(frozen=True)
class Place:
    """Where this program runs, for messages that name a command."""

    in_image: bool
    python: str = sys.executable
    """The interpreter, as a path."""

    def command(self, arguments: str = "") -> str:
        """How this program is called here: `reef doctor`, or `.venv/bin/python -m app doctor`."""
        called = "reef" if self.in_image else f"{shlex.quote(_from_here(self.python))} -m app"
        return f"{called} {arguments}".strip()

    def pull(self, model: str) -> str:
        """The command that fetches a model; a container may only read its models."""
        if self.in_image:
            place = models_volume(Path("/proc/self/mountinfo").read_text())
            return f"docker run --rm --volume {place}:/models reef:local models pull {model}"
        return self.command(f"models pull {model}")

    @property
    def stop(self) -> str:
        """What ends the server, as a part of a sentence."""
        return "stop Reef (`make down`)" if self.in_image else "stop Reef"

    @property
    def host(self) -> str:
        """Where a command for the host is to be entered, to stand before it."""
        return "on the host, " if self.in_image else ""


HERE = Place(image.RECORD.is_file())


def models_volume(mountinfo: str) -> str:
    """What Docker mounts at /models, as in proc(5): a volume's name, or FOLDER for a folder."""
    for line in mountinfo.splitlines():
        root, mount_point = line.split()[3:5]
        if mount_point == "/models":
            volume = VOLUME.search(root)
            return volume["name"] if volume else "FOLDER"
    return "reef_models"  # as `make up` names it


def unreadable(path: Path, error: OSError, place: Place = HERE) -> str:
    """Why a file can't be read, in words, and what to do."""
    if not isinstance(error, PermissionError):
        return f"{error.strerror}; mount it or correct the path"
    user, closed = os.geteuid(), _closed_folder(path)
    if closed:
        return (
            f"user {user} may not enter the folder {closed}: {place.host}`chmod a+x` that folder, "
            f"or `chown {user}` it"
        )
    return f"user {user} may not read it: {place.host}`chmod a+r` the file, or `chown {user}` it"


def _closed_folder(path: Path) -> Path | None:
    """The first folder on the way that this user may not pass through."""
    return next(
        (
            folder
            for folder in reversed(path.absolute().parents)
            if os.access(folder, os.F_OK, effective_ids=True)
            and not os.access(folder, os.X_OK, effective_ids=True)
        ),
        None,
    )


def _from_here(path: str) -> str:
    folder = Path.cwd()
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path
