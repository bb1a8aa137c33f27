"""The rules of who imports what, which keep each thing in one place."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

APP = ROOT / "app"
FILES = sorted(APP.rglob("*.py"))


def module_name(path: Path) -> str:
    """`app/http/__init__.py` → `app.http`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in FILES}


def imports(module: ast.Module) -> Iterator[str]:
    """Every module that a module imports, anywhere in it."""
    for node in ast.walk(module):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(source), names=names, level=0):
                for each in names:
                    whole = f"{source}.{each.name}"
                    yield whole if whole in MODULES else source
            case ast.ImportFrom():
                pytest.fail(f"line {node.lineno}: a relative import")


OURS = {name: set(imports(module)) & set(MODULES) for name, module in MODULES.items()}


def importers(library: str) -> set[str]:
    """The modules of ours that import a library."""
    return {
        name
        for name, module in MODULES.items()
        if any(each.split(".")[0] == library for each in imports(module))
    }


def test_flask_is_imported_only_under_http() -> None:
    for library in ("flask", "werkzeug"):
        assert all(name.startswith("app.http.") for name in importers(library))


def test_pillow_is_imported_only_in_imaging() -> None:
    assert importers("PIL") == {"app.imaging"}


def test_tensorflow_lite_is_imported_only_in_runtime() -> None:
    assert importers("ai_edge_litert") == importers("tflite_runtime") == {"app.devices.runtime"}


def test_the_environment_is_read_only_in_settings_and_handed_on_only_in_link() -> None:
    readers = set()
    for name, module in MODULES.items():
        for node in ast.walk(module):
            match node:
                case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv" | "putenv"):
                    readers.add(name)
                case ast.ImportFrom(module="os", names=names):
                    assert not {"environ", "getenv"} & {each.name for each in names}
    assert readers == {"app.settings", "app.devices.link"}


def test_durations_are_measured_with_clocks_that_never_jump() -> None:
    jumping = {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
    for name, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in jumping, name


BELOW: dict[str, set[str]] = {
    # what each layer may import of the others; each of itself, and `app` for the version
    "access": {"errors"},
    "errors": set(),
    "download": set(),
    "fair": set(),
    "image": set(),
    "stages": set(),
    "tflite": set(),
    "advice": {"image"},
    "memory": set(),
    "variables": set(),
    "settings": {"advice", "errors", "variables"},
    "logs": {"errors", "settings"},
    "system": {"advice", "devices", "errors", "settings"},
    "manifest": {"download", "errors", "settings"},
    "labels": {"advice", "errors", "manifest", "tflite"},
    "models": {"advice", "download", "errors", "labels", "manifest", "settings", "tflite"},
    "local": {"settings"},
    "doctor": {"advice", "devices", "errors", "local", "models", "settings"},
    "store": {"advice", "download", "errors", "manifest", "settings", "tflite"},
    "formats": set(),
    "imaging": {"errors", "formats", "models"},
    "detection": {"imaging", "models"},
    "selftest": {"errors", "detection", "imaging", "models"},
    "devices": {
        *("advice", "detection", "errors", "fair", "logs", "manifest", "models", "selftest"),
        "settings",
    },
    "service": {
        *("access", "detection", "devices", "errors", "fair", "imaging", "metrics", "models"),
        *("refusals", "settings", "stages"),
    },
    "refusals": {"errors", "logs", "metrics"},
    "metrics": {"devices", "stages"},
    "http": {
        *("access", "devices", "errors", "imaging", "labels", "models", "service", "settings"),
        "stages",
    },
}


@pytest.mark.parametrize("layer", BELOW)
def test_imports_point_one_way(layer: str) -> None:
    prefix = f"app.{layer}"
    inside = {name for name in MODULES if name == prefix or name.startswith(f"{prefix}.")}
    assert inside
    reached = {each.split(".")[1] for name in inside for each in OURS[name] if each != "app"}
    assert reached - {layer} <= BELOW[layer]


def test_no_two_modules_need_each_other() -> None:
    graph = {name: needs - {"app", name} for name, needs in OURS.items()}
    graph["app.http"] = OURS["app.http"] - {"app.http"}
    graphlib.TopologicalSorter(graph).prepare()


def loaded_after(module: str) -> set[str]:
    """What is loaded in a fresh process once a module of ours is."""
    script = f"import sys, {module}; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    return set(subprocess.check_output(command, cwd=ROOT, text=True).split())


def test_a_device_process_knows_nothing_of_the_server() -> None:
    loaded = loaded_after("app.devices.worker")
    ours = {name for name in loaded if name.startswith("app.")}
    device = {f"app.devices.{name}" for name in ("link", "ownership", "sysfs", "words", "worker")}
    assert ours == {"app.devices"} | device
    assert not loaded & {"flask", "PIL", "gunicorn", "pydantic", "ai_edge_litert"}


def test_the_http_process_loads_no_interpreter() -> None:
    loaded = loaded_after("app.server")
    assert "flask" in loaded
    assert not loaded & {"ai_edge_litert", "tflite_runtime", "app.devices.runtime"}


def test_every_module_begins_with_what_it_is_for() -> None:
    assert [name for name, module in MODULES.items() if not ast.get_docstring(module)] == []
