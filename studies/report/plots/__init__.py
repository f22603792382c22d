"""The figures of a study, from its frame: PNG and PDF for the folder, SVG for the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pandas import DataFrame

from studies.records.record import COMPRESSOR
from studies.report.frame import BLOCK
from studies.report.names import task_name
from studies.report.plots.allocation import bytes_by_part, layers
from studies.report.plots.cost import cost
from studies.report.plots.differences import differences
from studies.report.plots.sensitivity import has_lengths, lengths, sensitivity, systems, varied_constants
from studies.report.plots.solver import solver_history
from studies.report.plots.style import Drawing

__all__ = ["Drawing", "draw_figures"]

# Panels above each other: more targets go to another figure.
MAX_PANELS = 3


def draw_figures(table: DataFrame, summary: DataFrame) -> list[Drawing]:
    """Returns the figures of a study; the first is that of the finding. Nothing empty is drawn.

    Differences to the compressor where there are some; accuracy against the cost of a search, against constants or
    lengths of training where these vary; where networks were measured, accuracy against size; what each layer and each
    part of the file gets; the compressor's history.
    """
    finished = table[table["state"] == "finished"]
    drawings: list[Drawing] = []
    for task in dict.fromkeys(finished["task"]):
        mine = summary[summary.index.get_level_values("task") == task]
        cells = [block for _, block in finished[finished["task"] == task].groupby(BLOCK, sort=False)]
        name, title = _file_name(task), task_name(task)
        varied = [block for block in cells if varied_constants(block)]
        long = [block for block in cells if has_lengths(block)]
        if mine["energy_mean"].notna().any():
            drawings.append(systems(f"{name}-systems", f"{title}: accuracy and size of all systems", mine))
        drawings += [sensitivity(_file_name(f"{task} {b['target'].iloc[0]} constants"), b) for b in varied]
        drawings += _groups(lengths, f"{name}-epochs", f"{title}: accuracy by length of training", long)
        plain = [block for block in cells if not any(block is other for other in (*varied, *long))]
        compared = [rows for _, rows in mine.groupby(BLOCK, sort=False) if (rows["verdict"] != "").any()]
        compared = [rows for rows in compared if any(rows.index[0][1] == b["target"].iloc[0] for b in plain)]
        drawings += _groups(differences, f"{name}-differences", f"{title}: methods beside the compressor", compared)
        if mine["energy_mean"].notna().any():
            continue  # of many targets, each with few methods, the tables say the rest
        searched = [block for block in plain if (block["search_gradient_steps"] > 0).any()]
        drawings += _groups(cost, f"{name}-cost", f"{title}: accuracy and cost of the search", searched)
        several = [block for block in plain if block["method"].nunique() > 1]
        # The other targets' layers differ little from those of the smallest files.
        layered = [block for block in several if any(block["layers"])]
        smallest = sorted(layered, key=lambda block: float(block["file_bytes"].mean()))[:1]
        drawings += [layers(_file_name(f"{task} {b['target'].iloc[0]} layers"), b) for b in smallest]
        parts = [block for block in several if any(block["parts"])]
        drawings += _groups(bytes_by_part, f"{name}-bytes", f"{title}: where the bytes are", parts)
        ours = [b[(b["method"] == COMPRESSOR) & b["history"].map(bool)] for b in several]
        ours = [block for block in ours if len(block)]
        if ours:
            drawings.append(solver_history(f"{name}-solver", f"{title}: the compressor at work", ours))
    return drawings


def _groups(
    draw: Callable[[str, str, Sequence[DataFrame]], Drawing], name: str, title: str, blocks: Sequence[DataFrame]
) -> list[Drawing]:
    """Returns one figure for each few blocks."""
    groups = [blocks[start : start + MAX_PANELS] for start in range(0, len(blocks), MAX_PANELS)]
    names = [f"{name}-{number}" if len(groups) > 1 else name for number in range(1, len(groups) + 1)]
    return [draw(each, title, group) for each, group in zip(names, groups, strict=True)]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")
