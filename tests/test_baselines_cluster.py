"""The Ray searches on a real cluster of three nodes on the loopback address, and after their driver is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_objective
import pytest
import ray
from fake_objective import FakeObjective
from ray.cluster_utils import Cluster
from searcher_contract import evaluations_in

from baselines.interface import SearchSettings
from baselines.ray_search import RayAsha, RayOptuna, RayPbt
from baselines.ray_search.records import SearchFolder

TRIALS = 10
SECONDS_PER_EPOCH = 0.3
DRIVER = """
import sys
from fake_objective import FakeObjective
from baselines.interface import SearchSettings
from baselines import ray_search

method, log, storage, stays_after = sys.argv[1:]
objective = FakeObjective(log=log, stays_after=int(stays_after))
settings = SearchSettings({trials}, workers=2, storage=storage, progress=False)
outcome = getattr(ray_search, method)().search(objective, settings)
print(len(outcome.trials), outcome.interrupted)
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two workers with one each, all separate raylets."""
    ray.cloudpickle.register_pickle_by_value(fake_objective)  # the cluster does not know the folder of the tests
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(fake_objective)


def wait_until(done: Callable[[], bool]) -> None:
    """Returns once `done` says so; fails after ten minutes."""
    deadline = time.monotonic() + 600
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_search_outlives_the_loss_of_a_node(cluster: Cluster, tmp_path: Path, capfd: Any) -> None:
    # A lost node is no failure of the trial: without any retry, too, it is started again.
    settings = SearchSettings(6, workers=2, ray_address=cluster.address, retries=0, progress=False)
    workers = {node.node_id for node in cluster.worker_nodes}
    log = tmp_path / "log"

    killed: list[str] = []

    def kill_a_node() -> None:
        # The one that has begun the latest evaluation, so that there is one to lose.
        wait_until(lambda: evaluations_in(log) >= 3)
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
        latest = [line for line in log.read_text().splitlines() if " start " in line][-1]
        stat = Path(f"/proc/{latest.split()[0]}/stat").read_text()
        node = raylets[int(stat.rpartition(")")[2].split()[1])]  # the parent of the worker
        killed.append(node.node_id)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    objective = FakeObjective(seconds_per_epoch=SECONDS_PER_EPOCH, log=str(log))
    outcome = RayOptuna().search(objective, settings)
    killer.join()

    assert [trial.number for trial in outcome.trials] == list(range(6))
    assert {trial.state for trial in outcome.trials} == {"complete"}
    assert {trial.node for trial in outcome.trials} - set(killed) == workers - set(killed)
    assert {trial.node for trial in outcome.trials} <= workers
    assert 1 <= sum(trial.attempts - 1 for trial in outcome.trials) <= 2
    # An actor may be lost after Ray Tune has started its trial and before the evaluation begins.
    assert evaluations_in(log) <= sum(trial.attempts for trial in outcome.trials)
    undisturbed = FakeObjective()
    assert all(trial.accuracy == undisturbed(trial.values).accuracy for trial in outcome.trials)
    assert outcome.best.accuracy == max(trial.accuracy for trial in outcome.trials)
    assert "Raylet is terminated" not in capfd.readouterr().out


@pytest.mark.slow
def test_trial_of_a_lost_node_goes_on_from_its_last_epoch(cluster: Cluster, tmp_path: Path) -> None:
    storage = tmp_path / "search"
    killed = []

    def kill_a_node() -> None:
        wait_until(lambda: bool(kept()))
        number = kept()[0]
        node = next(event["node"] for event in events() if event["number"] == number and event["event"] == "report")
        killed.append(number)
        (worker,) = (worker for worker in cluster.worker_nodes if worker.node_id == node)
        cluster.remove_node(worker, allow_graceful=False)

    def events() -> list[dict[str, Any]]:
        path = storage / "trials.jsonl"
        return (
            [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]
            if path.exists()
            else []
        )

    def kept() -> list[int]:
        over = {event["number"] for event in events() if event["event"] == "end"}
        return [event["number"] for event in events() if event["event"] == "checkpoint" and event["number"] not in over]

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    settings = SearchSettings(
        3, workers=2, ray_address=cluster.address, storage=str(storage), retries=0, progress=False
    )
    objective = FakeObjective(epochs=8, seconds_per_epoch=SECONDS_PER_EPOCH)
    outcome = RayAsha(grace_epochs=8, checkpoint_seconds=0.0).search(objective, settings)
    killer.join()
    trial = outcome.trials[killed[0]]
    assert (trial.state, trial.attempts, trial.error) == ("complete", 2, None)
    assert [accuracy for _, accuracy in trial.curve] == sorted(accuracy for _, accuracy in trial.curve)
    assert len(trial.curve) == 8
    assert trial.gradient_steps < 8 * 10 + 8 * 10  # not from the start
    assert any(e["event"] == "report" and not e["from_scratch"] for e in events() if e["number"] == killed[0])
    assert not list(storage.glob("ray/**/state.pt"))  # what has ended needs none


HEAD_DIES = """
import sys
from baselines.ray_search import cluster, head_watch
head_watch.LOOK_SECONDS = head_watch.LEAVE_SECONDS = 0.5
from autocompress.errors import AutocompressError
from fake_objective import FakeObjective
from baselines.interface import SearchSettings
from baselines.ray_search import RayOptuna
import fake_objective, ray
ray.cloudpickle.register_pickle_by_value(fake_objective)
address, storage = sys.argv[1:]
settings = SearchSettings(30, workers=2, ray_address=address, storage=storage, progress=False)
try:
    RayOptuna().search(FakeObjective(seconds_per_epoch=0.2), settings)
