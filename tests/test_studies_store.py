"""The records file after every way to end in the middle of it, and the locks on cells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cells import make_record, make_spec

from autocompress.errors import InvalidInputError
from studies.cell import cells_of
from studies.cell_locks import CellLocks, claimed
from studies.conditions import Conditions
from studies.record import Record
from studies.store import Store

CELLS = cells_of(make_spec())
RECORDS = [make_record(cell, Conditions("fake", "abc")) for cell in CELLS]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two records."""
    store = Store(tmp_path / "fake")
    store.append(RECORDS[0])
    store.append(RECORDS[1])
    return store


def test_records_come_back(store: Store):
    assert store.read() == RECORDS[:2]
    assert store.records_of(CELLS[1]) == [RECORDS[1]]
    assert store.records_of(CELLS[2]) == []
    lines = store.path.read_text().splitlines()
    assert [Record.from_json(json.loads(line)) for line in lines] == RECORDS[:2]


def test_nothing_is_there_at_first(tmp_path: Path):
    assert Store(tmp_path / "none").read() == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "tail", [b'{"study": "fa', b'{"study": "fa\n', b"\x00\x00\x00", b"\xff\xfe", b'{"a": "x\rz\n'], ids=range(5)
)
def test_a_half_written_line_is_moved_aside(store: Store, tail: bytes, caplog: pytest.LogCaptureFixture):
    with store.path.open("ab") as file:
        file.write(tail)
    assert store.read() == RECORDS[:2]
    assert "half-written line, which does not count" in caplog.text
    store.append(RECORDS[2])
    assert store.read() == RECORDS[:3]
    assert (store.folder / "records.damaged").read_bytes() == tail.rstrip(b"\n") + b"\n"
    assert len(store.path.read_bytes().splitlines()) == 3


def test_every_cut_of_a_line_is_repaired(store: Store):
    whole = store.path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1, 41):
        store.path.write_bytes(whole[:length])
        store.append(RECORDS[1])
        assert store.path.read_bytes() == whole


def test_a_line_that_only_lacks_its_end_counts(store: Store):
    store.path.write_bytes(store.path.read_bytes().rstrip(b"\n"))
    store.repair()
    assert store.read() == RECORDS[:2]
    store.append(RECORDS[2])
    assert store.read() == RECORDS[:3]
    assert not (store.folder / "records.damaged").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is no record"),
        ('{"schema": 9}', "line 2: the record is of schema 9"),
        ("[]", "line 2: a record is"),
    ],
)
def test_a_broken_line_in_the_middle_is_an_error(store: Store, line: str, message: str):
    lines = store.path.read_text().splitlines()
    store.path.write_text("\n".join([lines[0], line, lines[1]]) + "\n")
    for action in (store.read, store.repair, lambda: store.append(RECORDS[2])):
        with pytest.raises(InvalidInputError, match=message):
            action()
    assert len(store.path.read_text().splitlines()) == 3


def test_a_record_that_is_not_sound_is_not_written(store: Store):
    unsound = Record(**(vars(RECORDS[2]) | {"file_bytes": "3"}))
    with pytest.raises(InvalidInputError, match="file_bytes is '3'"):
        store.append(unsound)
    assert store.read() == RECORDS[:2]


HOLD = """
import sys
from fake_cells import make_spec
from pathlib import Path
from studies.cell import cells_of
from studies.cell_locks import CellLocks
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
