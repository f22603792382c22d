"""The constants of the method: what is refused, and what the baselines share."""

import pytest
import torch
from small_task import make_task

from autocompress.errors import InvalidInputError
from autocompress.solver.compressor import Compressor
from autocompress.solver.constants import DEFAULTS, SolverConstants, budget_on_path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"iteration": "newton"}, "iteration is 'newton'; it may be 'lazy' or 'admm'"),
        ({"path_start": -1.0}, "path_start is -1.0; it must be a number of at least 0"),
        ({"pruned_rate": float("nan")}, "pruned_rate is nan"),
    ],
)
def test_what_cannot_be_is_refused(changed, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SolverConstants(**changed)


def test_the_defaults_are_what_the_baselines_are_distilled_with() -> None:
    from autocompress.training.losses import TEMPERATURE, WEIGHT

    assert (DEFAULTS.distillation_weight, DEFAULTS.distillation_temperature) == (WEIGHT, TEMPERATURE)


@pytest.mark.parametrize(("steps", "fraction"), [(0, 0.5), (40, 0.5), (60, 0.5), (80, 0.375), (100, 0.3), (9000, 0.3)])
def test_the_path_of_a_short_run_is_a_larger_part_of_it(steps: int, fraction: float) -> None:
    constants = SolverConstants(path_fraction=0.3, path_steps=30).for_steps(steps)
    assert constants.path_fraction == fraction
    assert budget_on_path(10.0, 1e9, fraction, constants) == 10.0
    assert budget_on_path(10.0, 1e9, fraction / 2, constants) > 10.0


@pytest.mark.parametrize(("path_fraction", "expected"), [(0.1, 0.2), (0.4, 0.4), (0.0, 0.2)])
def test_the_compressor_knows_how_long_its_path_is(path_fraction: float, expected: float) -> None:
    model = make_task().make_model()
    constants = SolverConstants(path_fraction=path_fraction, path_steps=90.0, fine_tuning_fraction=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compressor = Compressor(model, optimizer, target="600B", total_steps=500, constants=constants)
    assert compressor.constants.path_fraction == pytest.approx(expected)
