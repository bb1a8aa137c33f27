"""What a plot is drawn on: a file, a wide page or a telephone; and a figure as PNG and as SVG."""

import io
import os
import re
from dataclasses import dataclass

# Where no home can be written to, matplotlib would complain on every start.
os.environ.setdefault("MPLCONFIGDIR", f"/tmp/reef-benchmark-{os.getuid()}")  # noqa: S108

import matplotlib as mpl

mpl.use("Agg")

import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.benchmarking.palette import LIGHT

DPI = 120


@dataclass(frozen=True)
class Paper:
    """How wide a figure is, in inches, and how many entries of a legend stand side by side."""

    width: float
    columns: int

    @property
    def narrow(self) -> bool:
        """Whether what stands side by side must stand below each other."""
        return self.width < 6


WIDE = Paper(9.0, 6)
NARROW = Paper(3.5, 2)

STYLE = {
    "axes.edgecolor": LIGHT["axis"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["quiet"],
    "axes.labelsize": 9,
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": LIGHT["surface"],
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "grid.color": LIGHT["line"],
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a picture's name may have dollars in it
    "xtick.color": LIGHT["quiet"],
    "xtick.labelsize": 9,
    "ytick.color": LIGHT["quiet"],
    "ytick.labelsize": 9,
}
PROLOGUE = re.compile(r"^.*?(?=<svg )|<metadata>.*?</metadata>", re.DOTALL)
SIZE = re.compile(r'(?<=<svg ).*?(viewBox="[^"]*").*?(?=>)', re.DOTALL)
GROUP_NAME = re.compile(r'(?<=<g) id="[^"]*"')


def prepare() -> None:
    """Set the look of every figure from now on."""
    sns.set_theme("notebook", "whitegrid", rc=STYLE)


def png(figure: Figure, title: str) -> bytes:
    """A figure with its title, on white."""
    heading = figure.suptitle(title, x=0.01, ha="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    heading.set_visible(False)
    heading.set_in_layout(False)
    return file.getvalue()


def svg(figure: Figure) -> str:
    """A figure as part of a page: as wide as there is room, in the page's colours and font."""
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=DPI, transparent=True, metadata={"Date": None})
    drawn = PROLOGUE.sub("", file.getvalue())
    drawn = SIZE.sub(r'\1 aria-hidden="true"', drawn, count=1)
    drawn = GROUP_NAME.sub("", drawn)  # two figures' would be the same
    for name, colour in LIGHT.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return drawn.strip()


def legend(figure: Figure, paper: Paper) -> None:
    """Below the figure, where it hides nothing: an entry for each label that any axes have."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower left",
            ncols=paper.columns,
            columnspacing=1.2,
            handlelength=1.3,
            handletextpad=0.5,
            markerscale=1.3,
        )


def shortened(name: str, paper: Paper) -> str:
    """A name that leaves room for what it names."""
    most = 16 if paper.narrow else 40
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"


def level_top(axes: Axes) -> None:
    """From 0 to a little above the highest value."""
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-3) * 1.1)
