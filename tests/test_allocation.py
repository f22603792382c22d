"""Projection B against brute force, scipy's MILP and its linear relaxation."""

import itertools

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, linprog, milp

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.numerics.multiple_choice_knapsack import allocate

BITS = np.arange(1, 9)


def draw(seed: int, layers: int):
    """Costs bits * nonzeros and errors that fall about fourfold per bit, not always convex, and a budget."""
    rng = np.random.default_rng(seed)
    nonzeros = rng.integers(1, 1000, layers)
    errors = rng.exponential(1, layers)[:, None] * 4.0**-BITS * rng.uniform(0.5, 2, (layers, 8))
    return np.outer(nonzeros, BITS), errors, int(nonzeros.sum() * rng.uniform(1, 8))


def constraints(costs):
    owner = np.repeat(np.arange(len(costs)), costs.shape[1])
    return (owner[None] == np.arange(len(costs))[:, None]).astype(float)


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force(seed):
    costs, errors, budget = draw(seed, 3)
    rows = np.arange(3)
    best = min(
        errors[rows, list(choices)].sum()
        for choices in itertools.product(range(8), repeat=3)
        if costs[rows, list(choices)].sum() <= budget
    )
    result = allocate(costs, errors, budget)
    assert result.exact
    assert result.error == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("layers", [4, 20])
def test_equals_milp_and_is_bounded_by_the_relaxation(seed, layers):
    costs, errors, budget = draw(seed + 100, layers)
    rows = constraints(costs)
    limits = [LinearConstraint(costs.ravel()[None], ub=budget), LinearConstraint(rows, lb=1, ub=1)]
    # Errors are scaled up: the solver's own tolerances are absolute.
    scale = 1e3 / errors.sum()
    best = milp(
        errors.ravel() * scale,
        integrality=np.ones(costs.size),
        bounds=(0, 1),
        constraints=limits,
        options={"mip_rel_gap": 0},
    )
    relaxed = linprog(errors.ravel() * scale, costs.reshape(1, -1), [budget], rows, np.ones(len(costs)), bounds=(0, 1))
    result = allocate(costs, errors, budget)
    assert result.exact
    assert result.error * scale == pytest.approx(best.fun, rel=1e-6, abs=1e-6)
    assert result.bound * scale == pytest.approx(relaxed.fun, rel=1e-6, abs=1e-6)
    assert result.bound <= result.error <= allocate(costs, errors, budget, exact=False).error
    index = np.arange(layers)
    assert result.cost == costs[index, result.choices].sum() <= budget
    assert result.error == pytest.approx(errors[index, result.choices].sum())


def test_greedy_freezes_only_the_layer_that_does_not_fit():
    costs = np.array([[10, 20, 30], [1, 2, 3]])
    errors = np.array([[100.0, 0.0, 0.0], [3.0, 2.0, 1.0]])
    result = allocate(costs, errors, 19, exact=False)
    assert (result.choices, result.cost, result.exact) == ([0, 2], 13, False)


@pytest.mark.parametrize("seed", range(5))
def test_error_never_rises_with_the_budget(seed):
    costs, errors, _ = draw(seed, 6)
    budgets = np.linspace(costs[:, 0].sum(), costs[:, -1].sum(), 60).astype(int)
    found = [allocate(costs, errors, int(budget)).error for budget in budgets]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(found))
    assert found[-1] == pytest.approx(errors.min(1).sum())


def test_many_layers_finish_with_a_small_gap():
    costs, errors, _ = draw(3, 54)
    result = allocate(costs, errors, int(2.5 * costs[:, 0].sum()))
    assert result.error <= result.bound * 1.02


def test_where_too_much_is_in_doubt_the_greedy_answers_and_says_so(monkeypatch):
    costs, errors, budget = draw(100, 20)
    monkeypatch.setattr("autocompress.numerics.multiple_choice_knapsack.EXACT_VARIABLES", 20)
    result, greedy = allocate(costs, errors, budget), allocate(costs, errors, budget, exact=False)
    assert (result.exact, result.choices) == (False, greedy.choices)
    assert result.bound <= result.error


def test_bad_tables():
    with pytest.raises(InfeasibleTargetError, match="budget is 1, but the cheapest choices cost 4") as caught:
        allocate(np.array([[3, 6], [1, 2]]), np.ones((2, 2)), 1)
    assert caught.value.smallest == 4
    with pytest.raises(InvalidInputError, match="one shape"):
        allocate(np.ones((2, 2), dtype=np.int64), np.ones((2, 3)), 9)
