"""Compares methods on tasks: `python -m studies`, and `studies.load(NAME)` for the records as a table of pandas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def load(study: str, results: str | Path | None = None) -> DataFrame:
    """Returns the records of a study, one row for each cell that it asks for; `docs/records.md` has the columns.

    Args:
        study: a name of `python -m studies list`, or the path of a Python file with a `SPEC`.
        results: folder of the results; default: `studies/results`, or `results` beside the user's file.

    Raises:
        InvalidInputError: there is no such study, or a record is damaged.
    """
    # Imported here, so that parts of the package can be used without pandas.
    from studies.finding import load_study

    return load_study(study, results=None if results is None else Path(results))
