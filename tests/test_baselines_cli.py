"""The command line of the baselines, with a task, an objective and a final training that train nothing."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_objective import FakeObjective
from processes import Script
from torch import nn

import baselines.search_command
import baselines.systems
from autocompress.errors import InvalidInputError
from baselines.cli import main
from baselines.interface import Evaluation, Report, Values, go_on
from baselines.methods import METHODS, find_method, find_space

pytestmark = pytest.mark.any_file


@dataclass
class FakeResult:
    """Of a final training."""

    validation: float

    def save(self, path: Path) -> None:
        path.write_bytes(b"x" * 100)

    def report(self) -> str:
        return "SIZE REPORT"

    def to_json(self) -> dict[str, Any]:
        return {
            "target": "4000 bytes",
            "file_bytes": 100,
            "reference_accuracy": 0.99,
            "validation_accuracy": self.validation,
            "test_accuracy": 0.5,
            "gradient_steps": 77,
        }


@dataclass
class Calls:
    """What the command did."""

    objectives: list[dict[str, Any]] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)


def small_network() -> nn.Module:
    return nn.Sequential(OrderedDict(body=nn.Linear(8, 8), head=nn.Linear(8, 10)))


def fake_task() -> Any:
    return SimpleNamespace(recipe=SimpleNamespace(compress_epochs=40), make_model=small_network)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Replaces all that trains."""
    made = Calls()

    def objective(task: Any, model: Any, **choices: Any) -> FakeObjective:
        made.objectives.append(choices)
        return FakeObjective(epochs=choices["epochs"])

    def final(task: Any, model: Any, values: Values, **choices: Any) -> FakeResult:
        made.finals.append(choices | {"values": values})
        choices["checkpoint"].write_text("half trained")
        return FakeResult(0.75)

    monkeypatch.setattr(baselines.search_command, "load_task", lambda *_, **__: fake_task())
    monkeypatch.setattr(baselines.search_command, "starting_network", lambda *_, **__: None)
    monkeypatch.setattr(baselines.systems, "PlanObjective", objective)
    monkeypatch.setattr(baselines.systems, "train_best", final)
    return made


Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Returns a function that returns the words of a search."""

    def words(*more: str, method: str = "random") -> list[str]:
        out = str(tmp_path / "net.safetensors")
        return ["search", method, "lenet5", "--data", "digits", "--target", "4KB", "--out", out, "--trials", "4", *more]

    return words


def test_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(len(line.split()) > 3 for line in lines)


def test_search_says_what_it_found_and_writes_it(
    calls: Calls, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command()) == 0
    out = capsys.readouterr().out
    head, row = (line.split() for line in out.splitlines()[:2])
    assert head[:5] == ["method", "space", "trials", "stopped", "failed"]
    assert row[:5] == ["random", "per-layer", "4", "0", "0"]
    assert row[7] == "160"  # four trials of four epochs of ten steps
    assert "SIZE REPORT" in out
    assert "test accuracy        50.00 %, reference 99.00 %" in out
    assert (tmp_path / "net.safetensors").stat().st_size == 100
    records = json.loads((tmp_path / "net.search.json").read_text())
    assert [trial["number"] for trial in records["trials"]] == [0, 1, 2, 3]
    assert records["plan"] == records["trials"][records["best_trial"]]["plan"]
    assert (records["trial_epochs"], records["final_epochs"], records["interrupted"]) == (4, 40, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "net.search.db", "net.search.json"]


def test_choices_reach_objective_and_final_training(calls: Calls, command: Command) -> None:
    choices = ["--space", "block", "--trial-epochs", "2", "--final-epochs", "9", "--seed", "5", "--ignore", "head.*"]
    assert main(command(*choices)) == 0
    (final,) = calls.finals
    for made in (*calls.objectives, final):
        assert (made["space"], made["seed"], made["ignore"], str(made["target"])) == ("block", 5, ("head.*",), "4KB")
    assert {made["epochs"] for made in calls.objectives} == {2}
    assert final["epochs"] == 9
    assert set(final["values"]) == {"a.keep_fraction", "a.bits"}


def test_json_is_one_object(calls: Calls, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--json", "--trials", "20", method="optuna-nsga2")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["validation_accuracy"] == 0.75
    assert answer["gradient_steps"] == 77
    assert (answer["method"], answer["space"]) == ("optuna-nsga2", "per-layer")
    assert answer["search_gradient_steps"] == sum(trial["gradient_steps"] for trial in answer["trials"]) == 800
    assert answer["search_device_seconds"] > 0
    assert answer["front"]
    assert set(answer["front"][0]) == {"trial", "size", "accuracy"}
    best = answer["trials"][answer["best_trial"]]
    assert best["accuracy"] == max(trial["accuracy"] for trial in answer["trials"])
    assert answer["plan"] == best["plan"]


def test_search_is_resumed_where_it_lies(
    calls: Calls, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command()) == 0
    first = json.loads((tmp_path / "net.search.json").read_text())
    assert main(command()) == 2
    assert "holds a search already" in capsys.readouterr().err
    assert main(command("--resume")) == 0
    assert json.loads((tmp_path / "net.search.json").read_text()) == first
    assert main(command("--resume", "--seed", "1")) == 2
    assert "seed is 0 there, 1 here" in capsys.readouterr().err


def test_ctrl_c_in_the_search_leaves_the_best_so_far(
    calls: Calls,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Values] = []

    class Interrupted(FakeObjective):
        def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
            begun.append(values)
            if len(begun) == 3:
                raise KeyboardInterrupt
            return super().__call__(values, report, state)

    monkeypatch.setattr(baselines.systems, "PlanObjective", lambda *_, **__: Interrupted())
    assert main(command("--json")) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert "interrupted after 2 of 4 trials; the best so far is trial" in said.err
    records = json.loads((tmp_path / "net.search.json").read_text())
    assert records["interrupted"]
    assert len(records["trials"]) == 2
    assert records["plan"]
    assert not calls.finals
    # The command that it names goes on.
    again = shlex.split(said.err.partition("to go on: ")[2])
    assert again[:3] == ["python", "-m", "baselines"]
    assert main(again[3:]) == 0
    assert len(begun) == 5
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 4


def test_ctrl_c_in_the_final_training_keeps_its_checkpoint(
    calls: Calls,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[bool] = []

    def final(*_: Any, checkpoint: Path, **__: Any) -> FakeResult:
        found.append(checkpoint.exists())
        checkpoint.write_text("half trained")
        if len(found) == 1:
            raise KeyboardInterrupt
        return FakeResult(0.75)

    monkeypatch.setattr(baselines.systems, "train_best", final)
    assert main(command()) == 130
    assert "interrupted in the final training" in capsys.readouterr().err
    assert main(command("--resume")) == 0
    assert found == [False, True]
    assert not list(tmp_path.glob("*.checkpoint"))


def test_no_trial_that_came_to_its_end(
    calls: Calls, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.systems, "PlanObjective", lambda *_, **__: FakeObjective(fails_at=1))
    assert main(command()) == 1
    said = capsys.readouterr().err
    assert "none of 4 trials came to its end" in said
    assert "failed on purpose in epoch 1" in said
    assert len(json.loads((tmp_path / "net.search.json").read_text())["trials"]) == 4


def test_target_that_no_plan_reaches_is_found_before_a_reference_is_trained(
    calls: Calls, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    monkeypatch.setattr(baselines.search_command, "starting_network", lambda *_, **__: trained.append(1))
    words = command()
    words[words.index("4KB")] = "10B"
    assert main(words) == 2
    assert "the target is 10 bytes, but the smallest" in capsys.readouterr().err
    assert not trained
    assert not calls.objectives


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", "0"], "trials is 0"),
        (["--workers", "0"], "workers is 0"),
        (["--trial-epochs", "0"], "--trial-epochs is 0"),
        (["--final-epochs", "-1"], "--final-epochs is -1"),
        (["--space", "per-lajer"], "did you mean per-layer?"),
        (["--space", "uniform"], "is not one of per-layer, block, global, price"),
        (["--pruner", "hyper"], "is not one of none, median, hyperband"),
        (["--storage", "nosuch://x"], "nosuch"),
        (["--storage", "postgresql://127.0.0.1:9/x"], "127.0.0.1:9"),
        (["--ray-address", "127.0.0.1:9"], "does not use Ray"),
        (["--target", "4 bananas"], "bananas"),
        (["--out", "net.bin"], "must end in .safetensors"),
    ],
)
def test_bad_input_ends_before_any_work(
    more: list[str], message: str, calls: Calls, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(*more)
    if more[0] == "--target":
        words[words.index("4KB")] = more[1]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not calls.objectives
    assert not list(tmp_path.iterdir())


def test_unknown_method_names_close_ones(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(method="optuna-tpp")) == 2
    assert "did you mean optuna-tpe" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "x", "4294967296"])
def test_seed_must_be_one_for_every_generator(seed: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command("--seed", seed))
    assert caught.value.code == 2
    assert "4294967295" in capsys.readouterr().err


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.methods.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"needs ray and optuna: pip install \"autocompress\[studies\]\""):
        find_method("ray-pbt")


def test_methods_with_a_space_of_their_own() -> None:
    assert find_space("uniform", None) == "uniform"
    assert find_space("optuna-tpe", None) == "per-layer"
    assert find_space("optuna-tpe", "price") == "price"
    with pytest.raises(InvalidInputError, match="which has its own"):
        find_space("magnitude", "global")


@pytest.mark.parametrize("name", METHODS)
def test_searcher_has_the_name_of_its_method(name: str) -> None:
    assert find_method(name).make(None).name == name


def test_ray_takes_no_pruner() -> None:
    with pytest.raises(InvalidInputError, match="stops trials itself"):
        find_method("ray-asha").make("median")


SCRIPT = """
import sys
import test_baselines_cli as fakes
import pytest

if __name__ == "__main__":
    import baselines.search_command as command
    import baselines.systems as systems
    from fake_objective import FakeObjective
    command.load_task = lambda *_, **__: fakes.fake_task()
    command.starting_network = lambda *_, **__: None
    systems.PlanObjective = lambda *_, **__: FakeObjective(log="log", stays_after=2)
    systems.train_best = lambda *_, **__: fakes.FakeResult(0.75)
    sys.exit(fakes.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_exit_status_of_a_process(workers: str, command: Command, tmp_path: Path) -> None:
    process = Script(SCRIPT, *command("--json", "--workers", workers), cwd=tmp_path)
    while not (tmp_path / "log").exists() or (tmp_path / "log").read_text().count(" stay ") < int(workers):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "trial 0 complete" in err
    assert "to go on: python -m baselines search random" in err
    assert json.loads((tmp_path / "net.search.json").read_text())["trials"]
