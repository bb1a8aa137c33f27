"""What documents and messages name is there: settings, make targets, modules, files, headings."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from tests.project.documents import (
    DOCUMENTS,
    GUIDES,
    LINK,
    VARIABLES,
    anchors,
    code,
    make_targets,
    prose,
)
from tests.support import ROOT

SETTING = re.compile(r"\bREEF_[A-Z][A-Z_]*\b(?!: no such setting)")
MAKE = re.compile(r"\bmake (?:[A-Z]+=\S+ )*([a-z][a-z-]*)")
MODULE = re.compile(r"\bpython3? -m ([a-z_.]+)")

SOURCES = [
    *DOCUMENTS,
    ROOT / "Makefile",
    *(path for suffix in ("*.py", "*.yaml") for path in (ROOT / "app").rglob(suffix)),
]


def named(path: Path) -> str:
    """How a test calls a file."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_every_setting_named_exists(path: Path) -> None:
    assert set(SETTING.findall(path.read_text())) <= VARIABLES


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_make_target_named_exists(path: Path) -> None:
    asked = {target for text in code(path.read_text()) for target in MAKE.findall(text)}
    assert asked <= make_targets()


def test_make_help_lists_the_targets_that_the_guides_name() -> None:
    command = ["make", "--no-print-directory", "help"]  # `make test` runs this too
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in said.stdout.splitlines() if line}
    texts = [text for path in GUIDES for text in code(path.read_text())]
    asked = {target for text in texts for target in MAKE.findall(text)}
    assert {"run", "test"} <= asked <= listed
    assert listed <= make_targets()


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_module_named_exists(path: Path) -> None:
    for text in code(path.read_text()):
        for module in MODULE.findall(text):
            assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text()), target
