"""Reading the kernel's trees, where a file may vanish or fail to read at any moment."""

from pathlib import Path


def read(path: Path) -> str:
    """What a file says, without the blank space around it; empty if it can't be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\n")
    except OSError:
        return ""


def beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file; empty if it can't be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(size)
    except OSError:
        return b""


def number(path: Path) -> int | None:
    """The whole number in a file (`0x1ac1` too), or None."""
    try:
        return int(read(path), 0)
    except ValueError:
        return None


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in the order of the names; empty if it can't be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def target(link: Path) -> str:
    """The name of what a symbolic link leads to, or empty."""
    try:
        return link.readlink().name
    except OSError:
        return ""


def there(path: Path) -> bool:
    """Whether something has this path."""
    try:
        path.lstat()
    except OSError:
        return False
    return True
