"""The feasibility repair: feasible, idempotent, the nearest point, continuous; what fits is left alone."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from small_task import make_model

from autocompress.constraints.constraint import Network
from autocompress.errors import InfeasibleTargetError
from autocompress.network.selection import select
from autocompress.targets import parse_target
from baselines.fitting import make_budget
from baselines.repair import Group, repair

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


def fit(logs, bits, target):
    groups = [Group((layer,), math.exp(z), 2**b) for layer, z, b in zip(LAYERS, logs, bits, strict=True)]
    return repair(groups, network().selection.weights, budget(target))


def logs_of(fitted):
    return np.array([math.log(layer.keep_fraction) for layer in fitted.plan.layers.values()])


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(proposal=proposals)
def test_feasible_and_idempotent(target, proposal):
    logs, bits = proposal[:3], proposal[3:]
    first = fit(logs, bits, target)
    assert first.size <= budget(target).limit
    assert first.size == budget(target).measure(first.coded)[0]
    again = fit(logs_of(first), bits, target)
    assert logs_of(again) == pytest.approx(logs_of(first), abs=1e-12)
    assert again.size == first.size
    assert all(layer.codebook == 2**b for layer, b in zip(first.plan.layers.values(), bits, strict=True))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(proposal=proposals)
def test_a_feasible_proposal_is_left_alone_and_no_other(target, proposal):
    logs, bits = proposal[:3], proposal[3:]
    fitted = fit(logs, bits, target)
    applied = fitted.plan.apply(network().selection.weights)
    groups = [Group((layer,), math.exp(z), 2**b) for layer, z, b in zip(LAYERS, logs, bits, strict=True)]
    proposed = {group.layers[0][0]: group.keep_fraction for group in groups}
    untouched = {name: layer.keep_fraction for name, layer in fitted.plan.layers.items()} == proposed
    if untouched:
        assert budget(target).measure(applied)[0] <= budget(target).limit
    else:  # it was over, so the repaired one lies near the limit; a layer's bits fall where its last values go unused
        assert fitted.size >= 0.9 * budget(target).limit
        assert all(layer.keep_fraction <= proposed[name] for name, layer in fitted.plan.layers.items())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(proposal=proposals)
def test_the_nearest_point_that_fits(proposal):
    """For weight data the cost is known exactly: scipy's solution of the same problem is the oracle."""
    logs, bits = np.array(proposal[:3]), np.array(proposal[3:])
    limit = budget("weights:60x").limit
    per_weight = np.array([numel for _, numel in LAYERS]) * bits

    def used(z):
        return float((per_weight * np.exp(z)).sum())

    mine = logs_of(fit(logs, bits, "weights:60x"))
    if used(logs) <= limit:
        assert mine == pytest.approx(logs)
        return
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
    other = np.minimum(logs + np.array(shift), -1.2)
    distance = np.linalg.norm(logs_of(fit(other, bits, target)) - logs_of(fit(logs, bits, target)))
    assert distance <= np.linalg.norm(other - logs) + 0.08


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
    from autocompress.network.network_state import side_tensors

    state, data = fitted.writer.fit(fitted.coded, side_tensors(network().selection))
    assert len(data) == fitted.size
    for coded, kept in zip(fitted.coded, state.coded.values(), strict=True):
        assert torch.equal(coded.codes, kept.codes)
