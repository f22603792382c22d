"""The files of a search beside the one that it is asked for: records, checkpoint."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from pathlib import Path

from autocompress.cli.console import to_json
from autocompress.codec.atomic_write import write_whole
from baselines.interface import SearchOutcome, Trial
from baselines.search_report import search_json


def beside(out: Path, suffix: str) -> Path:
    """Returns the path with `suffix` in place of `out`'s own."""
    return out.with_name(out.stem + suffix)


def write_records(options: Namespace, outcome: SearchOutcome) -> Path:
    """Writes all trials and the best plan to `NAME.search.json` and returns its path; it is never half-written."""
    path = beside(options.out, ".search.json")
    names = ("model", "data", "target", "seed", "trial_epochs", "final_epochs")
    command = {name: getattr(options, name) for name in names}
    records = command | {"interrupted": outcome.interrupted} | search_json(options, outcome)
    write_whole(path, f"{to_json(records)}\n".encode())
    return path


def checkpoint_of(options: Namespace, best: Trial, epochs: int) -> Path:
    """Returns where the final training is kept until it is done: a place of its own for each plan and length."""
    key = json.dumps([sorted(best.values.items()), epochs, options.target, options.seed])
    path = beside(options.out, f".final-{hashlib.sha256(key.encode()).hexdigest()[:8]}.checkpoint")
    if not options.resume:
        path.unlink(missing_ok=True)
    return path
