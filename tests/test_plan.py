"""Plans: applied as given, read off, written and read."""

import json

import pytest
import torch

from autocompress.errors import InvalidInputError
from baselines.plan import LayerPlan, Plan


def weights():
    generator = torch.Generator().manual_seed(0)
    return [("a.weight", torch.randn(8, 30, generator=generator)), ("b.weight", torch.randn(5, 8, generator=generator))]


def test_a_plan_is_applied_layer_by_layer():
    plan = Plan({"b.weight": LayerPlan(0.25, 3), "a.weight": LayerPlan(0.1, 4)})  # in any order
    first, second = plan.apply(weights())
    assert (first.nonzeros, len(first.values)) == (24, 4)
    assert (second.nonzeros, len(second.values)) == (10, 3)
    kept = weights()[0][1].abs()[first.codes != 0]
    assert kept.min() > weights()[0][1].abs()[first.codes == 0].max()


def test_what_is_read_off_is_what_was_applied():
    plan = Plan({"a.weight": LayerPlan(0.1, 4), "b.weight": LayerPlan(0.25, 3)})
    assert Plan.of(dict(zip(plan.layers, plan.apply(weights()), strict=True))) == plan


def test_written_and_read():
    plan = Plan({"a.weight": LayerPlan(1 / 3, 4), "b.weight": LayerPlan(0.25, 256)})
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    "data", [{"a": 3}, {"a": {"keep_fraction": 0.5}}, {"a": {"keep_fraction": "x", "codebook": 1}}, []]
)
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(InvalidInputError, match="not a plan"):
        Plan.from_json(data)


def test_a_plan_of_another_network_names_the_layers():
    with pytest.raises(InvalidInputError, match=r"lacks \['b.weight'\], and names \['c.weight'\]"):
        Plan({"a.weight": LayerPlan(0.1, 4), "c.weight": LayerPlan(0.25, 3)}).apply(weights())


@pytest.mark.parametrize(("codebook", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)])
def test_bits_of_a_codebook(codebook, bits):
    assert LayerPlan(0.5, codebook).bits == bits


def test_a_plan_cannot_be_changed():
    plan = Plan({"a.weight": LayerPlan(0.1, 4)})
    with pytest.raises(TypeError):
        plan.layers["a.weight"] = LayerPlan(1.0, 4)  # type: ignore[index]
