"""The Ray searches: the contract, what they write down, and what each of the three does beyond it."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from fake_objective import FakeObjective
from ray.exceptions import RayActorError
from searcher_contract import SearcherContract, evaluations_in
from test_baselines_end_to_end import check_search
from test_baselines_end_to_end import here as here  # a fixture

from autocompress.errors import InvalidInputError
from baselines.interface import Evaluation, Parameter, Report, SearchSettings, Values, go_on
from baselines.ray_search import RayAsha, RayOptuna, RayPbt
from baselines.ray_search.callback import MAX_LOSSES, Recorder
from baselines.ray_search.cluster import connected, quiet
from baselines.ray_search.folder_lock import owned
from baselines.ray_search.population import Mutation
from baselines.ray_search.records import History, SearchFolder


@pytest.fixture(scope="module")
def one_ray():
    """One Ray for many tests: a search uses what is there, and leaves it running."""
    with quiet(), connected(SearchSettings(1, workers=2)):
        yield
        assert ray.is_initialized()


class RayContract(SearcherContract):
    trials = 3

    @pytest.fixture(autouse=True)
    def _one_ray(self, one_ray):
        pass

    def storage(self, folder: Path) -> str:
        return str(folder / "search")


@pytest.mark.slow  # it shares all but the scheduler with the next one
class TestRayOptuna(RayContract):
    @pytest.fixture
    def searcher(self):
        return RayOptuna()


@pytest.mark.slow
class TestRayAsha(RayContract):
    trials = 4  # the best of three is all that may go on

    @pytest.fixture
    def searcher(self):
        return RayAsha()

    def test_what_is_stopped_keeps_what_it_cost(self, searcher):
        trials = self.search(searcher, FakeObjective(epochs=6), trials=6).trials
        assert {trial.state for trial in trials} == {"complete", "stopped"}
        for trial in trials:
            assert (len(trial.curve) == 6) == (trial.state == "complete")
            assert len(trial.curve) in (1, 3, 6)  # the rungs
            assert trial.gradient_steps == trial.curve[-1][0]
            assert trial.accuracy == trial.curve[-1][1]

    def test_rungs_are_known_after_a_resume(self, searcher, tmp_path):
        """The one trial that is left is as bad as they come: it is stopped, because of what the others did before."""
        objective, storage = FakeObjective(), self.storage(tmp_path)
        first = self.search(searcher, objective, storage=storage)
        events = tmp_path / "search" / "trials.jsonl"
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        bad = {"event": "start", "number": 3, "values": {"a.keep_fraction": 0.001, "a.bits": 1}}
        kept = [json.dumps(line) for line in lines if line["number"] != 3] + [json.dumps(bad)]
        events.write_text("\n".join(kept) + "\n")
        second = self.search(searcher, objective, storage=storage, resume=True)
        assert second.trials[:3] == first.trials[:3]
        assert second.trials[3].values == bad["values"]
        assert (second.trials[3].state, second.trials[3].attempts) == ("stopped", 2)
        assert len(second.trials[3].curve) == 1


@pytest.mark.slow
class TestRayPbt(RayContract):
    """Each trial is evaluated in turns, so with several calls of the objective."""

    @pytest.fixture
    def searcher(self):
        return RayPbt()

    def test_n_trials_come_out_in_final_states(self, searcher, tmp_path):
        log = tmp_path / "log"
        trials = self.search(searcher, FakeObjective(log=str(log)), trials=4).trials
        assert [trial.number for trial in trials] == [0, 1, 2, 3]
        assert all(trial.state == "complete" and trial.attempts == 1 and trial.node for trial in trials)
        assert evaluations_in(log) > 4
        assert ray.is_initialized()

    def test_what_fails_is_tried_again_then_recorded(self, searcher, tmp_path):
        """It goes on from its last checkpoint, where the first epoch is done."""
        log = tmp_path / "log"
        trials = self.search(searcher, FakeObjective(fails_at=2, log=str(log)), trials=1, retries=1).trials
        assert [(trial.state, trial.attempts, trial.gradient_steps) for trial in trials] == [("failed", 2, 10)]
        assert "failed on purpose in epoch 2" in trials[0].error
        assert evaluations_in(log) == 2

    def test_resume_runs_only_what_is_missing(self, searcher, tmp_path):
        log, storage = tmp_path / "log", self.storage(tmp_path)
        objective = FakeObjective(log=str(log))
        first = self.search(searcher, objective, storage=storage)
        before = evaluations_in(log)
        again = self.search(searcher, objective, storage=storage, resume=True)
        assert evaluations_in(log) == before
        assert again == first


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
class TestPopulation:
    def test_the_worst_go_on_from_the_best_with_new_values(self, tmp_path):
        log = tmp_path / "log"
        objective = FakeObjective(epochs=4, log=str(log))
        trials = RayPbt().search(objective, SearchSettings(4, workers=2, progress=False)).trials
        drawn = Mutation(objective.space.parameters, seed=0)
        begun_with = [dict(objective.space.start), *(drawn.draw() for _ in range(3))]
        mutated = [trial for trial in trials if trial.values != begun_with[trial.number]]
        assert mutated
        for trial in trials:
            # The plan that came out is that of the last values, and no epoch trained is forgotten.
            assert trial.plan["a"]["keep_fraction"] == trial.values["a.keep_fraction"]
            assert trial.gradient_steps == 10 * len(trial.curve)
        evaluations = [line.split("start ")[1] for line in log.read_text().splitlines() if " start " in line]
        assert {str(sorted(trial.values.items())) for trial in mutated} <= set(evaluations)


@pytest.mark.usefixtures("one_ray", "here")
def test_the_command_writes_a_file_within_the_target(capsys):
    check_search(capsys, "ray-asha")


@dataclass(frozen=True)
class FailsOnce(FakeObjective):
    """Fails at its first epoch, where no file tells that it has before; refuses all where `refuses` is set."""

    marker: str = ""
    refuses: bool = False

    def __call__(self, values: Values, report: Report = go_on, state=None) -> Evaluation:
        if self.refuses:
            raise InvalidInputError("the weights do not fit")
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            raise RuntimeError("lost the device")
        return super().__call__(values, report, state)


@pytest.mark.usefixtures("one_ray")
class TestRunning:
    def test_a_trial_that_failed_once_is_complete(self, tmp_path, capfd):
        before = signal.getsignal(signal.SIGINT)
        outcome = RayOptuna().search(FailsOnce(marker=str(tmp_path / "failed")), SearchSettings(1, progress=False))
        (trial,) = outcome.trials
        assert (trial.state, trial.attempts, trial.error, trial.gradient_steps) == ("complete", 2, None, 30)
        assert capfd.readouterr() == ("", "")
        assert signal.getsignal(signal.SIGINT) is before  # the handler of Ctrl-C comes back

    @pytest.mark.slow
    def test_what_is_refused_by_the_objective_is_an_error(self):
        with pytest.raises(InvalidInputError, match="the weights do not fit"):
            RayOptuna().search(FailsOnce(refuses=True), SearchSettings(1, retries=0, progress=False))

    def test_too_large_a_trial_is_refused(self):
        with pytest.raises(InvalidInputError, match="cpus_per_trial"):
            RayOptuna().search(FakeObjective(), SearchSettings(1, cpus_per_trial=99, progress=False))


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"storage": "sqlite:///search.db"}, "storage 'sqlite:///search.db' is a URL"),
            ({"storage": __file__}, "is a file"),
            ({"resume": True}, "resume needs a storage"),
            ({"cpus_per_trial": -1.0}, "cpus_per_trial"),
            ({"gpus_per_trial": 99.0}, "gpus_per_trial is 99"),
            ({"gpus_per_trial": 1.5}, "whole number"),
            ({"connect_seconds": 0.0}, "connect_seconds"),
            ({"ray_address": "nonsense"}, "HOST:PORT"),
            ({"ray_address": "ray://127.0.0.1:10001"}, "HOST:PORT"),
            ({"ray_address": "127.0.0.1:1"}, "no Ray cluster at ray_address '127.0.0.1:1'"),
            ({"ray_address": "127.0.0.1:²"}, "it must be 'auto' or HOST:PORT"),
        ],
    )
    def test_is_refused_within_seconds(self, change, message):
        begun = time.monotonic()
        with pytest.raises(InvalidInputError, match=message):
            RayAsha().check(replace(SearchSettings(4), **change))
        assert time.monotonic() - begun < 5

    def test_what_listens_but_is_no_cluster_is_refused(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            with pytest.raises(InvalidInputError, match="does not answer"):
                RayAsha().check(SearchSettings(4, ray_address=address, connect_seconds=1.0))


class TestRecords:
    identity = {"method": "ray-asha", "seed": 1}  # noqa: RUF012

    def report(self, part: str, epoch: int, steps: int, from_scratch: bool = True) -> dict:
        costs = {"gradient_steps": steps, "device_seconds": 0.5 * steps, "accuracy": epoch / 10}
        place = {"values": {"x": 1.0}, "node": "n", "evaluation": None}
        return (
            {"event": "report", "number": 0, "part": part, "epoch": epoch, "from_scratch": from_scratch} | costs | place
        )

    def test_costs_of_all_parts_count(self):
        history = History(0)
        for event in [
            {"event": "start", "values": {"x": 1.0}},
            self.report("first", 1, 10),
            {"event": "failure", "error": "lost"},
            {"event": "start", "values": {"x": 1.0}},
            self.report("again", 1, 10),
            self.report("again", 2, 20),
            self.report("after a pause", 3, 10, from_scratch=False),
            {"event": "end", "state": "stopped"},
        ]:
            history.add(event)
        trial = history.trial()
        assert (trial.gradient_steps, trial.device_seconds, trial.attempts) == (40, 20.0, 2)
        assert trial.curve == ((10, 0.1), (20, 0.2), (30, 0.3))
        assert (trial.state, trial.accuracy, trial.error) == ("stopped", 0.3, None)

    def test_a_torn_line_is_left_out(self, tmp_path):
        folder = SearchFolder(tmp_path)
        folder.open(self.identity, resume=False)
        folder.append({"event": "start", "number": 0, "values": {"x": 1.0}})
        with (tmp_path / "trials.jsonl").open("a") as file:
            file.write('{"event": "end", "numb')
        folder.open(self.identity, resume=True)
        folder.append({"event": "start", "number": 1, "values": {"x": 2.0}})
        assert [history.values["x"] for history in folder.histories().values()] == [1.0, 2.0]

    def test_another_search_is_refused(self, tmp_path):
        folder = SearchFolder(tmp_path)
        folder.open(self.identity, resume=False)
        folder.append({"event": "start", "number": 0, "values": {}})
        with pytest.raises(InvalidInputError, match="its seed is 1, not 2"):
            folder.open(self.identity | {"seed": 2}, resume=True)


class TestMutation:
    parameters = (
        Parameter("keep", 0.001, 1.0, log=True),
        Parameter("bits", 1, 6, integer=True),
        Parameter("price", -2.0, 2.0),
        Parameter("size", 1, 256, log=True, integer=True),
    )

    def test_stays_in_range_and_changes_every_integer(self):
        mutate = Mutation(self.parameters, seed=0, redraw=0.0)
        values = mutate.draw()
        for _ in range(200):
            before, values = values, mutate({"proposal": {"number": 3, "values": values}})["proposal"]["values"]
            for parameter in self.parameters:
                value = values[parameter.name]
                assert parameter.low <= value <= parameter.high
                assert isinstance(value, int) == parameter.integer
            assert abs(values["bits"] - before["bits"]) <= 1
            assert abs(math.log10(values["keep"] / before["keep"])) <= 0.3 + 1e-9

    def test_draws_evenly_in_the_logarithm(self):
        draw = Mutation(self.parameters, seed=0).draw
        below = sum(draw()["keep"] < 0.03162 for _ in range(1000))
        assert below == pytest.approx(500, abs=60)


def test_two_drivers_on_one_folder_are_refused(tmp_path):
    settings = SearchSettings(1, storage=str(tmp_path), progress=False)
    with owned(tmp_path), pytest.raises(InvalidInputError, match=rf"process {os.getpid()} on .* runs this search"):
        RayOptuna().search(FakeObjective(), settings)
    with owned(tmp_path):  # it is given back
        pass


def test_the_private_names_that_are_used_are_there():
    """They may go with any new version of Ray, which is why pyproject.toml bounds it."""
    from ray._private.services import find_gcs_addresses
    from ray._raylet import Config, GcsClient

    assert callable(find_gcs_addresses)
    assert callable(Config.initialize)
    assert callable(GcsClient)
    assert callable(ray._private.worker.print_to_stdstream)


def test_a_lost_process_is_no_failure_but_not_for_ever(tmp_path):
    recorder = Recorder(SearchFolder(tmp_path), {}, 0, lambda trial: None)
    pickled = tmp_path / "error.pkl"
    pickled.write_bytes(ray.cloudpickle.dumps(RayActorError()))
    config = {"proposal": {"number": 0, "values": {}}}
    trial = SimpleNamespace(trial_id="x", error_file=None, config=config, pickled_error_file=str(pickled))
    for _ in range(MAX_LOSSES):
        recorder.on_trial_error(0, [], trial)
    history = SearchFolder(tmp_path).histories()[0]
    assert (history.failures, history.losses, history.state) == (0, MAX_LOSSES, None)
    recorder.on_trial_error(0, [], trial)
    assert SearchFolder(tmp_path).histories()[0].state == "failed"


def test_a_trial_whose_actor_is_lost_before_it_starts_keeps_its_proposal(tmp_path):
    """Ray Tune may tell of the failure without ever having told of the start."""
    folder = SearchFolder(tmp_path)
    recorder = Recorder(folder, {}, 2, lambda trial: None)
    values = {"a.keep_fraction": 0.25}
    trial = SimpleNamespace(trial_id="x", error_file=None, config={"proposal": {"number": 3, "values": values}})
    trial.pickled_error_file = None

    recorder.on_trial_error(0, [], trial)

    history = folder.histories()[3]
    assert (history.values, history.attempts, history.failures, history.state) == (values, 1, 1, None)
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_recover(0, [], trial)
    history = folder.histories()[3]
    assert (history.attempts, history.failures) == (2, 2)
