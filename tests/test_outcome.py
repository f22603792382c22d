"""Never worse than doing nothing, and nothing silent: the networks that a run chooses between and what it says."""

from __future__ import annotations

import copy
import json
import math

import pytest
import small_task
import torch
from torch import nn

import autocompress as ac
from autocompress.solver.result import Outcome
from autocompress.training.evaluation import evaluate
from autocompress.training.losses import output_distance
from autocompress.training.recipe import Recipe

RECIPE = Recipe("sgd", 0.05)


def loss_of(model: nn.Module, batches) -> float:
    with torch.no_grad():
        return float(torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean())


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = small_task.make_norm_model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        for x, y in small_task.batches(200, 1):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def compressed(model: nn.Module, **settings) -> ac.Result:
    given = {
        "train": small_task.batches(200, 1),
        "val": small_task.batches(200, 2),
        "target": "1500B",
        "recipe": RECIPE,
        "progress": False,
        "device": "cpu",
    }
    return ac.compress(model, **given | settings)


@pytest.mark.any_file
@pytest.mark.parametrize("target", ["1500B", "weights:40x", "codes:20x"])
def test_no_training_is_the_projection_of_the_network_as_it_was_given(trained, target) -> None:
    result = compressed(trained, target=target, epochs=0)
    assert result.gradient_steps == 0
    assert result.outcome.chosen == "one-shot"
    assert set(result.outcome.scores) == {"one-shot"}
    assert result.curve == []
    assert result.validation_accuracy is not None
    again = compressed(trained, target=target, epochs=0)
    assert again.data == result.data


@pytest.mark.any_file
@pytest.mark.parametrize("rate", [0.05, 1e4])
def test_never_worse_than_the_one_shot_network(trained, rate) -> None:
    """A learning rate that destroys any network must not destroy this one: its clipped steps are of that length."""
    val = small_task.batches(200, 2)
    once = compressed(trained, epochs=0)
    result = compressed(trained, epochs=2, recipe=Recipe("sgd", rate))
    assert set(result.outcome.scores) == {"trained", "before fine-tuning", "one-shot"}
    assert loss_of(result.model, val) <= loss_of(once.model, val) * (1 + 1e-4)
    assert result.outcome.scores[result.outcome.chosen] == max(result.outcome.scores.values())
    if rate > 1:
        assert result.outcome.chosen == "one-shot"
        assert "note: training did not help" in result.report()


def test_the_file_is_filled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 3))
    x = torch.randn(64, 40)
    train = [(x, (x[:, 0] > 0).long())] * 10
    result = ac.compress(model, train=train, val=train[:1], target="2KB", epochs=1, recipe=RECIPE, progress=False)
    assert 0.995 * 2000 <= result.file_bytes <= 2000


@pytest.mark.any_file
def test_without_validation_data_a_part_of_the_training_data_decides(trained) -> None:
    x, y = zip(*small_task.batches(200, 1), strict=True)
    examples = torch.utils.data.TensorDataset(torch.cat(x), torch.cat(y))
    loader = torch.utils.data.DataLoader(examples, batch_size=20, shuffle=True)
    result = compressed(trained, train=loader, val=None, epochs=1)
    assert result.outcome.judged_by == "the loss on 10 examples kept from training"
    assert result.validation_accuracy is None
    assert result.to_json()["outcome"]["judged_by"] == result.outcome.judged_by


@pytest.mark.any_file
def test_in_a_loop_of_ones_own_nothing_decides_and_that_is_said(trained) -> None:
    from autocompress.network.live_network import copy_network

    model = copy_network(trained)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compressor = ac.Compressor(model, optimizer, target="1500B", total_steps=5)
    batches = list(small_task.batches(200, 1))
    for number in range(5):
        x, y = batches[number % len(batches)]
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        compressor.step()
        optimizer.zero_grad()
    result = compressor.finish()
    assert result.outcome.notes == [
        "no data decided between this network and others: give val= (in Lightning monitor=) or evaluate="
    ]


def test_a_regressor_without_a_loss_learns_the_given_networks_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 1))
    train = [(x[i : i + 64], torch.zeros(64, 1)) for i in range(0, 448, 64)]  # targets that say nothing
    val = [(x[448:], torch.zeros(64, 1))]
    result = ac.compress(model, train=train, val=val, target="240B", epochs=60, recipe=RECIPE, progress=False)
    once = ac.compress(model, train=train, val=val, target="240B", epochs=0, recipe=RECIPE, progress=False)
    with torch.no_grad():
        aim = model(x[448:])
        trained, untrained = (float(output_distance(each.model(x[448:]), aim)) for each in (result, once))
    assert trained < 0.5 * untrained
    assert trained < 0.2 * float(aim.var())
    assert result.outcome.chosen != "one-shot"


