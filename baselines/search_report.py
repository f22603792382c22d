"""What is said of a search at its end: as text, and as the keys of a record."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from autocompress.cli.console import accuracy_lines, percent
from autocompress.solver.result import Result
from baselines.interface import SearchOutcome, Trial

COLUMNS = ("method", "space", "trials", "stopped", "failed", "best validation", "gradient steps", "device seconds")


def search_json(options: Namespace, outcome: SearchOutcome) -> dict[str, Any]:
    """Returns the record of a search: all its trials, the best plan, what it cost; the front of two objectives."""
    best = outcome.best
    record: dict[str, Any] = {
        "method": options.method,
        "space": options.space,
        "trials": [trial.to_json() for trial in outcome.trials],
        "search_gradient_steps": outcome.gradient_steps,
        "search_device_seconds": outcome.device_seconds,
        "best_trial": None if best is None else best.number,
        "plan": None if best is None else best.plan,
    }
    if options.method == "optuna-nsga2":
        record["front"] = [_point(trial) for trial in outcome.front]
    return record


def search_text(options: Namespace, outcome: SearchOutcome, result: Result) -> str:
    """Returns the search as a table, then the size report and the accuracies as `autocompress compress` prints them."""
    lines = [*_table(options, outcome), ""]
    if options.method == "optuna-nsga2":
        lines += ["accuracy against size", *_front(outcome), ""]
    lines += [result.report(), "", *accuracy_lines(result.to_json())]
    lines.append(f"{options.out}: {options.out.stat().st_size} bytes")
    return "\n".join(lines)


def _table(options: Namespace, outcome: SearchOutcome) -> list[str]:
    """Returns the search in one row under its heading."""
    states = [trial.state for trial in outcome.trials]
    best = outcome.best
    row = (
        options.method,
        options.space,
        str(len(states)),
        str(states.count("stopped")),
        str(states.count("failed")),
        percent(None if best is None else best.accuracy),
        str(outcome.gradient_steps),
        f"{outcome.device_seconds:.1f}",
    )
    widths = [max(len(name), len(value)) for name, value in zip(COLUMNS, row, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in (COLUMNS, row)]


def _front(outcome: SearchOutcome) -> list[str]:
    """Returns one line for each trial that no other beats."""
    return [f"{trial.size:12d}  {percent(trial.accuracy)}  (trial {trial.number})" for trial in outcome.front]


def _point(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "size": trial.size, "accuracy": trial.accuracy}
