"""The tables of settings, errors and metrics, and .env.example's settings, as app/ has them.

`python -m tests.project.tables` writes them; test_tables.py and test_compose.py compare them.
"""

import re
from collections.abc import Iterable, Iterator
from inspect import getdoc
from pathlib import Path
from tempfile import gettempdir

from pydantic import SecretStr

from app.errors import RequestError
from app.http.openapi import document
from app.settings import CONFIG_VARIABLE, EMBEDDED_MODELS, Settings, takes, variable

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference.md"
ENV_EXAMPLE = ROOT / ".env.example"
ENV_MARK = "# Reef's own; docs/reference.md says what each takes.\n"

FIXED_IN_THE_IMAGE = {"host", "port", "models_dir", "run_dir"}

WHAT_TO_DO = {
    "bad_parameter": "The message names the parameter and what it takes.",
    "image_missing": "Send the picture as the field `image`, or as the body.",
    "image_ambiguous": "Send one picture per request.",
    "upload_broken": "Send the whole body, with its true `Content-Length`, boundary and coding.",
    "unauthorized": "Send the key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
    "not_found": "See the routes above.",
    "unknown_model": "`/models` lists those served; `REEF_EXTRA_MODELS` adds more.",
    "method_not_allowed": "The header `Allow` names the right ones.",
    "upload_too_slow": "Send the body at once, or a smaller picture; `REEF_DEADLINE_S`.",
    "upload_too_large": "Send a smaller picture, or raise `REEF_MAX_UPLOAD_MIB`.",
    "image_too_large": "Send a smaller picture, or raise `REEF_MAX_MEGAPIXELS`.",
    "unsupported_type": "Send a multipart form, `image/*` or `application/octet-stream`.",
    "not_an_image": "Send JPEG, PNG, WebP, BMP or GIF.",
    "image_corrupt": (
        "The message has the reason. Most often the file was cut short before it was sent; see "
        "[decoding.md](decoding.md)."
    ),
    "too_many_requests": "Wait for `Retry-After`; `REEF_CLIENT_RATE`, `REEF_CLIENT_REQUESTS`.",
    "internal_error": "Report it, with the traceback from the log.",
    "busy": "Wait for `Retry-After`; send fewer pictures at once.",
    "no_device": "Wait for `Retry-After`; `/ready` says what is wrong.",
    "device_failed": "Wait for `Retry-After`; `/devices` and the log say more.",
    "deadline_exceeded": "Send fewer pictures at once, or raise `REEF_DEADLINE_S`.",
}


def settings_table() -> list[str]:
    """One row a setting, in the order of `Settings`."""
    rows = (
        (f"`{variable(name)}`", _default(name, field.default), takes(field), field.description)
        for name, field in Settings.model_fields.items()
    )
    return _table(("setting", "default", "takes", "what it does"), rows)


def errors_table() -> list[str]:
    """One row an error, in the order of app/errors.py."""
    rows = (
        (str(error.status), f"`{error.code}`", _first_line(error), WHAT_TO_DO[error.code])
        for error in RequestError.__subclasses__()
    )
    return _table(("status", "code", "means", "what to do"), rows)


def metrics_table() -> list[str]:
    """One row a metric, as the API's description has them."""
    described: str = document()["paths"]["/metrics"]["get"]["description"]
    return [line for line in described.splitlines() if line.startswith("|")]


TABLES = {"settings": settings_table, "errors": errors_table, "metrics": metrics_table}


def env_example() -> str:
    """The settings that compose.yaml hands on, each with its default."""
    return "".join(f"\n# {text}\n#{name}={default}\n" for name, default, text in _handed_on())


def _handed_on() -> Iterator[tuple[str, str, str]]:
    yield CONFIG_VARIABLE, "", "A YAML file with settings; it is read in the container."
    for name, field in Settings.model_fields.items():
        if name not in FIXED_IN_THE_IMAGE:
            default = _default(name, field.default).strip("`").removeprefix("none")
            yield variable(name), default, field.description or ""


def between_marks(name: str, text: str) -> re.Match[str]:
    """The lines between `<!-- name: … -->` and `<!-- end -->`."""
    mark = f"<!-- {name}: kept by python -m tests.project.tables -->\n"
    found = re.search(rf"(?<={re.escape(mark)}).*?(?=<!-- end -->)", text, re.DOTALL)
    assert found, f"{REFERENCE.name} has no marks for the table of {name}"
    return found


def main() -> None:
    """Write the tables into docs/reference.md, the settings into .env.example."""
    text = REFERENCE.read_text()
    for name, table in TABLES.items():
        start, end = between_marks(name, text).span()
        text = text[:start] + "".join(f"{line}\n" for line in table()) + text[end:]
    REFERENCE.write_text(text)
    kept, mark, _ = ENV_EXAMPLE.read_text().partition(ENV_MARK)
    ENV_EXAMPLE.write_text(kept + mark + env_example())


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str | None]]) -> list[str]:
    def lines() -> Iterator[str]:
        yield _row(head)
        yield _row("---" for _ in head)
        yield from map(_row, rows)

    return list(lines())


def _row(cells: Iterable[str | None]) -> str:
    return f"| {' | '.join(cell or '' for cell in cells)} |"


def _default(name: str, value: object) -> str:
    match name, value:
        case "models_dir", _:
            assert value == EMBEDDED_MODELS
            return "`models/` of this repository"
        case "run_dir", Path():
            assert value.parent == Path(gettempdir())
            return "`/tmp/reef-UID`"
        case _, None | () | "" | SecretStr():
            return "none"
        case _, tuple():
            return f"`{','.join(value)}`"
        case _, float():
            return f"`{value:g}`"
    return f"`{value}`"


def _first_line(error: type[RequestError]) -> str:
    return (getdoc(error) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