@pytest.mark.any_file
def test_one_output_for_every_input_is_said() -> None:
    """No layer is all zeros, and yet nothing of the input comes through."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = small_task.batches(40, 1).inputs, small_task.batches(40, 1).targets
    compressor = ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.0), target="80%", total_steps=1)
    nn.functional.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # what a step too large does
    compressor.step()
    outcome = compressor.finish(train=[(x, y)]).outcome
    assert outcome.zero_layers == ()
    assert outcome.constant
    assert "the network gives the same output for every example of a batch: try a larger target" in outcome.notes
    same = ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.0), target="80%", total_steps=0)
    assert not same.finish(train=[(x, y)]).outcome.constant  # as it was given


@pytest.mark.parametrize(
    ("outcome", "notes"),
    [
        (Outcome("trained", "the loss"), []),
        (Outcome("trained", "the loss", zero_layers=("a", "b"), layers=2), ["every compressed weight is zero"]),
        (Outcome("trained", "the loss", zero_layers=("a",), layers=2), ["every weight is zero in a"]),
        (Outcome("trained", "the promise", promise_kept=False), ["the promise was not kept"]),
        (Outcome("trained", "the loss", constant=True, layers=2), ["the network gives the same output for every"]),
        (Outcome("trained", "the loss", constant=True, zero_layers=("a",), layers=1), ["every compressed weight"]),
        (Outcome("trained", "the loss", skipped_steps=3), ["3 steps of fine-tuning were skipped"]),
        (Outcome("trained", "the loss", greedy=True), ["bits were shared out by the greedy rule"]),
        (Outcome("one-shot", "the loss", {"trained": 0.0, "one-shot": 1.0}), ["training did not help"]),
        (Outcome("one-shot"), []),
        (
            Outcome("trained", "evaluate=", {"trained": math.nan, "one-shot": math.nan}),
            ["no score by evaluate= is"],
        ),
        (Outcome("trained", "evaluate=", {"trained": 0.5, "one-shot": math.nan}), []),
        (Outcome("trained", "the loss", steps=3, total_steps=5), ["finish() came after 3 of 5 steps"]),
        (Outcome("one-shot", promise_kept=True, steps=5, total_steps=5), ["training led to no smaller file"]),
        (Outcome("one-shot", promise_kept=True), []),
    ],
)
def test_what_is_said(outcome, notes) -> None:
    assert len(outcome.notes) == len(notes)
    assert all(found.startswith(note) for found, note in zip(outcome.notes, notes, strict=True))
    assert json.loads(json.dumps(outcome.to_json()))["notes"] == outcome.notes


def test_scores_that_are_no_numbers_are_none_in_json() -> None:
    assert Outcome("trained", "x", {"trained": float("nan")}).to_json()["scores"] == {"trained": None}


@pytest.mark.any_file
def test_a_loop_of_ones_own_has_its_scores() -> None:
    task = small_task.make_task()
    model = small_task.train_reference(task)
    known = evaluate(model, task.validation)

    def finished(**given):
        network = copy.deepcopy(model)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        compressor = ac.Compressor(network, optimizer, target="900B", total_steps=10)
        for inputs, labels in task.train:
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            compressor.step()
            optimizer.zero_grad()
        return compressor.finish(**given)

    result = finished(val=task.validation)
    assert result.reference_accuracy == pytest.approx(known.metric)
    assert result.validation_accuracy == pytest.approx(evaluate(result.model, task.validation).metric)
    assert (result.metric, result.reference_split, result.device) == ("accuracy", "validation", "cpu")
    assert result.wall_seconds > 0
    assert f"validation accuracy  {100 * result.validation_accuracy:.2f} %, reference" in result.report()
    scored = finished(evaluate=lambda network: -evaluate(network, task.validation).loss)
    assert scored.reference_accuracy == pytest.approx(-known.loss)
    assert scored.validation_accuracy == pytest.approx(max(scored.outcome.scores.values()))
    assert "validation score of evaluate=" in scored.report()
    told = finished(evaluate=lambda network: -evaluate(network, task.validation).loss, judged_by="val_loss")
    assert "validation score by val_loss" in told.report()
    unknown = finished()
    assert unknown.validation_accuracy is None
    assert "accuracy" not in unknown.report()
