"""What can be known to be wrong with a study before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.solver.compressor import check_target
from autocompress.task import load_task
from autocompress.task.arrays import data_root
from autocompress.task.named_models import load_weights
from studies.design.cell import Cell


def check_cells(cells: Sequence[Cell]) -> None:
    """Returns if the tasks of the cells are there and their targets can be met.

    Raises:
        InvalidInputError: a model, data or weights cannot be had, or there is no test split.
        InfeasibleTargetError: a target is too small, naming the smallest.
    """
    for spec in {cell.task.name: cell.task for cell in cells}.values():
        task = load_task(spec.model, spec.data, device="cpu")
        if task.test is None:
            raise InvalidInputError(f"data {spec.data!r} has no test split, and a study reports on one")
        model = task.make_model()
        if spec.weights is not None:
            load_weights(model, data_root() / spec.weights)
        for target in dict.fromkeys(cell.target for cell in cells if cell.task.name == spec.name):
            try:
                check_target(model, target, example=task.input_example)
            except InfeasibleTargetError as error:
                raise InfeasibleTargetError(f"{spec.name}: {error}", error.smallest) from error
