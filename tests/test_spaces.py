"""The search spaces: what a searcher may choose, and what it means."""

from functools import cache

import pytest
from small_task import make_task, train_reference

from autocompress.constraints.constraint import Network
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.selection import select
from autocompress.solver.constants import DEFAULTS
from autocompress.targets import parse_target
from autocompress.task.named_models import make_model
from baselines.fitting import make_budget
from baselines.plan_method import make_plan_method
from baselines.space import SPACES, blocks, make_space


@cache
def network():
    model = train_reference(make_task())
    return Network(model, select(model))


@cache
def space_and_budget(name, target):
    budget = make_budget(network(), parse_target(target))
    return make_space(name, network(), budget), budget


def closed(space, budget, values):
    """Returns (size of the file or the weight data, coded tensors) of the network pruned and quantized at once."""
    method = make_plan_method(network(), budget, space, values, DEFAULTS)
    weights = [weight.detach().clone() for weight in network().weights]
    coded = method.project_last(network().weights, weights).quantized
    return budget.measure(coded)[0], coded


def kept(coded):
    return [tensor.nonzeros for tensor in coded]


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
        size, coded = closed(space, budget, values)
        assert 0 < size <= max(budget.limit, 500) * (1.02 if name == "price" else 1)  # its biases are rounded otherwise
        assert len(coded) == 3


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
        assert closed(space, budget, values)[0] >= 0.9 * budget.limit, name


def test_magnitude_is_one_threshold():
    space, budget = space_and_budget("magnitude", "500B")
    coded = closed(space, budget, {"bits": 3})[1]
    smallest = [w.detach().abs()[c.codes != 0].min() for w, c in zip(network().weights, coded, strict=True)]
    dropped = [w.detach().abs()[c.codes == 0].max() for w, c in zip(network().weights, coded, strict=True)]
    assert max(dropped) <= min(smallest)


def test_only_the_ratios_of_price_multipliers_count():
    space, budget = space_and_budget("price", "500B")
    low, high = (closed(space, budget, {p.name: value for p in space.parameters})[1] for value in (0.25, 4.0))
    assert kept(low) == kept(high)


def test_a_layer_with_a_larger_multiplier_keeps_more():
    space, budget = space_and_budget("price", "500B")
    plain = closed(space, budget, space.start)[1]
    bent = closed(space, budget, {**space.start, "0.weight.multiplier": 16.0})[1]
    assert kept(bent)[0] > kept(plain)[0]


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
