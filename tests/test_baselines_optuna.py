"""The Optuna searchers: the contract of all searchers, and what only they promise."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_objective import FakeObjective, FakeSpace
from processes import Script
from searcher_contract import SearcherContract, evaluations_in

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from baselines.interface import (
    Evaluation,
    Objective,
    Parameter,
    Progress,
    Report,
    Searcher,
    SearchOutcome,
    SearchSettings,
    Values,
    go_on,
)
from baselines.optuna_search import OptunaSearcher
from baselines.optuna_search.samplers import MIN_TRIALS, SAMPLERS, cmaes_sampler, distributions, grid, quiet_optuna
from baselines.optuna_search.storage import database_url

ROOT = Path(__file__).parent.parent
SAMPLING = ["random", "optuna-tpe", "optuna-cmaes", "optuna-gp", "optuna-nsga2"]
GRID = FakeSpace("bits", (Parameter("a.bits", 1, 6, integer=True),), {"a.bits": 3})
SETTINGS = SearchSettings(6, progress=False)


@dataclass(frozen=True)
class GridObjective(FakeObjective):
    """The fake objective with one number to be chosen."""

    space: FakeSpace = field(default_factory=lambda: GRID)

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        return super().__call__({"a.keep_fraction": 0.1, **values}, report, state)


@dataclass(frozen=True)
class Interrupted(FakeObjective):
    """Calls `how` after the second epoch of one evaluation, the first that makes the file `once`."""

    once: str = ""
    how: Callable[[], None] = lambda: None

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        def report_or_end(progress: Progress) -> bool:
            stop = report(progress)
            if progress.epoch == 2:
                with suppress(FileExistsError):
                    Path(self.once).touch(exist_ok=False)
                    self.how()
            return stop

        return super().__call__(values, report_or_end, state)


def interrupt() -> None:
    raise KeyboardInterrupt


def infeasible() -> None:
    raise InfeasibleTargetError("too small", smallest=840)


def die() -> None:
    os._exit(9)


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder}/search.db"


def without_seconds(outcome: SearchOutcome) -> list[dict[str, Any]]:
    return [replace(trial, device_seconds=0.0).to_json() for trial in outcome.trials]


# Of the interface, which is the same whatever draws the values: once.
@pytest.mark.parametrize(
    "name",
    ["optuna-tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLING if name != "optuna-tpe")],
)
class TestSamplers(SearcherContract):
    @pytest.fixture
    def searcher(self, name: str) -> Searcher:
        self.trials = max(6, MIN_TRIALS.get(name, 1))
        return OptunaSearcher(name)

    def search(self, searcher: Searcher, objective: Objective, **changes: Any) -> SearchOutcome:
        """Asks for few trials of an evolution, too, which only the check refuses."""
        if changes.get("trials", self.trials) >= self.trials:
            return super().search(searcher, objective, **changes)
        return searcher.search(objective, SearchSettings(**({"trials": self.trials, "progress": False} | changes)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "magnitude"])
class TestExhaustive(SearcherContract):
    @pytest.fixture
    def searcher(self, name: str) -> Searcher:
        return OptunaSearcher(name)

    def objective(self, **changes: Any) -> GridObjective:
        return GridObjective(**changes)


@pytest.mark.slow
class TestTwoWorkers(SearcherContract):
    deterministic = False
    trials = 4
    settings = {"workers": 2}  # noqa: RUF012

    @pytest.fixture
    def searcher(self) -> Searcher:
        return OptunaSearcher("random")


@pytest.mark.parametrize("name", ["random", "optuna-cmaes", "optuna-gp", "optuna-nsga2"])
def test_every_sampler_begins_at_the_start_and_stays_in_its_ranges(name: str) -> None:
    objective = FakeObjective()
    settings = replace(SETTINGS, trials=max(6, MIN_TRIALS.get(name, 1)))
    trials = OptunaSearcher(name).search(objective, settings).trials
    assert trials[0].values == pytest.approx(objective.space.start)
    assert len({trial.values["a.keep_fraction"] for trial in trials}) > 3
    for trial in trials:
        for parameter in objective.space.parameters:
            assert parameter.low <= trial.values[parameter.name] <= parameter.high


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_stop_and_their_trials_cost_what_they_took(pruner: str) -> None:
    outcome = OptunaSearcher("random", pruner).search(FakeObjective(epochs=9), replace(SETTINGS, trials=16))
    stopped = [trial for trial in outcome.trials if trial.state == "stopped"]
    assert stopped
    assert all(10 <= trial.gradient_steps == 10 * len(trial.curve) < 90 and trial.size == 0 for trial in stopped)


def test_space_is_enumerated_and_ends_the_search(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = OptunaSearcher("uniform").search(GridObjective(log=str(log)), replace(SETTINGS, trials=50))
    assert [trial.values["a.bits"] for trial in outcome.trials] == [3, 2, 4, 1, 5, 6]
    assert evaluations_in(log) == 6


def test_space_of_fractions_cannot_be_enumerated() -> None:
    with pytest.raises(ValueError, match="not all of its numbers are whole"):
        grid(FakeSpace())


@pytest.mark.parametrize("name", ["optuna-cmaes", "optuna-nsga2"])
def test_an_evolution_without_generations_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"trials is 19, but .* needs at least 20, five generations"):
        OptunaSearcher(name).check(replace(SETTINGS, trials=19))
    OptunaSearcher(name).check(replace(SETTINGS, trials=20))


def test_all_starts_are_evaluated_first() -> None:
    points = ({"a.keep_fraction": 0.03, "a.bits": 3}, {"a.keep_fraction": 0.5, "a.bits": 1})

    class Space(FakeSpace):
        starts = points

    outcome = OptunaSearcher("optuna-tpe").search(FakeObjective(space=Space()), SETTINGS)
    assert [trial.values for trial in outcome.trials[:2]] == list(points)
    assert outcome.trials[2].values not in points


def test_front_of_two_objectives() -> None:
    outcome = OptunaSearcher("optuna-nsga2").search(FakeObjective(), replace(SETTINGS, trials=24))
    front = outcome.front
    assert len(front) > 1
    assert [trial.size for trial in front] == sorted(trial.size for trial in front)
    assert all(trial.state == "complete" for trial in outcome.trials)


@pytest.mark.parametrize("name", ["optuna-cmaes", "optuna-nsga2"])
def test_evolution_has_several_generations(name: str, tmp_path: Path) -> None:
    """It would be random search if a whole search were one generation of it."""
    settings = replace(SETTINGS, trials=20, storage=sqlite(tmp_path))
    OptunaSearcher(name).search(FakeObjective(), settings)
    study = optuna.load_study(study_name=None, storage=settings.storage)  # type: ignore[arg-type]
    found = [value for trial in study.trials for key, value in trial.system_attrs.items() if key.endswith("generation")]
    assert max(found) >= 3


@pytest.mark.parametrize(
    ("name", "pruner"),
    [
        ("optuna-tpe", "hyperband"),
        ("optuna-cmaes", "median"),
        ("uniform", None),
        *(
            pytest.param(name, None, marks=pytest.mark.slow)
            for name in ("random", "optuna-tpe", "optuna-cmaes", "optuna-gp", "optuna-nsga2")
        ),
    ],
)
def test_resumed_search_equals_an_uninterrupted_one(name: str, pruner: str | None, tmp_path: Path) -> None:
    """Interrupted in the middle of two of its trials, the second time without a chance to say so."""
    kind = GridObjective if name == "uniform" else FakeObjective
    trials = 6 if name == "uniform" else 16
    settings = replace(SETTINGS, trials=trials, storage=sqlite(tmp_path), seed=5)
    searcher = OptunaSearcher(name, pruner)
    whole = searcher.search(kind(), replace(settings, storage=None))

    class Fragile(kind):  # type: ignore[misc, valid-type]
        def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
            calls.append(values)

            def report_or_end(progress: Progress) -> bool:
                if len(calls) in (4, 11):
                    raise KeyboardInterrupt
                return report(progress)

            return super().__call__(values, report_or_end, state)

    calls: list[Values] = []
    first = searcher.search(Fragile(), settings)
    assert first.interrupted
    assert len(first.trials) == 3
    resumed = replace(settings, resume=True)
    outcome = searcher.search(Fragile(), resumed)
    if outcome.interrupted:
        outcome = searcher.search(Fragile(), resumed)
    assert not outcome.interrupted
    assert outcome.trials[3].attempts == 2
    same = [replace(trial, attempts=1) for trial in outcome.trials]
    assert without_seconds(SearchOutcome(tuple(same))) == without_seconds(whole)


def test_kill_between_record_and_end_is_told_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, storage=sqlite(tmp_path))
    searcher, objective = OptunaSearcher("random"), FakeObjective(log=str(tmp_path / "log"))
    with monkeypatch.context() as patch:
        patch.setattr("baselines.optuna_search.trials.tell", lambda *_: interrupt())
        assert searcher.search(objective, settings).interrupted
    outcome = searcher.search(objective, replace(settings, resume=True))
    assert [trial.number for trial in outcome.trials] == list(range(6))
    assert evaluations_in(tmp_path / "log") == 6
    study = optuna.load_study(study_name=None, storage=settings.storage)  # type: ignore[arg-type]
    assert all(trial.state.is_finished() for trial in study.trials)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_infeasible_target_is_not_tried_again(workers: int, tmp_path: Path) -> None:
    objective = Interrupted(once=str(tmp_path / "once"), how=infeasible)
    with pytest.raises(InfeasibleTargetError, match="too small") as caught:
        OptunaSearcher("random").search(objective, replace(SETTINGS, workers=workers))
    assert caught.value.smallest == 840


def test_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    objective = Interrupted(once=str(tmp_path / "once"), how=die)
    outcome = OptunaSearcher("random", "none").search(objective, replace(SETTINGS, workers=2, trials=4))
    assert [trial.number for trial in outcome.trials] == [0, 1, 2, 3]
    assert {trial.state for trial in outcome.trials} == {"complete"}
    assert sorted(trial.attempts for trial in outcome.trials) == [1, 1, 1, 2]
    # Two epochs were reported before it died, three afterwards.
    assert max(trial.gradient_steps for trial in outcome.trials) == 50


def test_objective_that_cannot_be_sent_to_a_worker() -> None:
    objective = Interrupted(how=lambda: None)
    with pytest.raises(InvalidInputError, match="use 1 worker"):
        OptunaSearcher("random").search(objective, replace(SETTINGS, workers=2))


def test_accuracy_that_is_no_number_is_a_failure() -> None:
    class Diverging(FakeObjective):
        def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
            return replace(super().__call__(values, report, state), accuracy=float("nan"))

    outcome = OptunaSearcher("random").search(Diverging(), replace(SETTINGS, trials=2))
    assert [trial.state for trial in outcome.trials] == ["failed", "failed"]
    assert outcome.trials[0].error == "the accuracy is nan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"objective": FakeObjective(epochs=5)}, "objective epochs is 3 there, 5 here"),
        ({"searcher": OptunaSearcher("optuna-tpe")}, "method is 'random' there, 'optuna-tpe' here"),
        ({"searcher": OptunaSearcher("random", "none")}, "pruner is 'median' there, 'none' here"),
    ],
)
def test_another_search_is_not_resumed(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, storage=sqlite(tmp_path), trials=1)
    OptunaSearcher("random").search(FakeObjective(), settings)
    searcher = change.pop("searcher", OptunaSearcher("random"))
    objective = change.pop("objective", FakeObjective())
    with pytest.raises(InvalidInputError, match=message):
        searcher.search(objective, replace(settings, resume=True, **change))


def test_two_searches_share_a_storage(tmp_path: Path) -> None:
    settings = replace(SETTINGS, storage=sqlite(tmp_path))
    for seed in (0, 1):
        assert len(OptunaSearcher("random").search(FakeObjective(), replace(settings, seed=seed)).trials) == 6


def test_more_trials_may_be_asked_of_a_resumed_search(tmp_path: Path) -> None:
    settings = replace(SETTINGS, storage=f"journal:{tmp_path}/search.log")
    first = OptunaSearcher("optuna-tpe").search(FakeObjective(), settings)
    more = OptunaSearcher("optuna-tpe").search(FakeObjective(), replace(settings, trials=9, resume=True))
    assert [trial.number for trial in more.trials] == list(range(9))
    assert more.trials[:6] == first.trials


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("search.db", "sqlite:///search.db"),
        ("nosuch://host/name", "cannot be used"),
        ("sqlite:////nosuch/folder/search.db", "cannot be used"),
        ("journal:/nosuch/folder/search.log", "cannot be used"),
        ("redis://host", "cannot be used"),
        ("postgresql://127.0.0.1:9/name", "127.0.0.1:9 does not answer"),
    ],
)
def test_storage_that_cannot_be_used(storage: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        OptunaSearcher("random").check(replace(SETTINGS, storage=storage))
    assert storage in str(caught.value)


def test_check_makes_no_file(tmp_path: Path) -> None:
    for storage in (sqlite(tmp_path), f"journal:{tmp_path}/search.log"):
        OptunaSearcher("random").check(replace(SETTINGS, storage=storage))
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("something else" * 100)
    with pytest.raises(InvalidInputError, match="cannot be used"):
        OptunaSearcher("random").check(replace(SETTINGS, storage=sqlite(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ray_address": "auto"}, "ray_address"), ({"resume": True}, "storage"), ({"connect_seconds": 0}, "connect")],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        OptunaSearcher("random").check(replace(SETTINGS, **change))


@pytest.mark.parametrize(
    ("name", "pruner", "message"),
    [
        ("optuna-tpee", None, "method 'optuna-tpee' is not one of"),
        ("random", "medain", "did you mean 'median'"),
        ("optuna-nsga2", "median", "two objectives"),
    ],
)
def test_names_that_cannot_be_used(name: str, pruner: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        OptunaSearcher(name, pruner)


def test_optuna_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("optuna-tpe", "optuna-cmaes", "optuna-nsga2"):
            OptunaSearcher(name).search(FakeObjective(), replace(SETTINGS, trials=8, progress=True))
    assert optuna.logging.get_verbosity() == before
    assert "optuna" not in capfd.readouterr().err


def test_a_line_per_trial_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="baselines"):
        OptunaSearcher("random").search(FakeObjective(fails_at=2), replace(SETTINGS, trials=2, retries=0))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0].split(":")[0] for line in lines] == ["trial 0 failed", "trial 1 failed"]
    assert "failed on purpose in epoch 2" in lines[0]


def test_storage_is_what_others_read(tmp_path: Path) -> None:
    """The dashboard and Optuna's own tools find one trial of theirs for each of ours, with its epochs."""
    settings = replace(SETTINGS, storage=sqlite(tmp_path))
    outcome = OptunaSearcher("optuna-tpe").search(FakeObjective(), settings)
    study = optuna.load_study(study_name=None, storage=settings.storage)  # type: ignore[arg-type]
    assert study.user_attrs["search"]["identity"]["objective task"] == "fake"
    assert outcome.best is not None
    assert study.best_trial.number == outcome.best.number
    for frozen, trial in zip(study.trials, outcome.trials, strict=True):
        assert list(frozen.intermediate_values.values()) == [accuracy for _, accuracy in trial.curve]


