"""What the tests need to read the repository's Markdown, its Makefile and its messages."""

import ast
import re
from collections.abc import Iterator
from itertools import takewhile

from app.settings import CONFIG_VARIABLE, Settings, variable
from tests.support import ROOT

README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
CONTAINER = ROOT / "docs" / "container.md"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
FAQ = ROOT / "docs" / "faq.md"
COMPARISON = ROOT / "docs" / "comparison.md"
GUIDES = [README, REFERENCE, CONTAINER, TROUBLESHOOTING, FAQ, COMPARISON]
"""What users read: every command, example and message there is tried."""

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
MIGRATION = ROOT / "docs" / "migration.md"
SECURITY = ROOT / "SECURITY.md"

DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part[0] == "." or part == "build" for part in path.relative_to(ROOT).parts)
)
SETTINGS = {variable(name) for name in Settings.model_fields} | {CONFIG_VARIABLE}
ENV_LINE = re.compile(r"^#?([A-Z_0-9]+)=(.*)$", re.MULTILINE)
FOR_COMPOSE = dict(ENV_LINE.findall((ROOT / ".env.example").read_text()))
FOR_TESTS = {"REEF_REQUIRE_BROWSER", "REEF_REQUIRE_CONTAINER", "REEF_REQUIRE_COMPILER"}
VARIABLES = SETTINGS | set(FOR_COMPOSE) | FOR_TESTS

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
CELL_END = re.compile(r"(?<!\\)\|")
SHELL_MESSAGE = re.compile(r'(?:die|say|fail) "((?:[^"\\]|\\.)*)"')
SHELL_VARIABLE = re.compile(r"\$\([^()]*\)|\$\{[^}]*\}|\$\w+")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """A document without its fenced code."""
    return FENCED.sub("", text)


def code(text: str) -> Iterator[str]:
    """Everything that a document sets as code: fenced, or in a line."""
    for fenced in FENCED.finditer(text):
        yield fenced[2]
    for span in SPAN.finditer(prose(text)):
        yield span[1]


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Language and content of a document's fenced code in these languages, in order."""
    return [(each[1], each[2]) for each in FENCED.finditer(text) if each[1] in languages]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    names = (SPAN.sub(r"\1", heading).lower() for heading in HEADING.findall(prose(text)))
    return {re.sub(r"[^\w\- ]", "", name).replace(" ", "-") for name in names}


def section(text: str, heading: str) -> str:
    """What stands between a heading and the next of its rank."""
    rank = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{rank} |\Z)", text, re.M | re.S)
    assert found, f"there is no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a section's first table, without its head."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in CELL_END.split(line)[1:-1]] for line in table][2:]


def make_targets() -> set[str]:
    """What the Makefile can make by name."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def shell_messages() -> Iterator[re.Pattern[str]]:
    """Every message of the scripts as a pattern."""
    for path in (ROOT / "scripts").rglob("*.sh"):
        for message in SHELL_MESSAGE.findall(path.read_text()):
            pieces = SHELL_VARIABLE.split(message)
            yield re.compile(".*".join(re.escape(piece.replace("\\", "")) for piece in pieces))


def messages() -> Iterator[tuple[re.Pattern[str], int]]:
    """Every text of app/ and fetch.py as a pattern, and how many letters of it stand in the code.

    What is filled in at run time matches anything. Texts that say next to nothing by themselves
    are left out, since they would match anything.
    """
    for path in (*(ROOT / "app").rglob("*.py"), ROOT / "scripts" / "fetch.py"):
        tree = ast.parse(path.read_text())
        pieces = {
            piece
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for piece in node.values
        }
        for node in ast.walk(tree):
            if node in pieces:
                continue
            match node:
                case ast.JoinedStr(values):
                    parts = [
                        str(each.value) if isinstance(each, ast.Constant) else None
                        for each in values
                    ]
                case ast.Constant(str(text)):
                    parts = [text]
                case _:
                    continue
            literal = sum(len(part) for part in parts if part)
            if literal >= 12:
                pattern = "".join(".*" if part is None else re.escape(part) for part in parts)
                yield re.compile(pattern), literal
