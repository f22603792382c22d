"""Condensa's search: the contract of all searchers, the level found in ten samples, the command as a user runs it."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fake_objective import FakeObjective
from searcher_contract import SearcherContract
from small_task import RECIPE, make_model, make_task, train_reference

from autocompress.codec.file import load
from autocompress.errors import InvalidInputError
from autocompress.network.selection import original_bytes
from autocompress.training.evaluation import evaluate
from baselines.cli import main
from baselines.condensa.final import train_density
from baselines.condensa.goal import FitSize, KeepAccuracy
from baselines.condensa.objective import CondensaObjective
from baselines.condensa.proposals import Sample, bracket, ils_ucb, predict, propose
from baselines.condensa.sampler import to_density, to_sparsity
from baselines.condensa.searcher import CondensaSearcher
from baselines.condensa.space import CondensaSpace
from baselines.interface import Report, SearchSettings, Values, go_on

pytestmark = pytest.mark.any_file

SETTINGS = SearchSettings(10, progress=False)


@dataclass(frozen=True)
class FakeDensities(FakeObjective):
    """The fake objective with one density, of which 0.0316 is the least that keeps the level of 0.865."""

    space: CondensaSpace = field(default_factory=lambda: CondensaSpace(KeepAccuracy(0.865)))

    def __call__(self, values: Values, report: Report = go_on, state=None):
        return super().__call__({"a.keep_fraction": min(values["density"], 0.1), "a.bits": 4}, report, state)


class TestContract(SearcherContract):
    trials = 4

    @pytest.fixture
    def searcher(self):
        return CondensaSearcher()

    def objective(self, **changes):
        return FakeDensities(**changes)

    def test_best_is_the_best(self, searcher):
        """Here that is the smallest of those that keep the level."""
        outcome = self.search(searcher, self.objective(), trials=8)
        kept = [trial for trial in outcome.trials if trial.accuracy >= 0.865]
        assert 0 < len(kept) < 8
        assert outcome.best.size == min(trial.size for trial in kept)
        assert outcome.best.values["density"] == pytest.approx(10**-1.5, rel=0.08)


def sampled(goal, accuracy_of, size_of, trials=10):
    """Returns the samples of a search on two functions of s."""
    samples, s = [], 0.5
    for _ in range(trials):
        accuracy, size = accuracy_of(s), size_of(s)
        samples.append(Sample(s, goal.margin(accuracy, size), goal.worth(accuracy, size)))
        s = propose(goal, samples, trials)
    return samples


def size_of(s):
    return int(1e5 * 1000**-s) + 400


@pytest.mark.parametrize(("cliff", "width"), [(0.3, 0.02), (0.6, 0.06), (0.85, 0.03)])
def test_the_level_of_accuracy_is_found_in_ten_samples(cliff, width):
    def accuracy_of(s):
        return 0.99 - 0.89 / (1 + math.exp(-(s - cliff) / width))

    goal = KeepAccuracy(accuracy_of(0) - 0.005)
    level = max(s for s in np.linspace(0, 1, 2001) if accuracy_of(s) >= goal.accuracy)
    found = max(sample.s for sample in sampled(goal, accuracy_of, size_of) if sample.margin >= 0)
    assert level - 0.04 < found <= level  # a third more weights at most, of a range of a thousand


def test_the_level_of_size_is_found_and_the_accuracy_is_highest_there():
    goal = FitSize(4000)
    samples = sampled(goal, lambda s: 0.99 - 0.3 * s**4, size_of)
    best = max((sample for sample in samples if sample.margin >= 0), key=lambda sample: sample.worth)
    level = min(s for s in np.linspace(0, 1, 2001) if size_of(s) <= 4000)
    assert level <= best.s < level + 0.02


def test_the_bracket_lies_between_what_keeps_and_what_does_not():
    samples = [Sample(0.2, 0.1, 0), Sample(0.5, 0.01, 0), Sample(0.4, -0.01, 0), Sample(0.8, -1, 0), Sample(0.7, -1, 0)]
    assert bracket(KeepAccuracy(0.9), samples) == (0.5, 0.7)  # 0.4 is noise: a sparser one keeps the level
    mirrored = [replace(sample, s=1 - sample.s) for sample in samples]
    assert bracket(FitSize(10), mirrored) == pytest.approx((0.3, 0.5))
    assert bracket(KeepAccuracy(0.9), [Sample(0.5, -1, 0)]) == (0.0, 0.5)
    assert bracket(KeepAccuracy(0.9), [Sample(0.5, 1, 0)]) == (0.5, 1.0)


def test_the_acquisition_is_high_at_the_level_and_where_little_is_known():
    values = ils_ucb(np.array([0.0, 0.01, -0.01, 0.0]), np.array([0.01, 0.01, 0.01, 0.05]))
    assert values[0] > values[1] == values[2]
    assert values[3] > values[0]


def test_the_process_goes_through_its_samples():
    at = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0])
    mean, deviation = predict(at, np.sin(3 * at), np.array([0.3, 0.4, 0.7]))
    assert mean == pytest.approx(np.sin([0.9, 1.2, 2.1]), abs=0.05)
    assert deviation[0] < deviation[1] < deviation[2]


def test_no_point_is_proposed_twice_not_even_while_it_runs():
    goal, samples = KeepAccuracy(0.9), [Sample(0.5, 0.01, -1.0)]
    running: list[float] = []
    for _ in range(4):
        s = propose(goal, samples, 10, running)
        assert min(abs(s - other) for other in [0.5, *running]) > 0.001
        running.append(s)
    assert propose(goal, [], 10) == propose(goal, [], 10, []) != propose(goal, [], 10, [propose(goal, [], 10)])


@pytest.mark.parametrize("density", [1.0, 0.03, 0.001])
def test_sparsity_is_the_logarithm_of_the_density(density):
    assert to_density(to_sparsity(density)) == pytest.approx(density)
    assert 0 <= to_sparsity(density) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"trials": 11}, "at most 10"), ({"ray_address": "127.0.0.1:9"}, "does not use Ray")],
)
def test_settings_it_cannot_use(change, message):
    with pytest.raises(InvalidInputError, match=message):
        CondensaSearcher().check(replace(SETTINGS, **change))


def test_it_says_so_where_nothing_keeps_the_level(caplog):
    objective = FakeDensities(space=CondensaSpace(KeepAccuracy(0.999)))
    outcome = CondensaSearcher().search(objective, replace(SETTINGS, trials=3))
    assert "none of 3 trials keeps the target" in caplog.text
    assert outcome.best.accuracy == max(trial.accuracy for trial in outcome.trials)


TASK = ["small_task:make_model", "--data", "small_task:loaders", "--out", "net.safetensors"]
SHORT = ["--trials", "4", "--trial-epochs", "2", "--final-epochs", "3", "--no-progress", "--json"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("autocompress.task.recipe_for", lambda *_: RECIPE)
    return tmp_path


@pytest.mark.parametrize("target", ["drop:4", "500B"])
def test_the_command_writes_the_file_and_its_record(target, here, capsys):
    status = main(["search", "condensa", *TASK, *SHORT, "--target", target])
    written = capsys.readouterr()
    assert status == 0, written.err
    answer = json.loads(written.out)
    net = load(Path("net.safetensors"), into=make_model())
    assert Path("net.safetensors").stat().st_size == answer["file_bytes"]
    assert evaluate(net, make_task().test).metric == answer["test_accuracy"]
    assert evaluate(net, make_task().validation).metric == answer["validation_accuracy"]
    assert (answer["method"], answer["space"], answer["target"]) == ("condensa", "condensa", target)
    assert answer["gradient_steps"] == 3 * 10
    assert answer["search_gradient_steps"] == 4 * 2 * 10 == sum(t["gradient_steps"] for t in answer["trials"])
    best = answer["trials"][answer["best_trial"]]
    assert answer["density"] == best["values"]["density"]
    if target == "500B":
        assert answer["target_kept"]
        assert answer["file_bytes"] <= 500
        assert best["accuracy"] == max(t["accuracy"] for t in answer["trials"] if t["size"] <= 500)
    records = json.loads(Path("net.search.json").read_text())
    assert [trial["state"] for trial in records["trials"]] == ["complete"] * 4


@pytest.mark.parametrize(
    ("target", "message"),
    [("weights:60x", "condensa cannot search"), ("60B", "smallest file"), ("drop:no", "is given in points")],
)
def test_what_cannot_be_asked_is_found_out_before_training(target, message, here, capsys):
    assert main(["search", "condensa", *TASK, *SHORT, "--target", target]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "data").exists()


def test_the_search_meets_the_accuracy_target_within_ten_samples():
    task = make_task()
    model = train_reference(task)
    objective = CondensaObjective(task, model, target="drop:2", epochs=1, device="cpu")
    outcome = CondensaSearcher().search(objective, replace(SETTINGS, trials=6))
    best = outcome.best
    assert len(outcome.trials) <= 10
    assert outcome.keeps(best)
    assert best.accuracy >= evaluate(model, task.validation).metric - 0.02 - 1e-9
    assert best.values["density"] < 0.5
    result = train_density(task, model, best.values, target="drop:2", epochs=2, device="cpu", progress=False)
    assert result.gradient_steps == 2 * len(list(task.train))
    assert result.extra["target_kept"]
    assert result.file_bytes < 0.5 * original_bytes(model)
