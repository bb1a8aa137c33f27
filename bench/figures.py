"""Figures, the targets they must meet, and how both are shown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NAME_WIDTH = 44
LINE_WIDTH = 100
DISTURBED = 0.1  # of the machine, taken by other processes: figures are then doubtful


@dataclass(frozen=True)
class Figure:
    """One number measured. `target` is the most that is allowed, or the least."""

    name: str
    value: float
    unit: str
    p95: float | None = None
    target: float | None = None
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the target is met; without one, nothing is amiss."""
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self) -> str:
        """For people."""
        text = f"{self.name:{NAME_WIDTH}}{self._with_unit(self.value):>12}"
        text += f"{'' if self.p95 is None else self._with_unit(self.p95):>12}"
        if self.target is not None:
            sign = "at least" if self.at_least else "at most"
            target = f"{sign} {self.target:g} {self.unit}"
            text += f"   {target:16} {'ok' if self.ok else 'MISSED'}"
        return text.rstrip()

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        bound = {"at_least" if self.at_least else "at_most": self.target, "ok": self.ok}
        return {
            "name": self.name.strip(),
            "value": round(self.value, 4),
            "unit": self.unit,
            **({} if self.p95 is None else {"p95": round(self.p95, 4)}),
            **({} if self.target is None else bound),
        }

    def _with_unit(self, value: float) -> str:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        return f"{value:.{digits}f} {self.unit}"


@dataclass(frozen=True)
class Grid:
    """A table of numbers that have no targets."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def text(self) -> str:
        """For people."""
        cells = [list(self.head), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.head))]
        lines = [
            row[0].ljust(widths[0])
            + "".join("  " + cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
            for row in cells
        ]
        return "\n".join([self.title, *lines])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        rows = [dict(zip(self.head, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows}


@dataclass
class Section:
    """What one measurement found. `how` says what was done, in words and numbers."""

    name: str
    title: str
    how: str
    figures: list[Figure] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    disturbances: list[float] = field(default_factory=list)
    """The shares of the machine that other processes took meanwhile."""

    @property
    def missed(self) -> list[str]:
        """The figures that miss their target."""
        return [figure.name.strip() for figure in self.figures if not figure.ok]

    @property
    def disturbance(self) -> float:
        """The mean of `disturbances`."""
        return sum(self.disturbances) / max(1, len(self.disturbances))

    def text(self) -> str:
        """For people."""
        lines = [f"{self.name.upper()}: {self.title}", *textwrap.wrap(self.how, LINE_WIDTH)]
        lines.append(
            f"other processes took {100 * self.disturbance:.0f} % of the machine meanwhile"
        )
        if self.disturbance > DISTURBED:
            lines[-1] += ": measure again when it is quiet"
        if self.figures:
            p95 = "p95" if any(figure.p95 is not None for figure in self.figures) else ""
            lines += ["", f"{'':{NAME_WIDTH}}{'measured':>12}{p95:>12}   target"]
            lines += [figure.line() for figure in self.figures]
        for grid in self.grids:
            lines += ["", grid.text()]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "title": self.title,
            "how": self.how,
            "other_processes": round(self.disturbance, 3),
            "figures": [figure.as_json() for figure in self.figures],
            "grids": [grid.as_json() for grid in self.grids],
        }


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
