"""A study's records put in order: one block for each task and target, one row for each method, one record a seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from autocompress.errors import InvalidInputError
from studies.record import COMPRESSOR, Key, Record, unpack

# So many cells are named in a message; of more the number is said.
NAMED_CELLS = 12


@dataclass(frozen=True)
class MethodCells:
    """The cells of one method in a block.

    Attributes:
        method: its name.
        expected: seeds that were asked for.
        records: finished ones by seed, in the order of the seeds asked for.
        failed, missing, doubled: seeds of which there is only a failure, nothing, more than one finished record.
    """

    method: str
    expected: tuple[int, ...]
    records: dict[int, Record]
    failed: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    doubled: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every cell has exactly one finished record."""
        return not (self.failed or self.missing or self.doubled)


@dataclass(frozen=True)
class Block:
    """All methods on one task and target: one table."""

    task: str
    target: str
    methods: tuple[MethodCells, ...] = field(default_factory=tuple)

    @property
    def records(self) -> list[Record]:
        """All finished records."""
        return [record for method in self.methods for record in method.records.values()]

    @property
    def compressor(self) -> MethodCells | None:
        """What the others are compared with, where it has a finished cell."""
        found = [each for each in self.methods if each.method == COMPRESSOR and each.records]
        return found[0] if found else None


def collect(records: Sequence[Record], expected: Sequence[Key], *, partial: bool = False) -> list[Block]:
    """Returns the blocks of a study, in the order of `expected`; the compressor is the first row of each.

    A failure of a cell that was finished later does not count. With `partial` the first of two finished records is
    taken, and records of cells that were not asked for are left out.

    Raises:
        InvalidInputError: a record is not sound; unless `partial`, cells are missing, failed, there twice or not
            asked for: all are listed.
    """
    if not expected:
        raise InvalidInputError("the study asks for no cell: there is nothing to report")
    for record in records:
        _check(record)
    by_key: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        by_key[record.key].append(record)
    asked = dict.fromkeys(expected)
    blocks = [
        Block(task, target, _rows(by_key, [key for key in asked if (key[0], key[2]) == (task, target)]))
        for task, target in dict.fromkeys((task, target) for task, _, target, _ in asked)
    ]
    if not partial:
        _check_whole(blocks, [key for key in by_key if key not in asked])
    elif not any(block.records for block in blocks):
        raise InvalidInputError("no cell is finished: there is nothing to report")
    for block in blocks:
        _check_examples(block)
    return blocks


def _rows(by_key: dict[Key, list[Record]], keys: list[Key]) -> tuple[MethodCells, ...]:
    methods = sorted(dict.fromkeys(method for _, method, _, _ in keys), key=lambda name: name != COMPRESSOR)
    return tuple(_method_cells(method, by_key, [key for key in keys if key[1] == method]) for method in methods)


def _method_cells(method: str, by_key: dict[Key, list[Record]], keys: list[Key]) -> MethodCells:
    finished = {key[3]: [r for r in by_key.get(key, []) if r.state == "finished"] for key in keys}
    tried = {key[3]: bool(by_key.get(key)) for key in keys}
    return MethodCells(
        method,
        expected=tuple(finished),
        records={seed: found[0] for seed, found in finished.items() if found},
        failed=tuple(seed for seed, found in finished.items() if not found and tried[seed]),
        missing=tuple(seed for seed in finished if not tried[seed]),
        doubled=tuple(seed for seed, found in finished.items() if len(found) > 1),
    )


def _check(record: Record) -> None:
    """Raises InvalidInputError, with the cell's name, for a record that no row may be made from."""
    try:
        Record.from_json(record.to_json())
    except InvalidInputError as error:
        raise InvalidInputError(f"cell {cell_name(record.key)}: {error}") from error
    if record.state == "finished":
        lacking = [name for name in ("reference_accuracy", "weight_data_bytes") if getattr(record, name) is None]
        lacking += [name for name in ("examples", "gradient_steps", "correct", "layers") if not getattr(record, name)]
        if lacking:
            raise InvalidInputError(f"cell {cell_name(record.key)}: it is finished, but has no {', '.join(lacking)}")
        _check_contents(record)


def _check_contents(record: Record) -> None:
    """Raises InvalidInputError where a list of a finished record does not hold the numbers that are drawn from it."""
    numbers = [(f"layers: {key}", layer.get(key)) for layer in record.layers for key in ("kept", "bits", "bytes")]
    numbers += [("layers: shape", side) for layer in record.layers for side in layer.get("shape") or [None]]
    numbers += [(f"parts: {part}", size) for part, size in record.parts.items()]
    numbers += [("anytime", value) for point in record.anytime for value in (point if len(point) == 2 else [point])]
    for name, value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInputError(f"cell {cell_name(record.key)}: the record's {name} is {value!r}, not a number")
    right = unpack(record.correct, record.examples).mean()
    if abs(right - (record.test_accuracy or 0.0)) > 1e-6:
        raise InvalidInputError(
            f"cell {cell_name(record.key)}: the test accuracy is {record.test_accuracy}, but {right:.6f} of the "
            "examples are marked right"
        )


def _check_whole(blocks: list[Block], unasked: list[Key]) -> None:
    lists = {
        "missing": [(b, m, s) for b in blocks for m in b.methods for s in m.missing],
        "failed": [(b, m, s) for b in blocks for m in b.methods for s in m.failed],
        "there more than once": [(b, m, s) for b in blocks for m in b.methods for s in m.doubled],
    }
    named = {what: [(b.task, m.method, b.target, s) for b, m, s in cells] for what, cells in lists.items()}
    named["not asked for"] = unasked
    found = [f"{len(keys)} {what}: {_names(keys)}" for what, keys in named.items() if keys]
    if found:
        raise InvalidInputError(f"cells {'; '.join(found)}. --partial makes a report that marks them")


def _check_examples(block: Block) -> None:
    """Raises InvalidInputError where the records of a block are not of one test split."""
    counts = sorted({record.examples for record in block.records})
    if len(counts) > 1:
        raise InvalidInputError(
            f"{block.task}, {block.target}: the records are of {' and '.join(map(str, counts))} test examples; "
            "methods can only be compared on the same ones"
        )


def cell_name(key: Key) -> str:
    """Returns a cell's name for a message."""
    task, method, target, seed = key
    return f"{task}/{method}/{target}/seed {seed}"


def _names(keys: list[Key]) -> str:
    names = [cell_name(key) for key in keys[:NAMED_CELLS]]
    return ", ".join(names) + (f" and {len(keys) - NAMED_CELLS} more" if len(keys) > NAMED_CELLS else "")
