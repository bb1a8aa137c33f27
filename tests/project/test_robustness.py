"""docs/robustness.md and README's promise name tests that exist, and leave no case out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import ENVIRON
from tests.project.documents import README, prose, rows, section
from tests.support import ROOT

PAGE = (ROOT / "docs" / "robustness.md").read_text()
TEST = re.compile(r"`(test_\w+)`")
DEFINED = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
}
CASES = [
    row
    for part in re.split(r"^### ", section(PAGE, "## The cases"), flags=re.MULTILINE)[1:]
    for row in rows(part)
]
CASE_COUNT = 75


def test_there_is_a_row_for_every_case() -> None:
    assert [int(number) for number, *_ in CASES] == list(range(1, CASE_COUNT + 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case[0]}")
def test_a_case_has_a_test_or_says_why_it_has_none(case: list[str]) -> None:
    _, what, does, tests, why = case
    assert what
    assert TEST.findall(tests) or (not does and why)
    assert not why or why.endswith(".")


def test_every_test_that_the_page_names_exists() -> None:
    named = set(TEST.findall(prose(PAGE)))
    assert named
    assert named <= DEFINED, named - DEFINED


def test_every_line_of_the_promise_has_a_test() -> None:
    for promise, tests in rows(section(PAGE, "## The promise")):
        assert TEST.findall(tests), promise


def test_readme_promises_the_same() -> None:
    promised = re.findall(r"^\* (.+)$", section(README.read_text(), "## What it promises"), re.M)
    assert promised == [promise for promise, _ in rows(section(PAGE, "## The promise"))]


@pytest.mark.parametrize("program", ["pictures", "requests"])
def test_the_programs_that_fuzz_run(program: str, tmp_path: Path) -> None:
    """A few rounds of each; `make fuzz` and CI's nightly run have the many."""
    (tmp_path / "build").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{program}", "300", "7"],
        cwd=tmp_path,
        env=ENVIRON | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("300 mutated ")
