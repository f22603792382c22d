"""How the figures look: one column of a paper wide, one colour and marker for each method, the same bytes every time.

A figure of one column (3.5 inches) can be read in print and on a phone, so the page shows the same drawings.
"""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import matplotlib
import numpy as np
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from studies.records.record import COMPRESSOR
from studies.report.names import method_name
from studies.report.plots.font import figure_fonts

INK, GRID = "#24292f", "#d8dee4"
# In the page these two follow its light or dark scheme.
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--grid)"}
COLUMN_INCHES = 3.5
DOTS_PER_INCH = 200
# So many characters, each entry with six more for its marker, stand in one line of a legend or note.
LEGEND_CHARACTERS, NOTE_CHARACTERS = 62, 74
# Numbers as people write them.
PLAIN = FuncFormatter(lambda value, _: f"{value:,.6g}")
# What differs by less is shown on a linear axis.
LOG_FACTOR = 4.0


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
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8e6cc9", "#56b4e9", "#9c6b3c", "#7f7f7f", INK)
# The compressor's colour is its own.
_MORE = [MethodStyle(colour, marker, "-.") for marker in ("d", "p", "8", "H") for colour in COLOURS[2:7]]


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: of its files, without suffix.
        title, caption: what the page says of it.
        files: suffix -> content.
        svg: the element for the page, ids unique to this figure, values shown where the pointer rests.
    """

    name: str
    title: str
    caption: str
    files: Mapping[str, bytes] = field(repr=False)
    svg: str = field(repr=False)


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
        **seaborn.plotting_context("paper", font_scale=0.85),
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "axes.titlesize": 7.5,
        "axes.titlepad": 3,
        "grid.color": GRID,
        "grid.linewidth": 0.5,
        "font.family": figure_fonts(),
        "svg.hashsalt": "studies",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
        "lines.linewidth": 1.1,
        "legend.frameon": False,
        "figure.facecolor": "white",
    }
    with matplotlib.rc_context(settings):
        yield


def panels(
    what: str, heights: Sequence[float], columns: int = 1, *, share_x: str = "none", share_y: str = "none"
) -> tuple[Figure, list[Axes]]:
    """Returns a figure one column wide and its axes, row by row; `heights` of the rows are in inches.

    Above all panels stands `what` they are of.
    """
    figure = Figure(figsize=(COLUMN_INCHES, sum(heights) + 0.3), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.02, hspace=0.01)  # type: ignore[union-attr, call-arg]
    figure.suptitle(what, x=0.01, ha="left", fontsize=8.5)
    axes = figure.subplots(
        len(heights), columns, squeeze=False, sharex=share_x, sharey=share_y, height_ratios=list(heights)
    )  # type: ignore[call-overload]
    for axis in axes.flat:
        seaborn.despine(ax=axis)
        axis.tick_params(length=0, pad=2)
    return figure, list(axes.flat)


def method_handles(methods: Sequence[str], lines: Collection[str] = ()) -> list[Artist]:
    """Returns the marks of methods for a legend, with a line for those of `lines`."""
    return [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.line if method in lines else "none", markersize=4,
               label=method_name(method))
        for method, s in method_styles(methods).items()
    ]  # fmt: skip


def explain(figure: Figure, note: str, handles: Sequence[Artist] = ()) -> None:
    """Adds a legend below all panels, and under it what the marks, bars and bands are."""
    labels = [str(handle.get_label()) for handle in handles]
    columns = max(1, min(4, len(handles), LEGEND_CHARACTERS // (max(map(len, labels), default=1) + 6)))
    lines = [""]
    for word in note.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}"] if len(lines[-1]) + len(word) < NOTE_CHARACTERS else [*lines, word]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.1 * len(lines) + 0.14 * -(-len(handles) // columns) + 0.05)
    legend = figure.legend(
        handles=list(handles), loc="outside lower center", ncols=columns, title="\n".join(lines).strip(),
        title_fontsize=6.2, fontsize=6.5, handlelength=1.8, columnspacing=1.0, borderpad=0.2,
    )  # fmt: skip
    legend.get_title().set_multialignment("center")


def plain_numbers(axis: Axes, which: Literal["x", "y"]) -> None:
    """Labels an axis with numbers as people write them, also where it is logarithmic."""
    getattr(axis, f"{which}axis").set_major_formatter(PLAIN)


def log_axis(axis: Axes, which: Literal["x", "y"], values: ArrayLike) -> None:
    """Makes an axis logarithmic where what it shows differs by factors, with plain numbers at 1, 2 and 5."""
    shown = np.asarray(values, float)
    plain_numbers(axis, which)
    if shown.max() < LOG_FACTOR * shown.min():
        return
    getattr(axis, f"set_{which}scale")("log")
    side = getattr(axis, f"{which}axis")
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if shown.max() < 300 * shown.min() else (1,)))
    side.set_minor_locator(NullLocator())
    plain_numbers(axis, which)


def tip(artist: Artist, text: str) -> None:
    """Gives a mark the text that the page shows where the pointer rests on it."""
    artist.set_gid(f"tip:{text}")


def finish(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """Returns the figure as files; the same drawing gives the same bytes."""
    figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
    figure.set_layout_engine("none")  # placed once, and not again for each file
    figure.set_dpi(DOTS_PER_INCH)
    png = _written(FigureCanvasAgg(figure).print_png, {"Software": None})
    pdf = _written(FigureCanvasPdf(figure).print_pdf, {"CreationDate": None, "Producer": None})
    for patch in (figure.patch, *(axis.patch for axis in figure.axes)):
        patch.set(facecolor="none", edgecolor="none")
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    svg = _written(FigureCanvasSVG(figure).print_svg, nothing).decode()
    return Drawing(name, title, caption, {"png": png, "pdf": pdf}, _for_page(svg, name, title))


def _written(write: Callable[..., None], metadata: Mapping[str, None]) -> bytes:
    """Returns what a canvas writes; `savefig` would draw everything once more before that."""
    file = io.BytesIO()
    write(file, metadata=metadata)
    return file.getvalue()


def _for_page(svg: str, name: str, title: str) -> str:
    """Returns the <svg> element alone, as wide as its place, with colours of the page and ids of its own."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    for side in ("width", "height"):
        element = re.sub(rf'(<svg\b[^>]*?) {side}="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip" tabindex="-1"><title>\1</title>', element)
    element = element.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-')
    element = element.replace("url(#", f"url(#{name}-")
    for colour, of_page in PAGE_COLOURS.items():
        element = element.replace(colour, of_page)
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


