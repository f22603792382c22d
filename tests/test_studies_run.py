"""The study runner: every cell once, whatever happens to a runner, a cell, or a node."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_cells
import pytest
from fake_cells import HereExecutor, make_record, make_spec
from processes import Script

from baselines.optuna_search.storage import open_storage
from baselines.optuna_search.trials import recorded
from studies.cli import main
from studies.design.cell import Cell, cells_of
from studies.finding import find_study
from studies.records.record import Record
from studies.records.store import Store
from studies.running.conditions import Conditions
from studies.running.kept_search import forget_search
from studies.running.local import LocalExecutor
from studies.running.reference import reference_of
from studies.running.run import run_cells
from studies.running.run_cell import search_cell
from studies.running.status import status

CONDITIONS = Conditions("fake", "abc")
TESTS = Path(__file__).parent
DRIVER = """
import sys
from pathlib import Path
import fake_cells
from studies.design.cell import cells_of
from studies.running.conditions import Conditions
from studies.running.local import LocalExecutor
from studies.running.run import run_cells
from studies.records.store import Store

folder, kind, seeds = sys.argv[1:]
conditions = Conditions("fake", "abc")
if kind == "local":
    executor = LocalExecutor(2, conditions, fake_cells.run)
else:
    executor = fake_cells.HereExecutor(conditions)
print(run_cells(cells_of(fake_cells.make_spec(int(seeds))), Store(Path(folder)), executor))
"""


def start(folder: Path, kind: str = "here", seeds: int = 3, **fake: str) -> Script:
    """Returns a runner in a process, and a process group, of its own; its log is `FOLDER.log`."""
    folder.parent.mkdir(exist_ok=True)
    settings = {"FAKE_LOG": str(log_of(folder))} | {f"FAKE_{name.upper()}": value for name, value in fake.items()}
    return Script(DRIVER, str(folder), kind, str(seeds), **settings)


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def lines_of(folder: Path, what: str) -> list[str]:
    """Returns the cells in the log that something happened to."""
    lines = log_of(folder).read_text().splitlines() if log_of(folder).exists() else []
    return [line.split(" ", 2)[2] for line in lines if line.startswith(what)]


def wait_until(done: Callable[[], bool]) -> None:
    """Returns once `done` says so; fails after ten minutes."""
    deadline = time.monotonic() + 600
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def untimed(records: list[Record]) -> dict[object, dict[str, object]]:
    """Returns the records by cell without what differs from run to run; fails if a cell is there twice."""
    times = {"started", "wall_seconds", "device_seconds", "peak_memory_bytes"}
    found = {record.key: {k: v for k, v in record.to_json().items() if k not in times} for record in records}
    assert len(found) == len(records)
    return found


def expected(cells: list[Cell]) -> dict[object, dict[str, object]]:
    return untimed([make_record(cell, CONDITIONS) for cell in cells])


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs of this process are logged; the folder of the study."""
    folder = tmp_path / "fake"
    monkeypatch.setenv("FAKE_LOG", str(log_of(folder)))
    return folder


def test_every_cell_is_run_once(trace: Path):
    cells, store = cells_of(make_spec()), Store(trace)
    assert run_cells(cells, store, HereExecutor(CONDITIONS)) == 6
    assert untimed(store.read()) == expected(cells)
    assert run_cells(cells, store, HereExecutor(CONDITIONS)) == 0
    more = cells_of(make_spec(4, methods=["random", "compressor", "magnitude"]))
    assert run_cells(more, store, HereExecutor(CONDITIONS)) == 6
    assert untimed(store.read()) == expected(more)
    assert len(lines_of(trace, "start")) == len(set(lines_of(trace, "start"))) == 12


