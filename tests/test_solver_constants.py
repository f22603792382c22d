"""The constants of the method: what is refused, and the rate that falls with the length of a run."""

import pytest

from autocompress.errors import InvalidInputError
from autocompress.solver.constants import DEFAULTS, SolverConstants, pruned_rate


def test_the_rate_of_pruned_weights_falls_with_the_length() -> None:
    constants = SolverConstants(pruned_rate=0.5, walk_steps=900)
    assert [pruned_rate(constants, steps) for steps in (0, 1, 900)] == [0.5, 0.5, 0.5]
    assert pruned_rate(constants, 3600) == pytest.approx(0.125)
    assert pruned_rate(constants, 90_000) == pytest.approx(0.005)


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
    from autocompress.training.distillation import TEMPERATURE, WEIGHT

    assert (DEFAULTS.distillation_weight, DEFAULTS.distillation_temperature) == (WEIGHT, TEMPERATURE)
