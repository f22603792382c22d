"""A study's records on disk, one file each, and who is at work on which cell.

records/TASK.METHOD.TARGET.seedN.DIGEST.json    the record of one cell, whole or not there at all
claims.lock                                     empty; the byte that a cell's digest gives is locked while it is run

What is done is known by the names of the files alone, so that a runner's work for a cell does not grow with the number
of records. A cell's record is only written under its lock, after a look for it under the same lock: so no cell is done
twice, be it that two runners work on one study or that one was killed and another takes over. The locks are the
system's and end with the process that holds them, however it ends; on a folder that several machines share this holds
where the file system has POSIX locks, as NFS 4 has, and Lustre if it is mounted with `flock`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from autocompress.codec.atomic_write import write_whole
from autocompress.errors import InvalidInputError
from studies.design.cell import Cell
from studies.records.record import Key, Record

logger = logging.getLogger(__name__)
FOLDER, LOCKS = "records", "claims.lock"
# Of a cell's digest, in hexadecimal digits: a file offset has 63 bits.
OFFSET_DIGITS = 15
# A file's name has at most 255 bytes: of each part of the key so many characters stand in it.
NAME_CHARACTERS = 48


class Store:
    """The records of one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def records(self) -> Path:
        return self.folder / FOLDER

    def path(self, key: Key, digest: str) -> Path:
        task, method, target, seed = (re.sub(r"[^A-Za-z0-9-]+", "-", str(part))[:NAME_CHARACTERS] for part in key)
        return self.records / f"{task}.{method}.{target}.seed{seed}.{digest}.json"

    def digests(self) -> set[str]:
        """Returns the digests of the cells that have a record, finished or failed."""
        return {path.name.split(".")[-2] for path in self._files()}

    def stamp(self, cell: Cell) -> int | None:
        """Returns when a cell's record was written, in nanoseconds, or None where there is none."""
        try:
            return self.path(cell.key, cell.hash).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def read(self, cells: Sequence[Cell] | None = None) -> list[Record]:
        """Returns the records of these cells, in their order, or all there are, by name; none for a cell without one.

        Raises:
            InvalidInputError: a file is no record; it is named.
        """
        known = self._files()
        if cells is not None:
            wanted = [self.path(cell.key, cell.hash) for cell in cells]
            there = set(known)
            known = [path for path in wanted if path in there]
        return [_read(path) for path in known]

    def write(self, record: Record) -> None:
        """Writes a record, in place of an earlier one of its cell: once this returns it is on the disk.

        Raises:
            InvalidInputError: the record is not sound.
        """
        content = record.to_json()
        Record.from_json(json.loads(json.dumps(content, allow_nan=False)))
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
        self.records.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(record.key, record.spec_hash), f"{{\n{lines}\n}}\n".encode())

    def _files(self) -> list[Path]:
        if not self.records.exists():
            return []
        names = sorted(entry.name for entry in os.scandir(self.records))
        return [self.records / name for name in names if name.endswith(".json") and not name.startswith(".")]


class CellLocks:
    """Which cells of a study somebody is at work on.

    Make one of them for a folder in a process and keep it: the system gives up a process's locks on a file as soon as
    the process closes the file anywhere, and knows none between parts of one process.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / LOCKS, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, cell: Cell) -> bool:
        """Returns whether the cell is now this process's to run; False where another runs it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(cell))
        except (BlockingIOError, PermissionError):  # POSIX leaves it to the system which of the two
            return False
        return True

    def release(self, cell: Cell) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _offset(cell))

    def close(self) -> None:
        os.close(self._descriptor)


def claimed(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """Returns those of the cells that a runner in another process is at work on."""
    if not (folder / LOCKS).exists():
        return []
    try:
        locks = CellLocks(folder)
    except OSError:  # of somebody else, and not to be written: nothing of ours runs in it
        return []
    try:
        free = {cell.hash for cell in cells if locks.take(cell)}
    finally:
        locks.close()
    return [cell for cell in cells if cell.hash not in free]


def records_of(cells: Sequence[Cell], folder: Path) -> list[Record]:
    """Returns the records of the cells; those of other versions of their study are left out, and said so."""
    store = Store(folder)
    others = store.digests() - {cell.hash for cell in cells}
    if others:
        logger.warning("%d records in %s are of cells that the study does not ask for now", len(others), folder)
    return store.read(cells)


def _read(path: Path) -> Record:
    try:
        return Record.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, InvalidInputError) as error:
        raise InvalidInputError(f"{path} is no record: {error}") from error


def _offset(cell: Cell) -> int:
    return int(cell.hash[:OFFSET_DIGITS], 16)
