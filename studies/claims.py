"""What a study says in words: accuracy at the same target, and what a search costs at the same accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median

from studies.blocks import MethodCells
from studies.record import COMPRESSOR, Record
from studies.rows import Row, Table
from studies.table import mean_and_deviation, points


def claims(tables: Sequence[Table]) -> list[str]:
    """Returns two lines for each table that has the compressor and a search; see `accuracy_claim`, `cost_claim`."""
    lines = []
    for table in tables:
        rows = {row.cells.method: row for row in table.rows if row.summary is not None}
        searches = [row for row in rows.values() if row.summary and row.summary.search_multiple > 0]
        if COMPRESSOR in rows and searches:
            lines.append(accuracy_claim(table, rows[COMPRESSOR], searches))
            lines.append(cost_claim(table, rows[COMPRESSOR].cells, [row.cells for row in searches]))
    return lines


def accuracy_claim(table: Table, compressor: Row, searches: Sequence[Row]) -> str:
    """Returns how the test accuracies of the compressor and of the best search differ at the same target.

    The best search is the one of highest mean validation accuracy of its final network: nothing is chosen on the test
    split.
    """
    best = max(searches, key=lambda row: row.summary.validation if row.summary else 0.0)
    ours, theirs, difference = compressor.summary, best.summary, best.difference
    assert ours is not None
    assert theirs is not None
    told = "no seed in common"
    if difference is not None:
        interval = f"[{points(difference.low)}, {points(difference.high)}]"
        told = f"{best.cells.method} minus compressor {points(difference.mean)} points {interval}: {difference.verdict}"
    return (
        f"{table.block.task} at {table.block.target}, test accuracy: compressor "
        f"{mean_and_deviation(ours.accuracy, ours.accuracy_sd)} % in {ours.file_bytes[0]:,.0f} bytes; the best search "
        f"by mean validation accuracy, {best.cells.method}, "
        f"{mean_and_deviation(theirs.accuracy, theirs.accuracy_sd)} % in {theirs.file_bytes[0]:,.0f} bytes, with "
        f"{theirs.search_multiple + 1:.1f} times the gradient steps, final training included ({told})."
    )


def cost_claim(table: Table, compressor: MethodCells, searches: Sequence[MethodCells]) -> str:
    """Returns by what factor the cheapest search takes more gradient steps to the compressor's validation accuracy.

    For each seed: the steps of the search until a trial, or after it the final training, reaches the validation
    accuracy of the compressor's final network of that seed, over all steps of the compressor. Of the seeds the median
    counts; a seed in which it is never reached counts as infinite. The cheapest is the search of least median.
    """
    factors = {cells.method: _factors(compressor, cells) for cells in searches}
    known = {method: found for method, found in factors.items() if found}
    where = f"{table.block.task} at {table.block.target}, gradient steps to the compressor's validation accuracy"
    if not known:
        return f"{where}: no search has a seed in common with the compressor."
    method = min(known, key=lambda name: (median(known[name]), -sum(map(math.isfinite, known[name]))))
    factor, reached = median(known[method]), sum(map(math.isfinite, known[method]))
    if math.isfinite(factor):
        return (
            f"{where}: the cheapest search, {method}, takes {factor:.1f} times the compressor's (median of "
            f"{_seeds(len(known[method]))}; reached in {reached})."
        )
    spent = [_mean_multiple(compressor, cells) for cells in searches if cells.method in known]
    within = (
        f"{max(spent):.1f} times" if max(spent) - min(spent) < 0.05 else f"{min(spent):.1f} to {max(spent):.1f} times"
    )
    some = f"; in {reached} of {_seeds(len(known[method]))} {method} does" if reached else ""
    return f"{where}: never reached by the median seed of any search within {within} the compressor's{some}."


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _factors(compressor: MethodCells, search: MethodCells) -> list[float]:
    common = [seed for seed in search.records if seed in compressor.records]
    return [
        steps_to_reach(search.records[s], compressor.records[s]) / _all_steps(compressor.records[s]) for s in common
    ]


def steps_to_reach(search: Record, other: Record) -> float:
    """Returns the gradient steps after which a search has the other's final validation accuracy, or infinity."""
    goal = other.validation_accuracy or 0.0
    for steps, accuracy in search.anytime:
        if accuracy >= goal:
            return steps
    return _all_steps(search) if (search.validation_accuracy or 0.0) >= goal else math.inf


def _all_steps(record: Record) -> float:
    return record.search_gradient_steps + record.gradient_steps


def _mean_multiple(compressor: MethodCells, cells: MethodCells) -> float:
    common = [seed for seed in cells.records if seed in compressor.records]
    return mean(_all_steps(cells.records[seed]) / _all_steps(compressor.records[seed]) for seed in common)
