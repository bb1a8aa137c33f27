"""What `make run` and `make test` need to install, and the one line where that can't be done."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import environment
from scripts.environment import NEWEST, Interpreter
from tests.client import ENVIRON, free_port
from tests.support import ROOT

USUAL = Interpreter(version=(3, 12), bits=64, machine="x86_64", glibc=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": (3, NEWEST[1] + 1)}, "Python 3.15 is newer than 3.14"),
        ({"version": (4, 0)}, "Python 4.0 is newer than 3.14"),
        ({"glibc": False}, "musl, as Alpine has"),
        ({"bits": 32, "machine": "armv7l"}, "this Python has 32 bits (armv7l)"),
        ({"bits": 32, "machine": "aarch64"}, "this Python has 32 bits (aarch64)"),
        ({"bits": 32, "machine": "i686"}, "32 bits"),
        ({"machine": "riscv64"}, "not on riscv64"),
        ({"implementation": "pypy"}, "needs CPython, not pypy"),
        ({"system": "darwin"}, "runs on Linux, not on darwin"),
    ],
)
def test_a_python_without_packages_is_told_so(change: dict[str, Any], words: str) -> None:
    (line,) = replace(USUAL, **change).objection().splitlines()
    assert words in line


@pytest.mark.parametrize("machine", environment.MACHINES)
@pytest.mark.parametrize("minor", range(11, NEWEST[1] + 1))
def test_a_python_with_packages_is_taken(machine: str, minor: int) -> None:
    assert replace(USUAL, version=(3, minor), machine=machine).objection() == ""


def test_this_python_is_taken() -> None:
    assert Interpreter.this().objection() == ""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the Makefile needs."""
    for name in ("Makefile", "scripts/environment.py", "requirements/run.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`make` in a checkout."""
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env={**ENVIRON, "LC_ALL": "C", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def ours(ran: subprocess.CompletedProcess[str]) -> str:
    """The one line that isn't make's own."""
    assert ran.returncode == 2
    (line,) = (line for line in ran.stderr.splitlines() if not line.startswith("make:"))
    return line


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("not a requirement!", "Invalid requirement"),
        ("not a requirement!", "pip says why"),
    ],
)
def test_what_pip_says_of_anything_else_is_passed_on(
    tmp_path: Path, requirement: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.txt"
    file.write_text(f"{requirement}\nnothing==1\n")
    assert environment.install(str(file)) == 1
    assert words in capfd.readouterr().err


def test_without_python_it_says_what_to_install(checkout: Path) -> None:
    assert "there is no python9 here; install it" in ours(make(checkout, "run", "PYTHON=python9"))


def test_a_python_that_is_too_old_is_told_in_one_line(checkout: Path) -> None:
    old = checkout / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    line = ours(make(checkout, "run", f"PYTHON={old}"))
    assert line == "Reef needs Python 3.11 or newer; name one: make run PYTHON=python3.12"


def test_a_python_without_venv_is_told_with_the_package(checkout: Path) -> None:
    bare = checkout / "python3"
    bare.write_text(
        f'#!/bin/sh\ncase "$*" in *"-m venv"*) echo no ensurepip; exit 1;; esac\n'
        f'[ "$1" != scripts/environment.py ] || exec {sys.executable} -c '
        f"\"import runpy, sys; sys.executable = '$0'; sys.argv[:] = '$*'.split(); "
        "runpy.run_path(sys.argv[0], run_name='__main__')\"\n"
        f'exec {sys.executable} "$@"\n'
    )
    bare.chmod(0o755)
    ran = make(checkout, "run", f"PYTHON={bare}")
    assert ran.returncode == 2
    assert "apt install python3-venv" in ran.stderr
    assert not (checkout / ".venv").exists()


def test_without_a_network_the_index_is_named_in_one_line(checkout: Path) -> None:
    index = f"http://127.0.0.1:{free_port()}/simple"
    ran = make(checkout, "run", f"PYTHON={sys.executable}", PIP_INDEX_URL=index)
    assert "the package index can't be reached" in ours(ran)
    assert not (checkout / ".venv/run").exists()  # the next try installs


def test_an_environment_of_a_python_that_has_gone_is_made_anew(checkout: Path) -> None:
    binaries = checkout / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to("/gone/python3")
    (checkout / ".venv/run").touch()
    os.utime(checkout / "requirements/run.txt", (0, 0))
    index = f"http://127.0.0.1:{free_port()}/simple"
    ran = make(checkout, "run", f"PYTHON={sys.executable}", PIP_INDEX_URL=index)
    assert "the package index can't be reached" in ours(ran)
    assert (binaries / "python").exists()
