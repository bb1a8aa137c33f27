"""The reference's tables say what the code does."""

import re

from app import __version__
from app.http import form
from app.http_worker import MAX_HEADER_BYTES
from app.imaging import BASELINE_JPEG_FACTOR
from app.server import CONNECTIONS, IDLE_S
from app.service import UPLOADING
from app.settings import MAX_RESULTS, Settings
from tests.project import tables
from tests.project.documents import CONTRIBUTING, REFERENCE, SECURITY, rows, section
from tests.project.openapi import DOCUMENT
from tests.support import ROOT

REFERENCE_TEXT = REFERENCE.read_text()
MEND = "run: python -m tests.project.tables"


def test_settings_are_those_of_the_code() -> None:
    written = tables.between_marks("settings", REFERENCE_TEXT)[0].splitlines()
    assert written == tables.settings_table(), MEND


def test_errors_are_those_of_the_code() -> None:
    written = tables.between_marks("errors", REFERENCE_TEXT)[0].splitlines()
    assert written == tables.errors_table(), MEND


def test_metrics_are_those_of_the_apis_description() -> None:
    written = tables.between_marks("metrics", REFERENCE_TEXT)[0].splitlines()
    assert written == tables.metrics_table(), MEND


def test_routes_are_those_of_the_code() -> None:
    written = [route for route, _ in rows(section(REFERENCE_TEXT, "## API"))]
    served = [
        f"`{method.upper()} {path}`"
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
    ]
    assert written == served


def test_parameters_and_their_defaults_are_those_of_the_code() -> None:
    _, parameters = section(REFERENCE_TEXT, "## API").split("| parameter")
    defaults = {name.strip("`"): default for name, _, default in rows(f"| parameter{parameters}")}
    settings = Settings.model_validate({})
    assert defaults == {
        "min_score": f"{settings.min_score:g}",
        "max_results": str(settings.max_results),
        "labels": "every class",
        "model": "the first one there",
    }
    assert f"from 1 to {MAX_RESULTS}" in parameters


def test_limits_in_security_are_those_of_the_code() -> None:
    text = SECURITY.read_text()
    settings = Settings.model_validate({})
    for said in (
        f"{settings.max_upload_mib} MiB",
        f"{settings.max_megapixels:g} million",
        f"{BASELINE_JPEG_FACTOR * settings.max_megapixels:g} million",
        f"{form.MAX_PARTS}; {form.MAX_TEXT_BYTES // 1024} KiB of text",
        f"| {settings.deadline_s:g} s |",
        f"cut off after {IDLE_S} s",
        f"| {settings.queue} |",
        f"| {CONNECTIONS}; of one client, seven eighths",
        f"| a header | {MAX_HEADER_BYTES // 1024} KiB |",
        f"`REEF_QUEUE` + cores + {UPLOADING} requests",
    ):
        assert said in text, said


def test_contributing_lists_every_module() -> None:
    listed = {path.strip("`") for path, _ in rows(section(CONTRIBUTING.read_text(), LAYOUT))}
    there = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.yaml")
        for path in (ROOT / "app").rglob(pattern)
        if path.name != "__init__.py"
    }
    assert listed == there


LAYOUT = "## How the code is laid out"


def test_contributing_lists_every_layer_of_tests() -> None:
    listed = {path.strip("`") for path, _ in rows(section(CONTRIBUTING.read_text(), LAYERS))}
    assert listed == {f"tests/{path.parent.name}" for path in ROOT.glob("tests/*/test_*.py")}


LAYERS = "## How to test"


def test_folders_that_contributing_names_are_there() -> None:
    (beside,) = re.findall(r"^Beside `app/`: .*$", CONTRIBUTING.read_text(), re.MULTILINE)
    folders = re.findall(r"`([a-z]+/)`", beside)
    assert len(folders) > 3
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder


def test_changelog_tells_of_this_version() -> None:
    assert re.search(rf"\b{re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text())