def test_what_a_cell_prints_is_kept_with_its_search_and_goes_with_it(tmp_path: Path, monkeypatch) -> None:
    """Nobody would remove it from a temporary folder after a kill."""
    logs: list[Path] = []
    monkeypatch.setattr(
        "studies.running.local.CellProcess.start", lambda function, cell, conditions, log: logs.append(log)
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    cell = cells_of(make_spec())[0]
    executor = LocalExecutor(1, replace(CONDITIONS, storage=str(tmp_path / "searches")), lambda *_: None)
    executor.start(cell)
    logs[0].write_text("printed")
    assert logs[0].parent.parent == tmp_path / "searches"
    executor.recorded(cell)
    assert not logs[0].exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list((tmp_path / "temporary").iterdir())


def test_a_changed_cell_is_run_again(trace: Path):
    store = Store(trace)
    run_cells(cells_of(make_spec()), store, HereExecutor(CONDITIONS))
    changed = cells_of(make_spec(trial_epochs=1))
    assert run_cells(changed, store, HereExecutor(CONDITIONS)) == 3
    assert {cell.name for cell in changed if store.stamp(cell)} == {"compressor", "magnitude"}
    assert "3 records are of cells that this study does not ask for" in status(changed, trace)


def test_failures_are_recorded_and_tried_again_only_if_asked(
    trace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    cells, store = cells_of(make_spec()), Store(trace)
    monkeypatch.setenv("FAKE_RAISES", "1")
    assert run_cells(cells, store, HereExecutor(CONDITIONS)) == 6
    assert "lenet5-digits, magnitude, 4KB, seed 1 failed: failed on purpose with seed 1" in caplog.text
    table = status(cells, trace)
    assert "compressor         2         1         0         0" in table
    assert "  lenet5-digits, compressor, 4KB, seed 1: failed on purpose with seed 1" in table
    monkeypatch.delenv("FAKE_RAISES")
    assert run_cells(cells, store, HereExecutor(CONDITIONS)) == 0
    assert run_cells(cells, store, HereExecutor(CONDITIONS), retry_failed=True) == 2
    assert untimed([record for record in store.read() if record.state == "finished"]) == expected(cells)
    assert run_cells(cells, store, HereExecutor(CONDITIONS), retry_failed=True) == 0
    assert "failed:" not in status(cells, trace)


def test_lines_of_progress(trace: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "studies.running.progress")
    run_cells(cells_of(make_spec(1)), Store(trace), HereExecutor(CONDITIONS))
    lines = [record.getMessage() for record in caplog.records if record.name == "studies.running.progress"]
    assert lines[0].startswith("1 of 2 cells done, 0 failed, ")
    assert lines[1].startswith("2 of 2 cells done, 0 failed, 0 s left: lenet5-digits, magnitude, 4KB, seed 0: test ")


def test_two_runners_share_a_study(tmp_path: Path):
    folder = tmp_path / "fake"
    runners = [start(folder, seconds="0.3") for _ in range(2)]
    done = [int(runner.communicate()[0]) for runner in runners]
    cells = cells_of(make_spec())
    assert sum(done) == len(cells)
    assert min(done) > 0
    assert Counter(lines_of(folder, "start")) == dict.fromkeys((f"{c.name} {c.seed}" for c in cells), 1)
    assert untimed(Store(folder).read()) == expected(cells)


def test_a_runner_takes_over_what_a_killed_one_held(tmp_path: Path):
    folder = tmp_path / "fake"
    held = start(folder, seconds="1000")
    wait_until(lambda: len(lines_of(folder, "start")) == 1)
    cells = cells_of(make_spec())
    assert "all                0         0         2         4" in status(cells, folder)
    other = start(folder, seconds="0")
    wait_until(lambda: len(Store(folder).read()) == 4)
    time.sleep(0.3)
    assert other.poll() is None
    held.kill()
    assert int(other.communicate()[0]) == 6
    held.communicate()
    assert untimed(Store(folder).read()) == expected(cells)


def test_nothing_is_lost_or_doubled_after_a_kill(tmp_path: Path):
    folder = tmp_path / "fake"
    runner = start(folder, "local", 2, seconds="0.5")
    wait_until(lambda: len(Store(folder).read()) >= 1)
    wait_until(lambda: len(lines_of(folder, "start")) > len(lines_of(folder, "end")))
    runner.kill()
    runner.communicate()
    (Store(folder).records / ".half.part").write_bytes(b'{"study": "half-wri')
    finished = {f"{record.method} {record.seed}" for record in Store(folder).read()}
    pids = {int(line.split()[1]) for line in log_of(folder).read_text().splitlines()}
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    again = start(folder, "local", 2)
    assert int(again.communicate()[0]) == 4 - len(finished)
    starts = Counter(lines_of(folder, "start"))
    assert {cell for cell in starts if cell in finished and starts[cell] > 1} == set()
    assert untimed(Store(folder).read()) == expected(cells_of(make_spec(2)))


def test_a_cell_that_dies_is_a_failure_and_the_study_goes_on(tmp_path: Path):
    folder = tmp_path / "fake"
    runner = start(folder, "local", 2, dies="0", raises="1")
    assert int(runner.communicate()[0]) == 4
    errors = {(r.method, r.seed): r.error for r in Store(folder).read() if r.state == "failed"}
    assert set(errors) == {(method, seed) for method in ("compressor", "magnitude") for seed in (0, 1)}
    assert "last words" in errors["compressor", 0]
    assert "signal 9 (SIGKILL)" in errors["compressor", 0]
    assert errors["magnitude", 1].startswith("Traceback")
    assert errors["magnitude", 1].endswith("failed on purpose with seed 1\n")


def test_ctrl_c_ends_quickly_and_nothing_is_recorded(tmp_path: Path):
    folder = tmp_path / "fake"
    runner = start(folder, "local", seconds="1000")
    wait_until(lambda: len(lines_of(folder, "start")) == 2)
    began = time.monotonic()
    os.killpg(runner.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in runner.communicate()[1]
    assert time.monotonic() - began < 60
    pids = {int(line.split()[1]) for line in log_of(folder).read_text().splitlines()}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert Store(folder).read() == []


OWN = """
from studies.design.spec import StudySpec, TaskSpec
SPEC = StudySpec(
    "mine", [TaskSpec("small_task:make_model", "small_task:loaders", reference_epochs=3)],
    ["compressor", "magnitude"], ["20x"], [0], final_epochs=3, trial_epochs=1, description="Clusters",
)
"""


def test_a_real_study_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "data"))
    (tmp_path / "my.py").write_text(OWN)
    own = str(tmp_path / "my.py")
    assert main(["run", own, "--workers", "2"]) == 0
    answer = capsys.readouterr()
    assert "all                2         0         0         0" in answer.out
    assert "2 of 2 cells done, 0 failed, 0 s left" in answer.err
    folder = tmp_path / "results" / "mine"
    compressor, magnitude = sorted(Store(folder).read(), key=lambda record: record.method)
    for record in (compressor, magnitude):
        assert record.reference_accuracy > 0.6
        assert record.examples == 200
        assert record.gradient_steps == 30
        assert [steps for steps, _ in record.curve] == [10, 20, 30]
        assert sum(record.parts.values()) == pytest.approx(record.file_bytes, abs=1)
        assert len(record.layers) == 3
        assert record.peak_memory_bytes > 10_000_000
        assert record.versions["torch"]
    assert compressor.reference_correct == magnitude.reference_correct
    assert compressor.history
    assert compressor.search_gradient_steps == 0
    assert magnitude.search_gradient_steps == 60
    assert magnitude.trials == {"complete": 6}
    assert [steps for steps, _ in magnitude.anytime] == [10, 20, 30, 40, 50, 60]
    assert main(["run", own]) == 0
    assert len(Store(folder).read()) == 2
    assert main(["status", own]) == 0
    assert main(["run", own, "--only", "random"]) == 2
    assert main(["list", "--results", str(tmp_path / "results")]) == 0
    assert "digits" in capsys.readouterr().out


def test_a_search_is_kept_until_its_cell_has_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "data"))
    (tmp_path / "my.py").write_text(OWN)
    cell = next(cell for cell in cells_of(find_study(str(tmp_path / "my.py"))[0]) if cell.method == "magnitude")
    conditions = replace(CONDITIONS, folder=str(tmp_path), storage=str(tmp_path / "searches"))
    reference = reference_of(cell, tmp_path)
    first = search_cell(cell, conditions, reference)
    again = search_cell(cell, conditions, reference)
    assert first.error is None
    assert again.trials == first.trials  # with their times: none was run again
    assert again.file == first.file
    other = search_cell(cell, replace(conditions, revision="def"), reference)
    assert [trial["device_seconds"] for trial in other.trials] != [trial["device_seconds"] for trial in first.trials]
    assert len(list((tmp_path / "searches").iterdir())) == 2
    forget_search(cell, conditions.storage)
    assert list((tmp_path / "searches").iterdir()) == []


