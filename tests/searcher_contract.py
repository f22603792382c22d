"""What every searcher must do, whatever proposes its trials: inherit and give a `searcher` fixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_objective import FakeObjective

from autocompress.errors import InvalidInputError
from baselines.interface import Objective, Searcher, SearchOutcome, SearchSettings


def evaluations_in(log: Path) -> int:
    """Returns how many evaluations a fake objective has begun."""
    return sum(" start " in line for line in log.read_text().splitlines()) if log.exists() else 0


class SearcherContract:
    """The tests; `trials` proposals each.

    Attributes:
        trials: proposals of a search, few where each costs seconds.
        deterministic: the same seed gives the same values.
        settings: changes to the settings of every search, such as a cluster's address.
    """

    trials = 6
    deterministic = True
    settings: dict[str, Any] = {}  # noqa: RUF012

    def objective(self, **changes: Any) -> Objective:
        """Returns the objective that is searched."""
        return FakeObjective(**changes)

    def storage(self, folder: Path) -> str:
        """Returns a place in `folder` for a search, as `SearchSettings.storage` names it."""
        return f"sqlite:///{folder}/search.db"

    def search(self, searcher: Searcher, objective: Objective, **changes: Any) -> SearchOutcome:
        """Returns the outcome of a small search, after its check."""
        settings = replace(SearchSettings(self.trials, progress=False), **(self.settings | changes))
        searcher.check(settings)
        return searcher.search(objective, settings)

    def test_n_trials_come_out_in_final_states(self, searcher: Searcher, tmp_path: Path) -> None:
        log = tmp_path / "log"
        outcome = self.search(searcher, self.objective(log=str(log)))
        assert [trial.number for trial in outcome.trials] == list(range(self.trials))
        assert {trial.state for trial in outcome.trials} <= {"complete", "stopped"}
        assert all(trial.attempts == 1 and trial.node and trial.error is None for trial in outcome.trials)
        assert all(trial.plan for trial in outcome.trials if trial.state == "complete")
        assert evaluations_in(log) == self.trials
        assert not outcome.interrupted

    def test_values_are_in_their_ranges(self, searcher: Searcher) -> None:
        objective = self.objective()
        for trial in self.search(searcher, objective).trials:
            assert set(trial.values) == {parameter.name for parameter in objective.space.parameters}
            for parameter in objective.space.parameters:
                value = trial.values[parameter.name]
                assert parameter.low <= value <= parameter.high
                assert not parameter.integer or value == int(value)

    def test_start_is_evaluated_first(self, searcher: Searcher) -> None:
        objective = self.objective()
        assert self.search(searcher, objective).trials[0].values == pytest.approx(dict(objective.space.start))

    def test_best_is_the_best(self, searcher: Searcher) -> None:
        outcome = self.search(searcher, self.objective())
        best = outcome.best
        assert best is not None
        assert best.accuracy == max(trial.accuracy or 0.0 for trial in outcome.trials if trial.state == "complete")
        assert best.accuracy == best.curve[-1][1]

    def test_costs_are_what_was_spent(self, searcher: Searcher) -> None:
        outcome = self.search(searcher, self.objective(seconds_per_epoch=0.01))
        for trial in outcome.trials:
            assert trial.gradient_steps == 10 * len(trial.curve) > 0
            assert trial.device_seconds >= 0.01 * len(trial.curve)
            assert (trial.size == 0) == (trial.state == "stopped")
        assert outcome.gradient_steps == sum(10 * len(trial.curve) for trial in outcome.trials)

    def test_what_fails_is_tried_again_then_recorded(self, searcher: Searcher, tmp_path: Path) -> None:
        log = tmp_path / "log"
        outcome = self.search(searcher, self.objective(fails_at=2, log=str(log)), trials=2, retries=1)
        assert [trial.number for trial in outcome.trials] == [0, 1]
        for trial in outcome.trials:
            assert (trial.state, trial.attempts) == ("failed", 2)
            assert "failed on purpose in epoch 2" in (trial.error or "")
            assert trial.gradient_steps == 20  # the first epoch of both attempts
        assert evaluations_in(log) == 4
        assert outcome.best is None

    def test_same_seed_same_values(self, searcher: Searcher) -> None:
        if not self.deterministic:
            pytest.skip("the order in which its trials end decides what it proposes")
        first, second = (self.search(searcher, self.objective(), seed=3) for _ in range(2))
        assert [trial.values for trial in first.trials] == [trial.values for trial in second.trials]
        assert [trial.state for trial in first.trials] == [trial.state for trial in second.trials]

    def test_resume_runs_only_what_is_missing(self, searcher: Searcher, tmp_path: Path) -> None:
        log, storage = tmp_path / "log", self.storage(tmp_path)
        objective = self.objective(log=str(log))
        first = self.search(searcher, objective, storage=storage)
        again = self.search(searcher, objective, storage=storage, resume=True)
        assert evaluations_in(log) == self.trials
        assert [trial.to_json() for trial in again.trials] == [trial.to_json() for trial in first.trials]

    def test_storage_in_use_needs_resume(self, searcher: Searcher, tmp_path: Path) -> None:
        storage = self.storage(tmp_path)
        self.search(searcher, self.objective(), storage=storage, trials=1)
        with pytest.raises(InvalidInputError, match="resume"):
            self.search(searcher, self.objective(), storage=storage, trials=1)

    def test_steps_are_never_more_than_announced(self, searcher: Searcher) -> None:
        objective = self.objective(steps_per_epoch=10)
        outcome = self.search(searcher, objective, max_gradient_steps=75)
        whole = [trial for trial in outcome.trials if trial.state == "complete"]
        assert outcome.gradient_steps <= 75
        assert 1 <= len(whole) <= len(outcome.trials)
        assert outcome.gradient_steps > 75 - 2 * 30 or len(outcome.trials) == self.trials

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"trials": 0}, "trials"),
            ({"trials": -3}, "trials"),
            ({"workers": 0}, "workers"),
            ({"retries": -1}, "retries"),
            ({"max_gradient_steps": 0}, "max_gradient_steps"),
            ({"max_seconds": -1.0}, "max_seconds"),
        ],
    )
    def test_impossible_settings_are_refused(self, searcher: Searcher, change: dict[str, int], message: str) -> None:
        settings = replace(SearchSettings(self.trials, progress=False), **(self.settings | change))
        with pytest.raises(InvalidInputError, match=message):
            searcher.check(settings)
