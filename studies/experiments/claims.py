"""What each system claims, and what became of it here: the tables of the experiments that are no grids.

    python -m studies.experiments.claims

writes `docs/claims.md` from the committed records. Each benchmark prints its own table, too, and makes new
records: `python -m studies.experiments.NAME --help`.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from autocompress.codec.atomic_write import write_whole
from studies.experiments import condensa_published, energy, quality_constraints
from studies.experiments.store import load_records

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
EXPERIMENTS = (energy, quality_constraints, condensa_published)


def page() -> str:
    """Returns the page: of each benchmark what it does, in its own words, and the table of its records."""
    parts = ["# What each system claims, and what became of it here\n"]
    for benchmark in EXPERIMENTS:
        headline, _, text = inspect.cleandoc(benchmark.__doc__ or "").partition("\n")
        name = benchmark.__name__.rpartition(".")[2]
        parts.append(f"## {name}\n\n{headline}\n\n{_commands_fenced(text.strip())}\n")
        parts.append(benchmark.table(load_records(benchmark.RECORDS)) + "\n")
    return "\n".join(parts)


def _commands_fenced(text: str) -> str:
    """Returns a docstring with its commands as fenced blocks."""
    return "\n\n".join(
        f"```console\n{inspect.cleandoc(part)}\n```" if part.lstrip().startswith("python -m") else part
        for part in text.split("\n\n")
    )


if __name__ == "__main__":
    write_whole(PAGE, page().encode())
    print(PAGE)