# Accuracies in percent are linear unless the largest error is so many times the smallest.
FACTOR = 4.0
# Errors in points that ticks stand at; below the least one the axis ends, as an error of 0 has no logarithm.
TICKS = (50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
MARGIN_DECADES = 0.15


def error_axis(axis: Axes, accuracies: ArrayLike) -> None:
    """Sets the scale of a y axis of accuracies, in percent, so that all that has to be seen can be told apart."""
    errors = 100 - np.asarray(accuracies, float)
    worst, best = float(errors.max()), max(float(errors.min()), TICKS[-1])
    if worst < FACTOR * best:
        return
    axis.set_yscale("function", functions=(_forward, _inverse))
    margin = 10**MARGIN_DECADES
    axis.set_ylim(100 - worst * margin, 100 - max(best / margin, TICKS[-1] / 2))
    shown = [100 - tick for tick in TICKS if best / margin <= tick <= worst * margin]
    axis.yaxis.set_major_locator(FixedLocator(shown))
    axis.yaxis.set_minor_locator(NullLocator())
    plain_numbers(axis, "y")


def _forward(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = -np.log10(np.maximum(100 - np.asarray(accuracy, float), TICKS[-1] / 4))
    return found


def _inverse(value: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 100 - 10 ** -np.asarray(value, float)
    return found
