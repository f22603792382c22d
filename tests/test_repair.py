"""The two-sided repair: feasible, at the border, idempotent, the nearest point, continuous."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from small_task import make_model

from autocompress.constraints.constraint import Network
from autocompress.errors import InfeasibleTargetError
from autocompress.network.selection import select
from autocompress.targets import parse_target
from baselines.fitting import make_budget
from baselines.plan import LayerPlan, Plan
from baselines.repair import ENCODINGS, Group, path_of, to_border

TARGETS = ["500B", "weights:60x"]
LAYERS = (("0.weight", 640), ("2.weight", 1024), ("4.weight", 96))

proposals = st.tuples(*[st.floats(-7.0, 0.0)] * 3, *[st.integers(1, 6)] * 3)


@cache
def network():
    model = make_model()
    return Network(model, select(model))


@cache
def budget(target):
    return make_budget(network(), parse_target(target))


def repair(groups, weights, budget):
    return to_border(path_of(groups, [name for name, _ in weights], budget), weights, budget)


def fit(logs, bits, target):
    groups = [Group((layer,), math.exp(z), 2**b) for layer, z, b in zip(LAYERS, logs, bits, strict=True)]
    return repair(groups, network().selection.weights, budget(target))


def plan(logs, bits):
    names = [name for name, _ in LAYERS]
    layers = [LayerPlan(math.exp(z), 2**b) for z, b in zip(logs, bits, strict=True)]
    return Plan(dict(zip(names, layers, strict=True)))


def logs_of(fitted):
    return np.array([math.log(layer.keep_fraction) for layer in fitted.plan.layers.values()])


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(proposal=proposals)
def test_a_proposal_comes_to_the_border_from_its_side_and_stays_there(target, proposal):
    logs, bits = np.array(proposal[:3]), proposal[3:]
    first = fit(logs, bits, target)
    limit, layers = budget(target).limit, first.plan.layers.values()
    assert first.size == budget(target).measure(first.quantized)[0] <= limit
    again = fit(logs_of(first), bits, target)
    assert again.size >= first.size
    if first.size >= limit - 4:  # at the border: repairing twice is repairing once
        assert logs_of(again) == pytest.approx(logs_of(first), abs=1e-12)
    if all(layer.keep_fraction == 1 for layer in layers):  # then there is room for larger codebooks
        assert all(layer.codebook >= 2**b for layer, b in zip(layers, bits, strict=True))
        return
    assert [layer.codebook for layer in layers] == [2**b for b in bits]
    assert first.size >= 0.8 * limit  # the size may jump where a layer fills; on average, see below
    moved = logs_of(first) - logs
    assert (moved <= 1e-9).all() or (moved >= -1e-9).all()
    if moved.max() > 1e-9:  # it grew: by one factor, full layers staying full
        free = logs_of(first) < 0
        assert moved[free] == pytest.approx(np.full(free.sum(), moved[free].max()), abs=1e-9)


def test_few_encodings_use_98_percent_on_average(monkeypatch):
    """An encoding costs as much as ten steps of training; the estimate is free."""
    counted = []
    measure = type(budget("500B")).measure

    def noted(self, *arguments):
        counted.append(1)
        return measure(self, *arguments)

    monkeypatch.setattr(type(budget("500B")), "measure", noted)
    rng = np.random.default_rng(1)
    fits = [fit(rng.uniform(-5, 0, 3), rng.integers(2, 7, 3), "500B") for _ in range(10)]
    used = [fitted.size / budget("500B").limit for fitted in fits]
    assert np.mean(used) >= 0.98
    assert max(used) <= 1.0
    assert len(counted) <= 10 * ENCODINGS * 2 / 3
    counted.clear()
    weights = network().selection.weights
    about = to_border(
        path_of([Group(LAYERS, 0.1, 8)], [n for n, _ in weights], budget("500B")), weights, budget("500B"), exact=False
    )
    assert not counted
    assert about.writer is None
    assert measure(budget("500B"), about.quantized)[0] == pytest.approx(500, rel=0.15)


@settings(max_examples=15, deadline=None, derandomize=True)
@example(proposal=(-1.0, -3.0, 0.0, 1, 5, 5))
@given(proposal=proposals)
def test_the_nearest_point_that_fits(proposal):
    """For weight data the cost is known exactly: scipy's solution of the same problem is the oracle."""
    logs, bits = np.array(proposal[:3]), np.array(proposal[3:])
    limit = budget("weights:60x").limit
    per_weight = np.array([numel for _, numel in LAYERS]) * bits

    def used(z):
        return float((per_weight * np.exp(z)).sum())

    if budget("weights:60x").measure(plan(logs, proposal[3:]).apply(network().selection.weights))[0] <= limit:
        return  # it grows, see above; also where values so close that the grid merges them take fewer bits than asked
    mine = logs_of(fit(logs, bits, "weights:60x"))
    found = minimize(
        lambda z: ((z - logs) ** 2).sum(),
        logs - 1.0,
        jac=lambda z: 2 * (z - logs),
        constraints={"type": "ineq", "fun": lambda z: (used(mine) - used(z)) / limit},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 300},
    )
    assume(found.success)
    assert ((mine - logs) ** 2).sum() <= found.fun * 1.001 + 1e-6


