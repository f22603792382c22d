"""The figures of a study, from its cells: PNG for the folder, SVG for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from studies.blocks import Block
from studies.plots.accuracy import accuracy_and_cost, accuracy_and_size
from studies.plots.allocation import bytes_by_part, layer_allocation
from studies.plots.sensitivity import sensitivity, varied_constants
from studies.plots.solver import has_history, solver_history
from studies.plots.style import Drawing, MethodStyle, method_styles

__all__ = ["Drawing", "draw_figures"]

# Panels beside each other: more targets go to another figure, or nobody could read them.
MOST_PANELS = 3


def draw_figures(blocks: Sequence[Block]) -> list[Drawing]:
    """Returns all figures of a study, at most five for each task; without a finished cell there is none.

    Accuracy is drawn against the cost of a search where there are searches, the solver's history where there is one.
    Of a target for which the compressor's constants are varied there is one figure, against these.
    """
    methods = list(dict.fromkeys(cells.method for block in blocks for cells in block.methods))
    styles = method_styles(methods)
    drawings: list[Drawing] = []
    for task in dict.fromkeys(block.task for block in blocks):
        known = [block for block in blocks if block.task == task and block.records]
        varied = [block for block in known if varied_constants(block)]
        drawings += [sensitivity(_file_name(f"{task} {b.target} constants"), task, b) for b in varied]
        known = [block for block in known if block not in varied]
        groups = [known[start : start + MOST_PANELS] for start in range(0, len(known), MOST_PANELS)]
        for number, group in enumerate(groups):
            suffix = f"-{number + 1}" if len(groups) > 1 else ""
            name = _file_name(task)
            drawings += [
                accuracy_and_size(f"{name}-size{suffix}", task, group, styles),
                *_cost(f"{name}-cost{suffix}", task, group, styles),
                layer_allocation(f"{name}-layers{suffix}", task, group, styles),
                bytes_by_part(f"{name}-bytes{suffix}", task, group),
            ]
            if has_history(group):
                drawings.append(solver_history(f"{name}-solver{suffix}", task, group, styles))
    return drawings


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def _cost(name: str, task: str, blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> list[Drawing]:
    searched = [block for block in blocks if any(record.search_gradient_steps for record in block.records)]
    return [accuracy_and_cost(name, task, searched, styles)] if searched else []
