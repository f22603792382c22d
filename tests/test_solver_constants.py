"""The constants of the method: what is refused, and what the baselines share."""

import pytest

from autocompress.errors import InvalidInputError
from autocompress.solver.constants import DEFAULTS, SolverConstants


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