except AutocompressError as error:
    print(error, file=sys.stderr, flush=True)
    import os
    os._exit(1)
"""


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    tests = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_when_the_head_dies_we_say_what_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    storage = tmp_path / "search"
    driver = run_python(HEAD_DIES, cluster.address, str(storage))
    try:
        wait_until(lambda: len(ended_in(storage)) >= 2)
        cluster.head_node.all_processes["gcs_server"][0].process.kill()
        _, err = driver.communicate()
    finally:
        driver.kill()
    assert driver.returncode == 1
    assert "does not answer any more" in err
    assert "program will terminate" not in err  # Ray's own end, after a minute
    ended = ended_in(storage)
    assert f"the {len(ended)} of 30 trials that had ended are kept in {str(storage)!r}" in err
    assert "by resuming" in err
    assert "Traceback" not in err
    cluster.shutdown()
    settings = SearchSettings(len(ended) + 1, workers=2, storage=str(storage), resume=True, progress=False)
    assert len(RayOptuna().search(FakeObjective(), settings).trials) == len(ended) + 1


TOKEN_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""
JOIN = """
import sys
from fake_objective import FakeObjective
import fake_objective, ray
from autocompress.errors import InvalidInputError
from baselines.interface import SearchSettings
from baselines.ray_search import RayOptuna
ray.cloudpickle.register_pickle_by_value(fake_objective)
settings = SearchSettings(2, ray_address=sys.argv[1], connect_seconds=20, progress=False)
try:
    print(len(RayOptuna().search(FakeObjective(), settings).trials), "trials")
except InvalidInputError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray 2.60 does by itself wherever a Ray has been started before, which leaves a token in the home folder."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    token, other = tmp_path / "token", tmp_path / "other"
    token.write_text("a" * 40)
    other.write_text("b" * 40)
    clean = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": ""}
    head = subprocess.Popen(
        [sys.executable, "-c", TOKEN_CLUSTER],
        env=os.environ | clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = head.stdout.readline().strip()
        for environment, said in [
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}, "2 trials"),
            ({"RAY_AUTH_TOKEN_PATH": str(token)}, "2 trials"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(other)}, "asks for a token"),
            ({"RAY_AUTH_MODE": "token"}, "asks for a token"),
            ({}, "asks for a token"),
        ]:
            driver = run_python(JOIN, address, **clean, **environment)
            out, err = driver.communicate()
            assert said in out, (environment, out, err)
    finally:
        head.communicate("\n")