def ended_trials(study: Path) -> list[dict[str, object]]:
    """Returns the records of the trials that the one search under way has ended."""
    journals = list(study.glob("searches/*/search.log"))
    if not journals or not journals[0].stat().st_size:
        return []
    storage = open_storage(f"journal:{journals[0]}", 1)
    studies = storage.get_all_studies()
    trials = storage.get_all_trials(studies[0]._study_id) if studies else []
    ended = [trial.to_json() for frozen in trials if (trial := recorded(frozen)) is not None]
    return list(json.loads(json.dumps(ended)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_goes_on_after_a_kill(workers: int, tmp_path: Path):
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        "AUTOCOMPRESS_DATA": str(tmp_path / "data"),
    }
    own = OWN.replace('["compressor", "magnitude"]', '["magnitude"]')
    (tmp_path / "my.py").write_text(own.replace("final_epochs=3", f"final_epochs=3, workers={workers}"))
    command = [sys.executable, "-m", "studies", "run", str(tmp_path / "my.py"), "--workers", "1"]
    study = tmp_path / "results" / "mine"
    with subprocess.Popen(command, env=environment) as runner:
        wait_until(lambda: len(ended_trials(study)) >= 2)
        runner.kill()
    before = ended_trials(study)
    assert Store(study).read() == []
    subprocess.run(command, env=environment, check=True)
    (record,) = Store(study).read()
    assert record.trials == {"complete": 6}
    assert [trial for trial in record.search if trial in before] == before
    assert record.anytime[-1][0] == record.search_gradient_steps >= 60
    assert list(study.glob("searches/*")) == []


@pytest.mark.slow
def test_cells_on_a_cluster_outlive_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray
    from ray.cluster_utils import Cluster

    from studies.running.cluster import ClusterExecutor

    folder = tmp_path / "fake"
    ray.cloudpickle.register_pickle_by_value(fake_cells)  # the cluster does not know the folder of the tests
    monkeypatch.setenv("FAKE_LOG", str(log_of(folder)))
    monkeypatch.setenv("FAKE_SECONDS", "5")  # a cell that runs is still running when its node is gone
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)

    def kill_a_node() -> None:
        wait_until(lambda: len(lines_of(folder, "end")) >= 2 and len(lines_of(folder, "start")) >= 4)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    try:
        cells, store = cells_of(make_spec(5)), Store(folder)
        searches = [tmp_path / "searches" / f"{cell.hash}-abc" for cell in cells]
        for search in searches:
            search.mkdir(parents=True)
        conditions = replace(CONDITIONS, storage=str(tmp_path / "searches"))
        executor = ClusterExecutor(cluster.address, conditions, function=fake_cells.run)
        assert executor.room == 2
        assert run_cells(cells, store, executor) == 10
        killer.join()
        assert untimed(store.read()) == expected(cells)
        assert not any(search.exists() for search in searches)
        starts = Counter(lines_of(folder, "start"))
        assert set(starts) == {f"{cell.name} {cell.seed}" for cell in cells}
        assert 1 <= sum(starts.values()) - len(cells) <= 2
    finally:
        cluster.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(fake_cells)
