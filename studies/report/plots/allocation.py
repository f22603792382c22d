"""Figures of what was written: how each method spends its bytes, by layer and by part of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame

from studies.report.frame import methods_of
from studies.report.names import block_name, method_name, target_name, task_name
from studies.report.plots.style import INK, PLAIN, Drawing, explain, finish, house_style, panels, plain_numbers, tip

PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "positions": (("positions",), "#0072b2"),
    "codes": (("codes",), "#56b4e9"),
    "codebooks": (("codebook",), "#e69f00"),
    "other tensors": (("grid", "raw"), "#009e73"),
    "header": (("header", "overhead"), "#9a9a9a"),
}
MEASURES: Mapping[str, tuple[Callable[[dict[str, Any]], float], type[Normalize], str]] = {
    "kept weights, %": (lambda layer: 100 * layer["kept"] / math.prod(layer["shape"]), LogNorm, "viridis"),
    "bits of an index": (lambda layer: layer["bits"], Normalize, "cividis"),
}
# Of more layers the numbers would not fit into the squares.
MAX_NUMBERED = 8
BAR_TICKS = 3
HIGH_METHODS = 4  # beside so many a bar has room for ticks at 1, 2 and 5


def layers(name: str, block: DataFrame) -> Drawing:
    """Returns kept weights and bits of each layer, a row for each method; means over the seeds of finished cells."""
    what = block_name(block["task"].iloc[0], block["target"].iloc[0])
    methods = methods_of(block)
    with house_style():
        figure, axes = panels(what, [0.4 + 0.15 * len(methods)] * len(MEASURES), share_x="all")
        for axis, (measure, (value, norm, colours)) in zip(axes, MEASURES.items(), strict=True):
            table = _by_layer(block, methods, value)
            low, high = float(np.nanmin(table)), float(np.nanmax(table))
            low = max(low, 1e-3) if norm is LogNorm else low
            seaborn.heatmap(
                table, ax=axis, cmap=colours, norm=norm(low, max(high, low * 1.01 + 1e-9)), linewidths=0.5,
                annot=table.map(_short_number) if len(table.columns) <= MAX_NUMBERED else None, fmt="",
                annot_kws={"fontsize": 5.5}, cbar=len(table.columns) > MAX_NUMBERED,
                cbar_kws={"aspect": 4 + len(methods)},
            )  # fmt: skip
            axis.set(xlabel="", ylabel="")
            axis.set_title(measure, loc="left")
            if axis.collections[0].colorbar is not None:
                _plain_bar(axis.collections[0].colorbar, norm is LogNorm, len(methods) >= HIGH_METHODS)
            axis.tick_params(axis="x", rotation=90 if len(table.columns) > 8 else 20, labelsize=6)
            axis.tick_params(axis="y", rotation=0)
        explain(figure, "mean over the seeds; layers in the order of the network")
        return finish(figure, name, f"{what}: what each layer gets", "Kept weights on a logarithmic scale of colours.")


def _plain_bar(bar: Colorbar, logarithmic: bool, high: bool) -> None:
    logs = LogLocator(subs=(1, 2, 5) if high else (1,))
    bar.locator = logs if logarithmic else MaxNLocator(BAR_TICKS, integer=True)
    bar.formatter = PLAIN
    bar.minorlocator = NullLocator()
    bar.ax.tick_params(length=0, labelsize=6)


def _by_layer(block: DataFrame, methods: Sequence[str], value: Callable[[dict[str, Any]], float]) -> DataFrame:
    rows = [
        {"method": method_name(cell["method"]), "layer": layer["name"].removesuffix(".weight"), "value": value(layer)}
        for _, cell in block.iterrows()
        for layer in cell["layers"]
    ]
    table = pd.DataFrame(rows)
    order = list(dict.fromkeys(table["layer"]))
    found = table.pivot_table(index="method", columns="layer", values="value", aggfunc="mean")
    return found.reindex(index=[method_name(method) for method in methods], columns=order).rename_axis(None)


def _short_number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def bytes_by_part(name: str, title: str, blocks: Sequence[DataFrame]) -> Drawing:
    """Returns what each method's file is made of: stacked bars, one panel for each task and target."""
    with house_style():
        heights = [0.3 + 0.14 * block["method"].nunique() for block in blocks]
        figure, axes = panels(task_name(blocks[0]["task"].iloc[0]), heights)
        for axis, block in zip(axes, blocks, strict=True):
            methods = methods_of(block)[::-1]
            sizes = mean_parts(block).reindex(methods)
            left = np.zeros(len(methods))
            for part, (_, colour) in PARTS.items():
                bars = axis.barh([method_name(m) for m in methods], sizes[part], left=left, color=colour, height=0.72)
                for bar, method in zip(bars, methods, strict=True):
                    tip(bar, f"{method_name(method)}, {part}: {sizes.loc[method, part]:,.0f} bytes")
                left += sizes[part].to_numpy(float)
            axis.set_title(target_name(block["target"].iloc[0]), loc="left")
            if "B" in block["target"].iloc[0] and block["used"].notna().all():
                axis.axvline((block["file_bytes"] / block["used"]).iloc[0], color=INK, linewidth=0.8, linestyle=":")
            plain_numbers(axis, "x")
            axis.locator_params(axis="x", nbins=6)
            axis.grid(False, axis="y")
            axis.margins(y=0.02)
        axes[-1].set_xlabel("bytes")
        handles = [Patch(color=colour, label=part) for part, (_, colour) in PARTS.items()]
        explain(
            figure,
            "mean over the seeds; dotted: the target, where it is a size; header: everything beside the tensors",
            handles,
        )
        return finish(figure, name, title, "Positions, codes and codebooks are those of the compressed weights.")


def mean_parts(block: DataFrame) -> DataFrame:
    """Returns the mean bytes of each part, a row for each method."""
    rows = [{part: sum(parts.get(key, 0.0) for key in keys) for part, (keys, _) in PARTS.items()}
            for parts in block["parts"]]  # fmt: skip
    return DataFrame(rows, index=block["method"]).groupby(level=0, sort=False).mean()