sparse_proposals = st.tuples(*[st.floats(-7.0, -1.2)] * 3, *[st.integers(1, 6)] * 3)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(proposal=sparse_proposals, shift=st.tuples(*[st.floats(-0.2, 0.2)] * 3))
def test_no_two_proposals_move_apart(target, proposal, shift):
    """Below a third of the weights; up to whole weights and bytes, for the limit is not met exactly."""
    logs, bits = np.array(proposal[:3]), proposal[3:]
    limit = budget(target).limit
    if budget(target).measure(plan(logs, bits).apply(network().selection.weights))[0] <= limit:
        return  # it grows, see above
    other = np.minimum(logs + np.array(shift), -1.2)
    distance = np.linalg.norm(logs_of(fit(other, bits, target)) - logs_of(fit(logs, bits, target)))
    assert distance <= np.linalg.norm(other - logs) + 0.12


def test_layers_of_a_group_stay_equal():
    fitted = repair([Group(LAYERS, 0.9, 8)], network().selection.weights, budget("500B"))
    assert len({layer.keep_fraction for layer in fitted.plan.layers.values()}) == 1
    assert 0.97 * 500 <= fitted.size <= 500


def test_the_layer_with_most_bytes_gives_most():
    fitted = fit((math.log(0.5),) * 3, (3,) * 3, "500B")
    shares = [layer.keep_fraction for layer in fitted.plan.layers.values()]
    assert shares[1] < shares[0] < shares[2]  # 1024, 640 and 96 weights


def test_a_target_that_no_plan_meets():
    model = make_model()
    net = Network(model, select(model))
    smallest_file = make_budget(net, parse_target("500B")).file.smallest
    tight = make_budget(net, parse_target(f"{smallest_file}B"))
    with pytest.raises(
        InfeasibleTargetError, match="smallest that a plan meets, with one weight in each of 3 layers, is"
    ) as error:
        repair([Group(LAYERS, 0.9, 8)], net.selection.weights, tight)
    assert error.value.smallest > smallest_file
    enough = make_budget(net, parse_target(f"{error.value.smallest}B"))
    assert repair([Group(LAYERS, 0.9, 8)], net.selection.weights, enough).size <= enough.limit


def test_the_size_is_that_of_the_written_file():
    fitted = fit((-1.0, -2.0, 0.0), (3, 2, 5), "500B")
    from autocompress.network.network_state import vector_tensors

    state, data = fitted.writer.fit(fitted.quantized, vector_tensors(network().selection))
    assert len(data) == fitted.size
    for coded, kept in zip(fitted.quantized, state.quantized.values(), strict=True):
        assert torch.equal(coded.codes, kept.codes)
