"""The search spaces: what a searcher may choose, and what it means."""

from functools import cache

import pytest
from small_task import make_task, train_reference

from autocompress.constraints.constraint import Network
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.selection import select
from autocompress.targets import parse_target
from autocompress.task.named_models import make_model
from baselines.fitting import make_budget
from baselines.space import SPACES, blocks, make_space


@cache
def network():
    model = train_reference(make_task())
    return Network(model, select(model))


@cache
def space_and_budget(name, target):
    budget = make_budget(network(), parse_target(target))
    return make_space(name, network(), budget), budget


def corners(space):
    """Returns the lowest, the highest and the first proposal."""
    yield {p.name: p.low for p in space.parameters}
    yield {p.name: p.high for p in space.parameters}
    yield dict(space.start)


@pytest.mark.parametrize("target", ["500B", "weights:60x"])
@pytest.mark.parametrize("name", SPACES)
def test_every_proposal_fits(name, target):
    space, budget = space_and_budget(name, target)
    for values in corners(space):
        fitted = space.fit(values, network(), budget)
        assert 0 < fitted.size <= max(budget.limit, 500)
        assert list(fitted.plan.layers) == [layer for layer, _ in network().selection.weights]


@pytest.mark.parametrize("name", SPACES)
def test_the_start_is_in_its_ranges(name):
    space, _ = space_and_budget(name, "500B")
    assert set(space.start) == {p.name for p in space.parameters}
    for parameter in space.parameters:
        assert parameter.low <= space.start[parameter.name] <= parameter.high
        assert not parameter.integer or space.start[parameter.name] == int(space.start[parameter.name])


@pytest.mark.parametrize(("name", "count"), [("per-layer", 6), ("global", 2), ("price", 3), ("uniform", 1)])
def test_numbers_to_choose(name, count):
    assert len(space_and_budget(name, "500B")[0].parameters) == count


def test_the_largest_proposal_uses_the_target():
    for name in ("per-layer", "global", "uniform", "magnitude"):
        space, budget = space_and_budget(name, "500B")
        values = {p.name: p.high for p in space.parameters}
        assert space.fit(values, network(), budget).size >= 0.95 * budget.limit, name


def test_magnitude_is_one_threshold():
    space, budget = space_and_budget("magnitude", "500B")
    fitted = space.fit({"bits": 3}, network(), budget)
    kept = [w.detach().abs()[c.codes != 0].min() for w, c in zip(network().weights, fitted.coded, strict=True)]
    dropped = [w.detach().abs()[c.codes == 0].max() for w, c in zip(network().weights, fitted.coded, strict=True)]
    assert max(dropped) <= min(kept)


def test_only_the_ratios_of_price_multipliers_count():
    space, budget = space_and_budget("price", "500B")
    low, high = (space.fit({p.name: value for p in space.parameters}, network(), budget) for value in (0.25, 4.0))
    assert low.plan == high.plan


def test_a_layer_with_a_larger_multiplier_keeps_more():
    space, budget = space_and_budget("price", "500B")
    plain = space.fit(space.start, network(), budget).plan.layers["0.weight"].keep_fraction
    bent = space.fit({**space.start, "0.weight.multiplier": 16.0}, network(), budget)
    assert bent.plan.layers["0.weight"].keep_fraction > plain


def test_blocks_of_a_residual_network():
    selection = select(make_model("resnet20", 10, 3))
    found = blocks([(name, weight.numel()) for name, weight in selection.weights])
    assert len(found) == 11  # nine blocks, the first convolution and the classifier
    assert sum(len(members) for members in found.values()) == len(selection.weights)


def test_an_unknown_space():
    budget = make_budget(network(), parse_target("500B"))
    with pytest.raises(InvalidInputError, match="'layers' is unknown; it may be per-layer, block"):
        make_space("layers", network(), budget)


def test_a_target_below_every_plan():
    with pytest.raises(InfeasibleTargetError, match="smallest file for this model"):
        make_budget(network(), parse_target("20B"))
