"""Several processes on one Optuna study: nothing lost, nothing twice, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from fake_objective import FakeObjective
from postgres import postgres_url
from processes import Script

from baselines.interface import SearchSettings
from baselines.optuna_search import OptunaSearcher, ownership, proposals
from baselines.optuna_search.ownership import GRACE_SECONDS, OWNER, Ownership
from baselines.optuna_search.proposals import Proposals
from baselines.optuna_search.storage import close_storage, open_storage
from baselines.optuna_search.trials import LOSSES

TRIALS, PROCESSES = 18, 3
SHARED = """
import json, os, sys, time
from pathlib import Path
from fake_objective import FakeObjective
from baselines.interface import SearchSettings
from baselines.optuna_search import OptunaSearcher

storage, log, processes, stays_after = sys.argv[1:]

Path(f"{{log}}.{{os.getpid()}}.ready").touch()
while len(list(Path(log).parent.glob("*.ready"))) < int(processes):
    time.sleep(0.01)
objective = FakeObjective(log=log, stays_after=int(stays_after), together=int(processes))
settings = SearchSettings({trials}, storage=storage, resume=True, progress=False)
outcome = OptunaSearcher("optuna-tpe").search(objective, settings)
print(json.dumps([trial.to_json() for trial in outcome.trials]))
"""


@pytest.fixture(params=["sqlite", "postgresql", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a place that several processes may share."""
    if request.param == "postgresql":
        with postgres_url() as url:
            yield url
    else:
        yield {"sqlite": f"sqlite:///{tmp_path}/search.db", "journal": f"journal:{tmp_path}/search.log"}[request.param]


def start(storage: str, log: Path, stays_after: int = 0) -> Script:
    return Script(SHARED.format(trials=TRIALS), storage, str(log), str(PROCESSES), str(stays_after))


def stays(log: Path, pid: int) -> bool:
    """Tells whether a process is in an evaluation that does not end."""
    return log.exists() and f"{pid} stay " in log.read_text()


def test_three_processes_share_a_study_and_one_is_killed(storage: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(storage, log, stays_after) for stays_after in (2, 0, 0)]
    killed = processes[0]
    try:
        while not stays(log, killed.pid):
            assert all(process.poll() is None for process in processes), [p.stderr.read_text() for p in processes]
            time.sleep(0.002)
        killed.kill()
        answers = [process.communicate()[0] for process in processes[1:]]
        assert [process.returncode for process in processes[1:]] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    first, second = (json.loads(answer) for answer in answers)
    assert first == second  # whoever is asked
    assert [trial["number"] for trial in first] == list(range(TRIALS))
    assert {trial["state"] for trial in first} <= {"complete", "stopped"}
    lines = log.read_text().splitlines()
    begun = sorted(re.findall(r" start (.*)", "\n".join(lines)))
    assert sorted(set(begun)) == sorted({str(sorted(trial["values"].items())) for trial in first})
    assert len(begun) == TRIALS + 1  # again: the one that the killed process was in the middle of
    assert sum(trial["attempts"] for trial in first) == len(begun)
    assert len({line.split()[0] for line in lines}) == 3
    # What another opens now has nothing left to do.
    settings = SearchSettings(TRIALS, storage=storage, resume=True, progress=False)
    again = OptunaSearcher("optuna-tpe").search(FakeObjective(log=str(log)), settings)
    assert [json.loads(json.dumps(trial.to_json())) for trial in again.trials] == first
    assert log.read_text().splitlines() == lines


def test_an_owner_of_another_machine_is_lost_once_it_has_stood_still() -> None:
    now = [0.0]
    storage = optuna.storages.InMemoryStorage()
    mine = Ownership(storage, clock=lambda: now[0])
    owner = {"token": "theirs", "machine": "another", "pid": os.getpid(), "beat": 0}
    for seconds, beat, lost in [
        (0, 0, False),
        (GRACE_SECONDS - 1, 0, False),
        (GRACE_SECONDS, 1, False),
        (2 * GRACE_SECONDS - 1, 1, False),
        (2 * GRACE_SECONDS, 1, True),
    ]:
        now[0] = seconds
        assert mine.is_lost(0, owner | {"beat": beat}) == lost
    assert mine.close() == []


def test_the_counter_moves_while_a_trial_is_owned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.01)
    study = optuna.create_study()
    storage = study._storage
    trial_id = study.ask()._trial_id
    mine = Ownership(storage)
    mine.take(trial_id)
    while storage.get_trial(trial_id).user_attrs[OWNER]["beat"] < 3:
        time.sleep(0.001)
    assert mine.close() == [trial_id]


def test_what_was_taken_over_counts_once(tmp_path: Path) -> None:
    """A process that stood still for long comes back with the result of a trial that another one has ended."""
    settings = SearchSettings(1, storage=f"sqlite:///{tmp_path}/search.db", progress=False)
    searcher = OptunaSearcher("random")
    others = []

    class Slow(FakeObjective):
        def __call__(self, values, report=None, state=None):
            storage = open_storage(settings.storage, 1.0)
            (study,) = storage.get_all_studies()
            (trial,) = storage.get_all_trials(study._study_id)
            gone = {"token": "gone", "machine": ownership.machine(), "pid": 2**22 + 1, "beat": 0}
            storage.set_trial_user_attr(trial._trial_id, OWNER, gone)  # as if this one had been taken for lost
            close_storage(storage)
            others.extend(searcher.search(FakeObjective(), replace(settings, resume=True)).trials)
            return super().__call__(values, report, state)

    mine = searcher.search(Slow(), settings).trials
    assert len(others) == 1
    assert mine == tuple(others)


