"""The rows of a study's tables: what each method found and what it cost, from the records of its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from studies.blocks import Block, MethodCells
from studies.comparison import Comparison, compare
from studies.record import Record
from studies.significance import Difference


@dataclass(frozen=True)
class Summary:
    """What the finished cells of one method come to: means over the seeds, accuracies as fractions of 1.

    Attributes:
        file_bytes: mean, smallest and largest.
        accuracy, accuracy_sd: on the test split; the deviation is None of one seed.
        validation: accuracy.
        to_reference: test accuracy minus the reference's of the same seed.
        weight_data_factor: 32 bits per compressible weight over the weight data.
        gradient_steps: of the run that ends in the file.
        search_multiple: steps of the search over those of the run.
        device_seconds: of both together.
    """

    file_bytes: tuple[float, int, int]
    accuracy: float
    accuracy_sd: float | None
    validation: float
    to_reference: float
    weight_data_factor: float
    gradient_steps: float
    search_multiple: float
    device_seconds: float


@dataclass(frozen=True)
class Row:
    """One method in a table.

    Attributes:
        cells: what was asked for and what is there.
        summary: of the finished cells; None where there is none.
        difference: to the compressor; None of itself, or where they share no seed.
        best: it is better than every other method, see `Comparison`.
    """

    cells: MethodCells
    summary: Summary | None
    difference: Difference | None
    best: bool

    @property
    def seeds(self) -> str:
        """Returns the number of seeds; where cells are not as they should be, how many and what is wrong."""
        cells = self.cells
        if cells.whole:
            return str(len(cells.expected))
        counts = {"failed": cells.failed, "missing": cells.missing, "doubled": cells.doubled}
        wrong = [f"{len(seeds)} {what}" for what, seeds in counts.items() if seeds]
        return ", ".join([f"{len(cells.records)} of {len(cells.expected)}", *wrong])


@dataclass(frozen=True)
class Table:
    """One task and target.

    Attributes:
        block: the cells.
        rows: one per method, the compressor first.
        reference: test accuracy of the uncompressed network, mean and deviation over the seeds.
        compared: number of methods compared with the compressor, Holm's family.
    """

    block: Block
    rows: tuple[Row, ...]
    reference: tuple[float, float | None] | None
    compared: int


def make_tables(blocks: Sequence[Block]) -> list[Table]:
    """Returns the table of each block."""
    return [_make_table(block, compare(block)) for block in blocks]


def _make_table(block: Block, comparison: Comparison) -> Table:
    rows = tuple(
        Row(
            cells,
            summarize(list(cells.records.values())) if cells.records else None,
            comparison.to_compressor.get(cells.method),
            best=cells.method == comparison.best,
        )
        for cells in block.methods
    )
    by_seed = {record.seed: record.reference_accuracy or 0.0 for record in reversed(block.records)}
    reference = (mean(by_seed.values()), _deviation(list(by_seed.values()))) if by_seed else None
    return Table(block, rows, reference, len(comparison.to_compressor))


def summarize(records: Sequence[Record]) -> Summary:
    """Returns what the finished records of one method come to."""
    files = [record.file_bytes or 0 for record in records]
    accuracies = [record.test_accuracy or 0.0 for record in records]
    return Summary(
        file_bytes=(mean(files), min(files), max(files)),
        accuracy=mean(accuracies),
        accuracy_sd=_deviation(accuracies),
        validation=mean(record.validation_accuracy or 0.0 for record in records),
        to_reference=mean((r.test_accuracy or 0.0) - (r.reference_accuracy or 0.0) for r in records),
        weight_data_factor=mean(_weight_data_factor(record) for record in records),
        gradient_steps=mean(record.gradient_steps for record in records),
        search_multiple=mean(record.search_gradient_steps / record.gradient_steps for record in records),
        device_seconds=mean(record.device_seconds for record in records),
    )


def _weight_data_factor(record: Record) -> float:
    """Returns 32 bits per compressible weight over the weight data, the literature's factor."""
    dense_bytes = float(sum(4 * math.prod(layer["shape"]) for layer in record.layers))
    return dense_bytes / (record.weight_data_bytes or math.inf)


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
