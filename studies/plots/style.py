"""How the figures look: one colour and marker a method in all of them, and files that do not change from run to run."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib
import seaborn  # type: ignore[import-untyped, unused-ignore]
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studies.record import COMPRESSOR

INK, GRID = "#24292f", "#d8dee4"
# In the page these two follow its light or dark scheme.
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--grid)"}
# Width of a figure's panels together, inches; the page shows it at most 1000 pixels wide.
WIDTH_INCHES = 9.6
DOTS_PER_INCH = 110
# So many characters, each entry with six more for its marker, stand in one line of a legend.
LEGEND_COLUMNS, LEGEND_CHARACTERS = 6, 130


@dataclass(frozen=True)
class MethodStyle:
    """Colour, marker and dashes of a method."""

    colour: str
    marker: str
    line: Literal["-", "--", ":", "-."]


# Okabe and Ito's colours, which people with any common colour blindness tell apart, changed where they are pale on
# white or dark on black; methods of like colour have unlike markers and dashes.
_STYLES = {
    COMPRESSOR: MethodStyle("#d55e00", "*", "-"),
    "uniform": MethodStyle("#7f7f7f", "v", ":"),
    "magnitude": MethodStyle("#9c6b3c", "^", ":"),
    "random": MethodStyle("#b59f00", "s", ":"),
    "optuna-tpe": MethodStyle("#0072b2", "o", "-"),
    "optuna-cmaes": MethodStyle("#56b4e9", "D", "-"),
    "optuna-gp": MethodStyle("#cc79a7", "P", "-"),
    "optuna-nsga2": MethodStyle("#8e6cc9", "<", "-"),
    "ray-optuna": MethodStyle("#009e73", ">", "--"),
    "ray-asha": MethodStyle("#e69f00", "h", "--"),
    "ray-pbt": MethodStyle(INK, "X", "--"),
}
_MORE = [
    MethodStyle(colour, marker, "-.")
    for marker in ("d", "p", "8", "H")
    for colour in ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#8e6cc9", "#56b4e9")
]


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: of its file, without suffix.
        title, caption: what the page says of it.
        png: the file.
        svg: the element for the page, ids unique to this figure.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: str


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """Returns the style of each method: known ones always have their own, the others the next that is free."""
    more = itertools.cycle(_MORE)
    others = {method: next(more) for method in dict.fromkeys(methods) if method not in _STYLES}
    return {method: _STYLES.get(method) or others[method] for method in methods}


@contextmanager
def house_style() -> Iterator[None]:
    """Draws in the style of the project meanwhile."""
    settings = {
        **seaborn.axes_style("whitegrid"),
        **seaborn.plotting_context("paper", font_scale=1.05),
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.8,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "font.family": ["DejaVu Sans"],
        "svg.hashsalt": "studies",
        "svg.fonttype": "path",
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "figure.facecolor": "white",
    }
    with matplotlib.rc_context(settings):
        yield


def panels(rows: int, columns: int, row_inches: float, *, share_y: str = "none") -> tuple[Figure, list[list[Axes]]]:
    """Returns a figure of so many panels, the axes by row."""
    figure = Figure(figsize=(WIDTH_INCHES, row_inches * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)  # type: ignore[call-overload]
    for axis in axes.flat:
        seaborn.despine(ax=axis)
        axis.tick_params(length=0)
    return figure, [list(row) for row in axes]


def method_legend(figure: Figure, styles: dict[str, MethodStyle], *, lines: bool = False) -> None:
    """Adds the methods' names below all panels."""
    handles: list[Artist] = [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.line if lines else "none", markersize=7, label=name)
        for name, s in styles.items()
    ]
    fitting = LEGEND_CHARACTERS // (max(map(len, styles)) + 6)
    columns = max(1, min(LEGEND_COLUMNS, fitting, len(handles)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def finish(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """Returns the figure as files; the same drawing gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    FigureCanvasSVG(figure)
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(svg, format="svg", transparent=True, metadata=empty)
    return Drawing(name, title, caption, png.getvalue(), _for_page(svg.getvalue().decode(), name, title))


def _for_page(svg: str, name: str, title: str) -> str:
    """Returns the <svg> element alone, as wide as its place, with colours of the page and ids of its own."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    width = re.search(r'width="([\d.]+)pt"', element)
    element = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = element.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-')
    element = element.replace("url(#", f"url(#{name}-")
    for colour, of_page in PAGE_COLOURS.items():
        element = element.replace(colour, of_page)
    pixels = round(float(width.group(1)) * 4 / 3) if width else 1000
    return element.replace("<svg", f'<svg role="img" aria-label="{title}" style="max-width: {pixels}px"', 1)
