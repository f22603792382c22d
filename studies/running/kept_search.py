"""The search of a cell on disk while it is under way, so that who runs the cell again goes on with it.

It is kept until the cell has a record. Each revision of the code has its own: trials of two are never one search.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from baselines.optuna_search.storage import JOURNAL
from studies.design.cell import Cell
from studies.running.conditions import Conditions


def folder_of(cell: Cell, conditions: Conditions) -> Path | None:
    """Returns the folder of a cell that is under way, None where nothing of it is kept."""
    if conditions.storage is None:
        return None
    folder = Path(conditions.storage) / f"{cell.hash}-{conditions.revision}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def storage_of(cell: Cell, conditions: Conditions) -> tuple[str | None, bool]:
    """Returns (the storage of a cell's search as `SearchSettings` has it, whether there is a search in it already)."""
    folder = folder_of(cell, conditions)
    if folder is None:
        return None, False
    if cell.uses_ray:
        return str(folder), (folder / "trials.jsonl").exists()
    journal = folder / "search.log"
    return f"{JOURNAL}{journal}", journal.exists()


def forget_search(cell: Cell, storage: str | None) -> None:
    """Removes the search of a cell, whatever code began it."""
    if storage is not None:
        for folder in Path(storage).glob(f"{cell.hash}-*"):
            shutil.rmtree(folder, ignore_errors=True)