SEARCH = """
import json, sys
from fake_objective import FakeObjective
from baselines.interface import SearchSettings
from baselines.optuna_search import OptunaSearcher
from baselines.optuna_search.samplers import cmaes_sampler, distributions
from baselines.optuna_search.storage import database_url

if __name__ == "__main__":
    log, storage, workers, stays_after, resume, name = sys.argv[1:]
    settings = SearchSettings(8, storage=storage or None, workers=int(workers), resume=bool(resume), progress=False)
    outcome = OptunaSearcher(name).search(FakeObjective(log=log, stays_after=int(stays_after)), settings)
    print(json.dumps({"interrupted": outcome.interrupted, "trials": [t.to_json() for t in outcome.trials]}))
"""


def start(
    log: Path, storage: str, *, workers: int = 1, stays_after: int = 0, resume: bool = False, name: str = "random"
) -> Script:
    return Script(SEARCH, str(log), storage, str(workers), str(stays_after), "resume" if resume else "", name)


def wait_until_staying(log: Path, workers: int) -> None:
    """Returns once every worker is in an evaluation that stays, and what ended before is in the storage."""
    while not log.exists() or log.read_text().count(" stay ") < workers:
        time.sleep(0.02)


def processes_in(log: Path) -> set[int]:
    return {int(line.split()[0]) for line in log.read_text().splitlines()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_same_in_a_fresh_process(tmp_path: Path) -> None:
    here = OptunaSearcher("optuna-tpe").search(FakeObjective(), replace(SETTINGS, trials=8))
    out, _ = start(tmp_path / "log", "", name="optuna-tpe").communicate()
    assert [trial["values"] for trial in json.loads(out)["trials"]] == [trial.values for trial in here.trials]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_search_is_resumed(workers: int, tmp_path: Path) -> None:
    """kill -9: what was finished is not run again, what was running is, and no worker lives on."""
    log = tmp_path / "log"
    process = start(log, sqlite(tmp_path), workers=workers, stays_after=4)
    wait_until_staying(log, workers)
    process.kill()
    process.wait()
    while any(alive(pid) for pid in processes_in(log)):
        time.sleep(0.05)
    before = evaluations_in(log)
    out, _ = start(log, sqlite(tmp_path), resume=True).communicate()
    trials = json.loads(out)["trials"]
    assert [trial["number"] for trial in trials] == list(range(8))
    again = sum(trial["attempts"] - 1 for trial in trials)
    assert again == workers
    assert evaluations_in(log) == 8 + again > before
    for trial in trials:
        # An attempt that was killed costs at most what it had reported.
        assert (
            10 * len(trial["curve"])
            <= trial["gradient_steps"]
            <= 10 * len(trial["curve"]) + 30 * (trial["attempts"] - 1)
        )


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_leaves_what_is_finished(workers: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(log, sqlite(tmp_path), workers=workers, stays_after=4)
    wait_until_staying(log, workers)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    outcome = json.loads(out)
    assert outcome["interrupted"]
    assert 4 <= len(outcome["trials"]) <= 3 + workers
    assert not any(alive(pid) for pid in processes_in(log))
    out, _ = start(log, sqlite(tmp_path), resume=True).communicate()
    resumed = json.loads(out)
    assert not resumed["interrupted"]
    finished = {trial["number"]: trial for trial in outcome["trials"]}
    assert len(resumed["trials"]) == 8
    assert all(trial == finished.get(trial["number"], trial) for trial in resumed["trials"])
    assert evaluations_in(log) == 8 + workers


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "condensa"])
def test_one_parameter_is_enough(name: str) -> None:
    assert len(OptunaSearcher(name).search(GridObjective(), SETTINGS).trials) == 6


class _Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_cmaes_takes_nothing_but_its_own_state_out_of_a_storage(tmp_path: Path) -> None:
    space = FakeSpace()
    with quiet_optuna():
        sampler = cmaes_sampler(0, 40, space)
    study = optuna.create_study(sampler=sampler)
    ranges = distributions(space)
    for number in range(14):
        trial = study.ask(ranges)
        study.tell(trial, float(number))
    assert sampler._restore_optimizer(study.trials).generation > 0
    stranger = optuna.trial.create_trial(value=1.0, params=study.trials[-1].params, distributions=ranges)
    stranger.system_attrs[f"{sampler._attr_key_optimizer}:0"] = pickle.dumps(_Runs(tmp_path / "ran")).hex()
    with pytest.raises(InvalidInputError, match=r"holds no state of CMA-ES in trial .*touch is no part of it"):
        sampler._restore_optimizer([stranger])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["a?b", "a%20b", "a b#c", "ä@b:c"])
def test_a_search_lies_in_the_folder_that_was_named(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "net.search.db"
    OptunaSearcher("random").search(FakeObjective(), replace(SETTINGS, trials=2, storage=database_url(path)))
    assert path.stat().st_size > 0
    assert [each.name for each in tmp_path.iterdir()] == [folder]
