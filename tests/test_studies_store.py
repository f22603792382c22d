"""The records of a study: one file each, whole or not there; the locks on cells."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_cells import HereExecutor, make_record, make_spec

from autocompress.errors import InvalidInputError
from studies.design.cell import cells_of
from studies.records.record import Record
from studies.records.store import CellLocks, Store, claimed, records_of
from studies.running import run as running
from studies.running.conditions import Conditions
from studies.running.run import open_cells, run_cells

CONDITIONS = Conditions("fake", "abc")
CELLS = cells_of(make_spec())
RECORDS = [make_record(cell, CONDITIONS) for cell in CELLS]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two records."""
    store = Store(tmp_path / "fake")
    store.write(RECORDS[0])
    store.write(RECORDS[1])
    return store


def test_records_come_back(store: Store):
    assert store.read() == RECORDS[:2]
    assert store.read(CELLS[::-1]) == RECORDS[1::-1]
    assert store.digests() == {cell.hash for cell in CELLS[:2]}
    assert [store.stamp(cell) is None for cell in CELLS[:3]] == [False, False, True]
    names = sorted(path.name for path in store.records.iterdir())
    assert names == [f"lenet5-digits.compressor.4KB.seed{cell.seed}.{cell.hash}.json" for cell in CELLS[:2]]


def test_names_of_files_are_of_plain_characters_and_their_own(tmp_path: Path):
    store = Store(tmp_path)
    strange = [replace(RECORDS[0], method="a/b, 2 ±" * 40 + end, spec_hash=f"{number:016x}")
               for number, end in enumerate("xy")]  # fmt: skip
    for record in strange:
        store.write(record)
    assert store.read() == strange
    assert store.digests() == {record.spec_hash for record in strange}
    assert all(len(path.name.encode()) < 256 for path in store.records.iterdir())


def test_nothing_is_there_at_first(tmp_path: Path):
    assert Store(tmp_path / "none").read() == []
    assert Store(tmp_path / "none").digests() == set()
    assert not (tmp_path / "none").exists()


def test_a_record_replaces_an_earlier_one_of_its_cell(store: Store):
    better = replace(RECORDS[0], file_bytes=1)
    before = store.stamp(CELLS[0])
    os.utime(store.path(CELLS[0].key, CELLS[0].hash), ns=(1, 1))
    store.write(better)
    assert store.stamp(CELLS[0]) not in (1, None)
    assert before is not None
    assert store.read() == [better, RECORDS[1]]


def test_what_a_killed_writer_left_does_not_count(store: Store):
    whole = store.path(CELLS[0].key, CELLS[0].hash)
    (store.records / f".{whole.name[:40]}.abc.part").write_bytes(whole.read_bytes()[:200])
    assert store.read() == RECORDS[:2]
    assert len(store.digests()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("{broken", "is no record"), ('{"schema": 9}', "the record is of schema 9"), ("[]", "a record is a JSON object")],
)
def test_a_damaged_file_is_named(store: Store, text: str, message: str):
    path = store.path(CELLS[1].key, CELLS[1].hash)
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=rf"{CELLS[1].hash}\.json is no record.*{message}|{message}"):
        store.read()
    assert store.read(CELLS[:1]) == RECORDS[:1]


def test_a_record_that_is_not_sound_is_not_written(store: Store):
    unsound = Record(**(vars(RECORDS[2]) | {"file_bytes": "3"}))
    with pytest.raises(InvalidInputError, match="file_bytes is '3'"):
        store.write(unsound)
    assert store.read() == RECORDS[:2]


def test_records_of_other_versions_of_a_study_are_left_out(store: Store, caplog: pytest.LogCaptureFixture):
    assert records_of(CELLS[1:], store.folder) == [RECORDS[1]]
    assert "1 records in" in caplog.text


def test_only_failures_are_open_again(store: Store):
    store.write(make_record(CELLS[2], CONDITIONS, error="Traceback"))
    assert open_cells(CELLS, store) == CELLS[3:]
    assert open_cells(CELLS, store, retry_failed=True) == CELLS[2:]


def test_the_runners_own_time_for_a_cell_is_small_and_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Counted by what it asks the system for, as seconds of a test say little: nothing of it knows how many there are.

    The first thousand and the last thousand cells of five thousand differ by no scan of the records and no more looks
    at files; the CPU time is bounded generously beside it.
    """
    looks = []
    monkeypatch.setattr(running, "StudyDisplay", lambda *_, **__: Quiet())
    monkeypatch.setattr("studies.records.store.write_whole", lambda path, data: path.write_bytes(data))  # no fsync
    for name in ("digests", "stamp", "read"):
        original = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *a, _o=original, _n=name, **k: (looks.append(_n), _o(*a, **k))[1])
    cells = cells_of(make_spec(2500))
    begun = time.process_time()
    assert run_cells(cells, Store(tmp_path), HereExecutor(CONDITIONS), progress=False) == 5000
    assert (time.process_time() - begun) / 5000 < 0.2
    assert {name: looks.count(name) for name in looks} == {"digests": 1, "stamp": 2 * 5000}


class Quiet:
    """A display of nothing."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was shown."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


HOLD = """
import sys
from fake_cells import make_spec
from pathlib import Path
from studies.design.cell import cells_of
from studies.records.store import CellLocks
cell = cells_of(make_spec())[1]
locks = CellLocks(Path(sys.argv[1]))
print(locks.take(cell), flush=True)
sys.stdin.readline()
locks.release(cell)
print("released", flush=True)
sys.stdin.readline()
"""


def test_a_cell_belongs_to_one_process_until_that_ends(tmp_path: Path):
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    assert claimed(tmp_path / "none", CELLS) == []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert claimed(tmp_path, CELLS) == [CELLS[1]]
        locks = CellLocks(tmp_path)
        assert [locks.take(cell) for cell in CELLS[:3]] == [True, False, True]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "released\n"
        assert locks.take(CELLS[1])
        locks.close()
        process.kill()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        locks = CellLocks(tmp_path)
        assert not locks.take(CELLS[1])
        process.kill()
        process.wait()
        assert locks.take(CELLS[1])
        locks.close()
