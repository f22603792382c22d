import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from autocompress.errors import InvalidInputError, TrainingDivergedError
from autocompress.training.batches import TensorBatches
from autocompress.training.losses import classification_loss
from autocompress.training.recipe import (
    MARGIN,
    STEPS,
    Recipe,
    WarmupCosine,
    find_learning_rate,
    fresh_copy,
    make_optimizer,
    range_test,
    recipe_for,
)

CPU = torch.device("cpu")


def blobs(count: int = 256) -> TensorBatches:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    inputs = torch.randn(count, 8, generator=generator) + 2 * nn.functional.one_hot(labels, 8)
    return TensorBatches(inputs, labels, batch_size=32, shuffle=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adma"}, "optimizer 'adma' is unknown"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"compress_epochs": 0}, "compress_epochs is 0"),
        ({"warmup_fraction": 1.0}, r"warmup_fraction is 1\.0"),
    ],
)
def test_recipe_that_cannot_be(changes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Recipe(**changes)


def test_recipes_by_name() -> None:
    assert recipe_for("lenet5", "mnist").batch_size == 256
    assert recipe_for("lenet5", "digits").batch_size == 64
    assert recipe_for("resnet20", "cifar10").learning_rate == 0.1
    assert recipe_for("torchvision:alexnet", "folder:x").learning_rate is None
    assert Recipe().key() != Recipe(batch_size=64).key()


def test_weight_decay_spares_biases_and_norms() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].weight.requires_grad_(False)
    optimizer = make_optimizer(model, Recipe("sgd", 0.1, weight_decay=0.5), 0.1)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decays == {id(model[0].weight): 0.5, id(model[0].bias): 0.0, id(model[1].bias): 0.0}
    with pytest.raises(InvalidInputError, match="no parameter"):
        make_optimizer(nn.ReLU(), Recipe(), 0.1)


def test_schedule_rises_to_the_peak_and_falls_to_zero() -> None:
    factors = [WarmupCosine(100, 0.1)(step) for step in range(100)]
    assert factors[:11] == pytest.approx([0.1 * step for step in range(1, 11)] + [1.0])
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert 0 < factors[-1] < 1e-3
    assert WarmupCosine(100, 0.1)(100) == 0


def test_range_test_rises_exponentially_and_stops_at_divergence() -> None:
    rates, losses = range_test(nn.Linear(8, 4), blobs(), recipe=Recipe("sgd"), loss=classification_loss, device=CPU)
    steps = [later / earlier for earlier, later in pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert len(rates) == len(losses) <= STEPS
    assert all(loss <= 4 * min(losses[: number + 1]) for number, loss in enumerate(losses))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_found_rate_trains(optimizer: str) -> None:
    torch.manual_seed(0)
    model, batches, recipe = nn.Linear(8, 4), blobs(), Recipe(optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rate = find_learning_rate(model, batches, recipe=recipe, loss=classification_loss, device=CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    optimizer_ = make_optimizer(model, recipe, rate)
    first = None
    for _ in range(5):
        for inputs, targets in batches:
            value = classification_loss(model(inputs), targets)
            first = first if first is not None else value.item()
            optimizer_.zero_grad()
            value.backward()
            optimizer_.step()
    assert value.item() < 0.7 * first
    assert rate < 10 / MARGIN


def test_what_was_found_is_told_with_progress_alone(caplog) -> None:
    settings = {"recipe": Recipe("sgd"), "loss": classification_loss, "device": CPU}
    with caplog.at_level("INFO", logger="autocompress"):
        find_learning_rate(nn.Linear(8, 4), blobs(), **settings)
        assert not caplog.messages
        find_learning_rate(nn.Linear(8, 4), blobs(), **settings, progress=True)
    assert any("range test" in message for message in caplog.messages)


def test_fresh_copy_forgets_what_was_learned() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight.fill_(7.0)
        model[1].running_mean.fill_(7.0)
    fresh = fresh_copy(model)
    assert fresh[0].weight.abs().max() <= 0.5
    assert not fresh[1].running_mean.any()
    assert (model[0].weight == 7).all()


def test_inputs_that_are_not_finite_are_found_before_training() -> None:
    batches = [(torch.full((4, 8), math.nan), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(TrainingDivergedError, match="before the first step"):
        find_learning_rate(nn.Linear(8, 4), batches, recipe=Recipe(), loss=classification_loss, device=CPU)
