"""A study's records on disk, one line each.

records.jsonl      append-only; locked while it is read or appended to
records.damaged    half-written lines, moved aside
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autocompress.errors import InvalidInputError
from studies.cell import Cell
from studies.record import Record

logger = logging.getLogger(__name__)
RECORDS, DAMAGED = "records.jsonl", "records.damaged"


class Store:
    """The records of one study."""

    def __init__(self, folder: Path) -> None:
        """Opens nothing yet.

        Args:
            folder: of the study; made when the first record is appended.
        """
        self.folder = folder

    @property
    def path(self) -> Path:
        """Where the records are."""
        return self.folder / RECORDS

    def read(self) -> list[Record]:
        """Returns all records in the order they were appended; a half-written last line is left out, with a warning.

        Raises:
            InvalidInputError: another line is no record; it is named.
        """
        if not self.path.exists():
            return []
        with _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            content = _content(descriptor)
        records, whole, _ = _parse(content, self.path)
        if whole < len(content):
            logger.warning("%s ends in a half-written line, which does not count", self.path)
        return records

    def records_of(self, cell: Cell) -> list[Record]:
        """Returns the records of a cell, those of other versions of its study left out."""
        return [record for record in self.read() if record.key == cell.key and record.spec_hash == cell.hash]

    def append(self, record: Record) -> None:
        """Adds a record: once this returns it is on the disk. A half-written last line is moved aside first.

        Raises:
            InvalidInputError: the record is not sound, or a line of the file is none.
        """
        line = json.dumps(record.to_json(), allow_nan=False)
        Record.from_json(json.loads(line))
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as descriptor:
            prefix = self._repaired(descriptor)
            data = f"{prefix}{line}\n".encode()
            if os.write(descriptor, data) != len(data):
                raise OSError(f"{self.path} takes no more: the disk is full")
            os.fsync(descriptor)

    def repair(self) -> None:
        """Moves a half-written last line aside, where there is one.

        Raises:
            InvalidInputError: another line is no record; it is named.
        """
        if self.path.exists():
            with _locked(self.path, os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as descriptor:
                self._repaired(descriptor)

    def _repaired(self, descriptor: int) -> str:
        """Leaves whole lines only; returns what must come before the next one."""
        content = _content(descriptor)
        _, whole, ended = _parse(content, self.path)
        if whole < len(content):
            with (self.folder / DAMAGED).open("ab") as file:
                file.write(content[whole:].rstrip(b"\n") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(descriptor, whole)
            logger.warning("%s ended in a half-written line; it is now in %s", self.path, DAMAGED)
        return "" if ended else "\n"


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Gives the descriptor of an open file, locked; waits for the lock."""
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    # Not by a file object of a second descriptor: on NFS closing that would give up the lock.
    parts: list[bytes] = []
    while part := os.pread(descriptor, 1 << 24, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts)


def _parse(content: bytes, path: Path) -> tuple[list[Record], int, bool]:
    """Returns (the records, how many bytes hold them, whether the last one has its newline).

    Raises:
        InvalidInputError: a line is no record, and it is not the last one, half-written.
    """
    records: list[Record] = []
    position, ended = 0, True
    lines = io.BytesIO(content).readlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                data = json.loads(line)
            except ValueError as error:
                if number == len(lines):
                    break
                raise InvalidInputError(f"{path}, line {number} is no record: {error}") from error
            try:
                records.append(Record.from_json(data))
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}, line {number}: {error}") from error
            ended = line.endswith(b"\n")
        position += len(line)
    return records, position, ended


def records_of(cells: Sequence[Cell], folder: Path) -> list[Record]:
    """Returns the records of the cells; those of other versions of their study are left out, and said so.

    Raises:
        InvalidInputError: as `Store.read`.
    """
    hashes = {cell.hash for cell in cells}
    records = Store(folder).read()
    mine = [record for record in records if record.spec_hash in hashes]
    if len(mine) < len(records):
        logger.warning(
            "%d of %d records in %s are of cells that the study does not ask for now; they do not count",
            len(records) - len(mine),
            len(records),
            folder,
        )
    return mine
