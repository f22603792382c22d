"""Figures of what was written: how each method spends its bytes, by layer and by part of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from studies.blocks import Block, MethodCells
from studies.plots.style import INK, Drawing, MethodStyle, finish, house_style, method_legend, panels

PARTS = {
    "positions": (("positions",), "#0072b2"),
    "codes": (("codes",), "#56b4e9"),
    "codebooks": (("codebook",), "#e69f00"),
    "other tensors": (("grid", "raw"), "#009e73"),
    "header": (("header", "overhead"), "#9a9a9a"),
}
MEASURES: dict[str, tuple[Callable[[dict[str, Any]], float], bool]] = {
    "kept weights, %": (lambda layer: 100 * layer["kept"] / math.prod(layer["shape"]), True),
    "bits of an index": (lambda layer: layer["bits"], False),
    "bytes": (lambda layer: layer["bytes"], True),
}
# Of the space between two layers, how much the methods take side by side.
DODGE = 0.7
# So many characters of names stand beside each other below the panels of a row.
TICK_CHARACTERS = 120


def layer_allocation(name: str, task: str, blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> Drawing:
    """Returns kept weights, bits and bytes of each layer: one row a measure, one column a target."""
    with house_style():
        figure, axes = panels(len(MEASURES), len(blocks), 2.3, share_y="row")
        used: set[str] = set()
        for column, block in enumerate(blocks):
            methods = [cells for cells in block.methods if cells.records]
            used |= {cells.method for cells in methods}
            for row, (measure, (value, log)) in enumerate(MEASURES.items()):
                axis = axes[row][column]
                _layers(axis, methods, value, styles, room=(row == len(MEASURES) - 1) * TICK_CHARACTERS // len(blocks))
                if log:
                    axis.set_yscale("log")
                    axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
                else:
                    axis.set_ylim(0, 0.5 + axis.get_ylim()[1])
                    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
                if column == 0:
                    axis.set_ylabel(measure)
            axes[0][column].set_title(f"{task}, {block.target}")
        figure.align_ylabels()
        method_legend(figure, {method: style for method, style in styles.items() if method in used})
        return finish(
            figure,
            name,
            f"{task}: what each layer gets",
            "Mean over the seeds, bars one standard deviation; layers in the order of the network.",
        )


def _layers(
    axis: Axes,
    methods: Sequence[MethodCells],
    value: Callable[[dict[str, Any]], float],
    styles: dict[str, MethodStyle],
    *,
    room: int,
) -> None:
    records = [record for cells in methods for record in cells.records.values()]
    names = list(dict.fromkeys(layer["name"] for record in records for layer in record.layers))
    for index, cells in enumerate(methods):
        style = styles[cells.method]
        found = [{layer["name"]: value(layer) for layer in record.layers} for record in cells.records.values()]
        by_layer = [np.array([values[layer] for values in found if layer in values]) for layer in names]
        offset = DODGE * ((index + 0.5) / len(methods) - 0.5)
        present = [i for i, values in enumerate(by_layer) if len(values)]
        axis.errorbar(
            [i + offset for i in present],
            [by_layer[i].mean() for i in present],
            yerr=[by_layer[i].std(ddof=1) if len(by_layer[i]) > 1 else 0.0 for i in present],
            fmt=style.marker,
            color=style.colour,
            markersize=(7 if style.marker == "*" else 4) * (1 if len(names) <= 8 else 0.6),
            elinewidth=0.8,
        )
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_xticks(range(len(names)), [_short(layer) for layer in names] if room else [""] * len(names))
    axis.grid(False, axis="x")
    for between in range(len(names) - 1):
        axis.axvline(between + 0.5, color=INK, alpha=0.15, linewidth=0.6)
    if len(names) * max(len(_short(layer)) for layer in names) > room > 0:
        axis.tick_params(axis="x", rotation=90 if len(names) > 8 else 30, labelsize="small")


def _short(layer: str) -> str:
    """Returns a layer's name without what all of them end in."""
    return layer.removesuffix(".weight")


def bytes_by_part(name: str, task: str, blocks: Sequence[Block]) -> Drawing:
    """Returns what each method's file is made of: stacked bars, one panel a target."""
    with house_style():
        most = max(sum(1 for cells in block.methods if cells.records) for block in blocks)
        figure, ((*axes,),) = panels(1, len(blocks), 0.9 + 0.26 * most)
        for index, (axis, block) in enumerate(zip(axes, blocks, strict=True)):
            methods = [cells for cells in reversed(block.methods) if cells.records]
            left = np.zeros(len(methods))
            for part, (keys, colour) in PARTS.items():
                sizes = np.array([_mean_part(cells, keys) for cells in methods])
                axis.barh([c.method for c in methods], sizes, left=left, color=colour, label=part, height=0.72)
                left += sizes
            axis.set_title(f"{task}, {block.target}")
            axis.set_xlabel("bytes")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axis.locator_params(axis="x", nbins=5)
            axis.grid(False, axis="y")
            axis.margins(y=0.02)
            if index and _names(block) == _names(blocks[0]):
                axis.set_yticklabels([])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
        return finish(
            figure,
            name,
            f"{task}: where the bytes are",
            "Mean over the seeds. Positions, codes and codebooks are those of the compressed weights; header: "
            "everything beside the tensors.",
        )


def _names(block: Block) -> list[str]:
    return [cells.method for cells in block.methods if cells.records]


def _mean_part(cells: MethodCells, keys: Sequence[str]) -> float:
    return float(np.mean([sum(record.parts.get(key, 0.0) for key in keys) for record in cells.records.values()]))
