"""Aggregated learning: fold 1 is the base, rows by hand, the information by closed forms, one file for two inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_task import make_task
from torch import nn

from autocompress.codec.file import load
from autocompress.errors import InvalidInputError
from autocompress.network.selection import original_bytes
from autocompress.solver.compression import compress
from autocompress.task.named_models import make_model
from autocompress.training.aggregated import (
    AggregatedBatches,
    AggregatedModel,
    Batched,
    FeatureTap,
    InformationPenalty,
    Replicated,
    StatisticsNetwork,
    aggregated_task,
    information,
    train_aggregated,
)
from autocompress.training.evaluation import evaluate
from autocompress.training.losses import classification_loss

IMAGES = {"lenet5": (1, 28, 28), "resnet20": (3, 16, 16)}


@pytest.mark.parametrize("name", IMAGES)
def test_fold_1_is_the_base_network(name):
    base = make_model(name)
    model = AggregatedModel(base, 1)
    assert {key.removeprefix("network.") for key in model.state_dict()} == set(base.state_dict())
    assert original_bytes(model) == original_bytes(base)
    images = torch.randn(4, *IMAGES[name])
    for mode in (True, False):
        base.train(mode)
        model.train(mode)
        assert torch.equal(model(images)[:, 0], base(images))
    for predictor in (Batched(model), Replicated(model)):
        assert torch.equal(predictor.eval()(images).argmax(1), base(images).argmax(1))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("fold", [2, 3])
def test_only_the_first_and_the_last_layer_grow(name, fold):
    base = make_model(name, num_classes=7)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = AggregatedModel(base, fold)
    channels, *size = IMAGES[name]
    assert model.eval()(torch.randn(5, fold * channels, *size)).shape == (5, fold, 7)
    changed = set()
    for key, tensor in model.state_dict().items():
        own = before[key.removeprefix("network.")]
        if tensor.shape != own.shape or not torch.equal(tensor, own):
            changed.add(key)
    assert {key.rpartition(".")[0] for key in changed} == {
        "lenet5": {"network.features.0", "network.classifier.2"},
        "resnet20": {"network.conv1", "network.linear"},
    }[name]
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())


def test_the_first_layers_outputs_vary_as_before():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 3))
    model = AggregatedModel(base, 4)
    inner = model.get_submodule("network.0")
    assert inner.in_features == 200
    ours, theirs = inner(torch.randn(500, 200)).std(), base[0](torch.randn(500, 50)).std()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AggregatedModel(make_model("lenet5"), 0), "fold is 0"),
        (lambda: AggregatedModel(make_model("lenet5"), True), "fold is True"),
        (lambda: AggregatedModel(nn.Conv2d(1, 2, 3)), "its last layer must be linear"),
        (lambda: AggregatedModel(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Linear(4, 2))), "grouped convolution"),
        (lambda: train_aggregated(make_task(), alpha=-1.0), "alpha is -1.0"),
        (lambda: list(AggregatedBatches([{"x": torch.ones(1), "y": torch.ones(1)}], 2)), "one tensor of inputs"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def rows_of(batches):
    return [(inputs.view(len(inputs), 3, 2), targets) for inputs, targets in batches]


@pytest.mark.parametrize("seed", [None, 0])
def test_each_example_is_once_in_each_place_with_its_target(seed):
    inputs = torch.arange(14.0).view(7, 2)
    batches = AggregatedBatches([(inputs[:4], torch.arange(4)), (inputs[4:], torch.arange(4, 7))], 3, seed=seed)
    assert len(batches) == 2
    first, second = (rows_of(batches) for _ in range(2))
    for rows, targets in first:
        for place in range(3):
            assert torch.equal(rows[:, place], inputs[targets[:, place]])
            assert sorted(targets[:, place].tolist()) == targets[:, 0].tolist()
    same = all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert same is (seed is None)
    batches.set_epoch(0)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, rows_of(batches), strict=True))


def test_the_predictors_by_hand():
    torch.manual_seed(0)
    model = AggregatedModel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 2).eval()
    x = torch.randn(5, 4)
    pairs = torch.stack([torch.cat([x[a], x[b]]) for a, b in ((0, 1), (2, 3), (4, 0))])
    joint = model(pairs)
    expected = torch.stack([joint[0, 0], joint[0, 1], joint[1, 0], joint[1, 1], joint[2, 0]])
    torch.testing.assert_close(Batched(model)(x), expected)
    twice = F.softmax(model(torch.cat([x, x], 1)), -1).mean(1)
    torch.testing.assert_close(Replicated(model)(x).exp(), twice)


def test_the_order_of_channels_is_that_of_training():
    model = AggregatedModel(make_model("lenet5"), 2).eval()
    images = torch.randn(4, 1, 28, 28)
    ((rows, _),) = AggregatedBatches([(images, torch.arange(4))], 2)
    torch.testing.assert_close(Batched(model)(images)[:2], model(rows)[0])


def test_the_estimate_by_hand():
    def statistics(x, t):
        return (x * t).squeeze(1)

    x, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]])
    expected = (3 + 10) / 2 - math.log((math.exp(5) + math.exp(6)) / 2)
    assert float(information(statistics, x, t)) == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_information_of_gaussians_is_found(correlation):
    """I = -log(1 - r^2) / 2 for each of two independent pairs of correlation r."""
    torch.manual_seed(0)
    statistics = StatisticsNetwork(2, 2)
    penalty = InformationPenalty(statistics, 1.0, lambda output, target: output.sum() * 0.0)
    estimates = []
    for _ in range(600):
        x = torch.randn(200, 2)
        t = correlation * x + math.sqrt(1 - correlation**2) * torch.randn(200, 2)
        penalty({"logits": torch.zeros(1, 1), "inputs": x, "features": t}, torch.zeros(1))
        estimates.append(float(penalty.estimate))
    exact = -math.log(1 - correlation**2)
    assert sum(estimates[-100:]) / 100 == pytest.approx(exact, abs=0.15 + 0.1 * exact)


def test_the_penalty_pushes_the_features_down_and_leaves_the_loss_in_evaluation():
    torch.manual_seed(0)
    tap = FeatureTap(AggregatedModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 1), "network.2")
    penalty = InformationPenalty(StatisticsNetwork(3, 4), 0.5, classification_loss)
    x, y = torch.randn(32, 3), torch.randint(2, (32, 1))
    for _ in range(50):  # so that there is something to push against
        output = tap(x)
        value = penalty(output, y)
    assert set(output) == {"logits", "inputs", "features"}
    assert output["features"].shape == (32, 4)
    alone = classification_loss(output["logits"], y)
    assert float(value.detach()) == pytest.approx(float(alone.detach()) + 0.5 * float(penalty.estimate), abs=1e-6)
    assert float(penalty.estimate) > 0
    tap.zero_grad()
    (value - alone).backward()
    with torch.no_grad():
        for parameter in tap.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    after = information(penalty.statistics, x, tap(x)["features"])
    assert float(after.detach()) < float(penalty.estimate.detach())
    with torch.no_grad():
        assert float(penalty(tap.eval()(x), y)) == pytest.approx(float(classification_loss(tap(x), y)))


def test_the_recipe_trains_and_both_protocols_agree():
    task = make_task()
    model = train_aggregated(task, 2, epochs=20, progress=False, device="cpu")
    joint = aggregated_task(task, 2)
    scores = [evaluate(net, task.validation).metric for net in (Replicated(model), Batched(model))]
    scores.append(evaluate(model, joint.validation).metric)
    assert min(scores) > 0.75
    assert max(scores) - min(scores) < 0.15
    again = train_aggregated(task, 2, epochs=1, progress=False, device="cpu")
    same = train_aggregated(task, 2, epochs=1, progress=False, device="cpu")
    other = train_aggregated(task, 2, alpha=0.3, epochs=1, progress=False, device="cpu")
    states = [net.state_dict() for net in (again, same, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in states[2].values())


@pytest.mark.any_file
def test_one_file_serves_both_inputs(tmp_path):
    task = make_task()
    model = train_aggregated(task, 2, epochs=20, progress=False, device="cpu")
    joint = aggregated_task(task, 2)
    result = compress(
        model,
        train=joint.train,
        val=joint.validation,
        test=joint.test,
        target="700B",
        loss=joint.loss,
        metric=joint.metric,
        recipe=joint.recipe,
        epochs=6,
        progress=False,
        device="cpu",
    )
    result.save(tmp_path / "two.safetensors")
    assert (tmp_path / "two.safetensors").stat().st_size <= 700
    net = load(tmp_path / "two.safetensors", into=joint.make_model())
    assert evaluate(net, joint.test).metric == result.test_accuracy > 0.65
    assert evaluate(Batched(net), task.test).metric > 0.65
