"""The report's HTML, in pieces. Cells and items are HTML; everything else is text."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any

from bench.benchmarking.console import number


def section(title: str, content: str) -> str:
    """A part with a heading; nothing where there is nothing to tell."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    kinds: Mapping[int, str] = MappingProxyType({}),
    stacked: bool = True,
) -> str:
    """A row's first cell is its name; `kinds` are the classes of columns that are no numbers:
    text, unit or thumb.

    On a telephone, a stacked table is a card for each row, in which a cell stands below its
    column's name. Browsers then forget that it is a table, so its roles are written out.
    """

    def kind(column: int) -> str:
        return f' class="{kinds[column]}"' if column in kinds else ""

    def cell(column: int, content: str) -> str:
        if column == 0:
            return f'<th scope="row" role="rowheader">{content}</th>'
        return f'<td role="cell"{kind(column)} data-label="{escape(head[column])}">{content}</td>'

    def line(row: Sequence[str]) -> str:
        cells = (cell(column, content) for column, content in enumerate(row))
        return f'<tr role="row">{"".join(cells)}</tr>'

    names = "".join(
        f'<th scope="col" role="columnheader"{kind(column)}>{escape(name)}</th>'
        for column, name in enumerate(head)
    )
    top = f'<thead role="rowgroup"><tr role="row">{names}</tr></thead>' if any(head) else ""
    lines = "".join(map(line, rows))
    stack = ' class="stack"' if stacked else ""
    return f'<table role="table"{stack}>{top}<tbody role="rowgroup">{lines}</tbody></table>'


def bullets(items: Iterable[str]) -> str:
    """A list; nothing where it has no items."""
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def terms(explained: Mapping[str, str]) -> str:
    """What words mean."""
    lines = "".join(
        f"<dt>{escape(term)}:</dt> <dd>{escape(about)}</dd>" for term, about in explained.items()
    )
    return f"<dl>{lines}</dl>" if lines else ""


def with_interval(value: Mapping[str, Any] | None) -> str:
    """A figure, and below it the 95 % interval where there is one."""
    if value is None:
        return "n/a"
    if value["low"] is None or value["high"] is None:
        return number(value["value"])
    return (
        f'{number(value["value"])}<span class="quiet">{number(value["low"])} to '
        f"{number(value['high'])}</span>"
    )