@pytest.mark.slow
def test_population_outlives_the_loss_of_a_node(cluster: Cluster, tmp_path: Path) -> None:
    log, storage = tmp_path / "log", tmp_path / "search"
    settings = SearchSettings(
        6, workers=2, ray_address=cluster.address, storage=str(storage), progress=False, connect_seconds=20
    )

    def kill_a_node() -> None:
        wait_until(lambda: evaluations_in(log) >= 6)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    outcome = RayPbt().search(FakeObjective(seconds_per_epoch=SECONDS_PER_EPOCH, log=str(log)), settings)
    killer.join()
    assert [(trial.number, trial.state) for trial in outcome.trials] == [(number, "complete") for number in range(6)]
    assert sum(trial.attempts - 1 for trial in outcome.trials) >= 1


def start_driver(method: str, log: Path, storage: Path, stays_after: int) -> subprocess.Popen[str]:
    """Returns a search that runs in a process, and a process group, of its own."""
    tests = Path(__file__).parent
    code = DRIVER.format(trials=TRIALS)
    path = os.pathsep.join([str(tests.parent), str(tests)])
    return subprocess.Popen(
        [sys.executable, "-c", code, method, str(log), str(storage), str(stays_after)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended_in(storage: Path) -> set[int]:
    """Returns the numbers of the trials whose end is on disk."""
    histories = SearchFolder(storage).histories().values()
    return {history.number for history in histories if history.state is not None}


def starts_in(log: Path) -> Counter[str]:
    """Returns how often each proposal was begun."""
    return Counter(line.split(" start ")[1] for line in log.read_text().splitlines() if " start " in line)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", [RayAsha(), RayOptuna()], ids=["asha", "optuna"])
def test_finished_trials_are_not_run_again_after_a_kill(searcher: RayAsha | RayOptuna, tmp_path: Path) -> None:
    log, storage = tmp_path / "log", tmp_path / "search"
    driver = start_driver(type(searcher).__name__, log, storage, stays_after=4)
    try:
        wait_until(lambda: len(ended_in(storage)) >= 4)
    finally:
        driver.kill()
        driver.communicate()
    ended = ended_in(storage)
    assert 4 <= len(ended) < TRIALS
    records = {number: SearchFolder(storage).histories()[number].trial() for number in ended}

    objective = FakeObjective(log=str(log))
    settings = SearchSettings(TRIALS, workers=2, storage=str(storage), resume=True, progress=False)
    outcome = searcher.search(objective, settings)
    assert [trial.number for trial in outcome.trials] == list(range(TRIALS))
    assert all(outcome.trials[number] == record for number, record in records.items())
    starts = starts_in(log)
    for trial in outcome.trials:
        assert 1 <= starts[str(sorted(trial.values.items()))] <= (1 if trial.number in ended else 2)
    assert sum(starts.values()) <= TRIALS + 2  # what two workers had begun
    assert sum(trial.attempts for trial in outcome.trials) == sum(starts.values())


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_finished_and_the_rest_for_later(tmp_path: Path) -> None:
    log, storage = tmp_path / "log", tmp_path / "search"
    driver = start_driver("RayOptuna", log, storage, stays_after=3)
    try:
        wait_until(lambda: len(ended_in(storage)) >= 3)
        os.killpg(driver.pid, signal.SIGINT)
        out, err = driver.communicate()
    finally:
        driver.kill()
    ended = ended_in(storage)
    assert out == f"{len(ended)} True\n"
    assert "Traceback" not in err
    assert 3 <= len(ended) < TRIALS
    settings = SearchSettings(TRIALS, workers=2, storage=str(storage), resume=True, progress=False)
    outcome = RayOptuna().search(FakeObjective(log=str(log)), settings)
    assert len(outcome.trials) == TRIALS
    assert not outcome.interrupted
    assert max(starts_in(log).values()) <= 2