class Turns:
    """Two threads that go on one write or read at a time, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.random, self.turns, self.at = random.Random(seed), {}, {}
        self.changed = threading.Condition()

    def wait(self, what: str) -> None:
        """Stands still in a thread until it is its turn; threads that take no turns go on."""
        name = threading.current_thread().name
        if name not in self.at:
            return
        with self.changed:
            self.at[name] = what
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.at[name] == "going on")

    def run(self, works: dict[str, Callable[[], None]]) -> None:
        """Runs the works to their ends."""

        def whole(name: str, work: Callable[[], None]) -> None:
            self.wait("the beginning")
            try:
                work()
            finally:
                with self.changed:
                    self.at[name] = "its end"
                    self.changed.notify_all()

        self.at = dict.fromkeys(works, "going on")
        threads = [threading.Thread(target=whole, name=name, args=(name, work)) for name, work in works.items()]
        for thread in threads:
            thread.start()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: "going on" not in self.at.values())
                ready = [name for name, what in self.at.items() if what not in ("its end", "settling")]
                # Who settles waits for far longer than the other takes to put a trial back.
                ready = ready or [name for name, what in self.at.items() if what == "settling"]
                if not ready:
                    break
                self.at[self.random.choice(ready)] = "going on"
                self.changed.notify_all()
        for thread in threads:
            thread.join()


class InTurns:
    """A storage whose reads and writes of trials wait for their turn."""

    def __init__(self, storage: optuna.storages.BaseStorage, turns: Turns) -> None:
        self.storage, self.turns = storage, turns

    def __getattr__(self, name: str) -> object:
        if name in ("get_trial", "set_trial_user_attr", "set_trial_state_values"):
            self.turns.wait(name)
        return getattr(self.storage, name)


@pytest.mark.parametrize("seed", range(40))
def test_a_lost_trial_that_two_put_back_at_once_is_begun_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, storage = Turns(seed), optuna.storages.InMemoryStorage()
    monkeypatch.setattr(proposals, "time", SimpleNamespace(sleep=lambda seconds: turns.wait("settling")))
    study = optuna.create_study(storage=storage)
    trial_id = study.ask()._trial_id
    gone = {"token": "gone", "machine": ownership.machine(), "pid": 2**22 + 1, "beat": 0}
    storage.set_trial_user_attr(trial_id, OWNER, gone)
    both = {
        name: Proposals("random", study, storage, FakeObjective(), SearchSettings(1, progress=False), 1)
        for name in ("first", "second")
    }
    begun: list[str] = []

    def look(name: str) -> None:
        if both[name].next() is not None:
            begun.append(name)

    for each in both.values():
        each.storage = each.ownership._storage = InTurns(storage, turns)
    turns.run({name: partial(look, name) for name in both})
    if not begun:  # it waits for whoever looks next
        assert storage.get_trial(trial_id).state == optuna.trial.TrialState.WAITING
        look("first")
    assert len(begun) == 1
    trial = storage.get_trial(trial_id)
    assert trial.state == optuna.trial.TrialState.RUNNING
    assert trial.user_attrs[OWNER]["token"] == both[begun[0]].ownership.token
    assert trial.user_attrs[LOSSES] == 1
    for each in both.values():
        each.ownership.close()


def test_a_trial_that_takes_every_process_with_it_is_given_up(tmp_path: Path) -> None:
    code = SHARED.format(trials=2).replace("search(objective,", "search(Deadly(log=log),")
    deadly = """
import os, fake_objective
from baselines.optuna_search import proposals
proposals.MAX_LOSSES = 1  # each loss is a process to be started
class Deadly(fake_objective.FakeObjective):
    def __call__(self, values, report=None, state=None):
        self._note("start", values)
        os._exit(9) if values == self.space.start else None
        return fake_objective.FakeObjective(epochs=3)(values, report)
"""
    codes = []
    while 0 not in codes:
        process = Script(deadly + code, f"sqlite:///{tmp_path}/search.db", str(tmp_path / "log"), "1", "0")
        out, err = process.communicate()
        codes.append(process.returncode)
        assert len(codes) <= 4, err
    first, second = json.loads(out)
    assert first["state"] == "failed"
    assert "2 processes were lost" in first["error"]
    assert second["state"] == "complete"
    assert codes == [9] * 2 + [0]


def test_the_private_names_that_are_used_are_there() -> None:
    """They may go with any new version of Optuna, which is why pyproject.toml bounds it."""
    study = optuna.create_study()
    trial = study.ask()
    assert optuna.Trial(study, study.trials[0]._trial_id).number == trial.number
    assert issubclass(optuna.storages._CachedStorage, optuna.storages.BaseStorage)
    sampler = optuna.samplers.CmaEsSampler
    assert callable(sampler._restore_optimizer)
    assert callable(sampler._concat_optimizer_attrs)
