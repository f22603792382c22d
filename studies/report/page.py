"""One HTML page of a study, which needs nothing else: its finding, tables that sort, figures, and what was run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup
from pandas import DataFrame

from autocompress.integrations.page import whole_page
from studies.report.names import method_name, target_name, task_name
from studies.report.plots import Drawing
from studies.report.tables import Table

if TYPE_CHECKING:
    from studies.report.write import Report

TEMPLATE = Path(__file__).with_name("page_template.html")
# Columns of the table of all records.
RECORD = {
    **{name: name for name in ("task", "target", "method", "seed", "state", "started")},
    **{"wall_seconds": "seconds", "peak_memory_bytes": "memory, MB", "revision": "revision", "device": "device"},
    **{"cpu": "CPU", "spec_hash": "specification"},
}


def to_html(name: str, report: Report, figures: Sequence[Drawing], table: DataFrame, description: str = "") -> str:
    """Returns the page.

    Args:
        name: of the study.
        report: its words and tables.
        figures: the first stands beside the finding.
        table: all cells, failed ones included: where they come from is shown.
        description: plain text; lines are kept.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    known = table[table["state"] != "missing"]
    records = known[list(RECORD)].sort_values(["task", "target", "method", "seed"]).rename(columns=RECORD)
    records["memory, MB"], records["seconds"] = (records["memory, MB"] / 1e6).round(), records["seconds"].round(1)
    shown = [{"title": d.title, "caption": d.caption, "svg": Markup(d.svg)} for d in figures]
    body = template.render(
        name=name,
        description=description,
        finding=report.finding or description.partition("\n")[0],
        claims=report.claims,
        tables=[_for_template(each) for each in report.tables],
        notes=report.notes,
        first=shown[:1],
        figures=shown[1:],
        facts=provenance(table),
        records=_for_template(Table("All records", "", _as_text(records), records, "")),
        failures=known[known["state"] == "failed"].to_dict("records"),
    )
    return whole_page(f"{name}: results of a study", body)


def provenance(table: DataFrame) -> list[tuple[str, str]]:
    """Returns what was run, by what, where and when; of what differs between records, how many are of each kind."""
    known = table[table["state"] != "missing"]
    started = sorted(known["started"]) or ["never"]
    versions = [", ".join(f"{name} {v}" for name, v in sorted(each.items())) for each in known["versions"]]
    where = [f"{row.device}, {row.threads:.0f} thread{'s' * (row.threads != 1)}" for row in known.itertuples()]
    return [
        ("cells", ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())),
        ("tasks", ", ".join(map(task_name, table["task"].unique()))),
        ("targets", ", ".join(map(target_name, table["target"].unique()))),
        ("methods", ", ".join(map(method_name, table["method"].unique()))),
        ("seeds", ", ".join(str(seed) for seed in table["seed"].unique())),
        ("revision", _counted(known["revision"])),
        ("references", f"{known['reference'].nunique()} for {len(table[['task', 'seed']].drop_duplicates())} "
                       "pairs of task and seed"),
        ("versions", _counted(versions)),
        ("device", _counted(where)),
        ("CPU", _counted([cpu or "not recorded" for cpu in known["cpu"]])),
        ("started", f"{started[0]} to {started[-1]}"),
        ("device time", f"{known['device_seconds'].sum() / 3600:,.2f} hours"),
        ("gradient steps", f"{known['total_steps'].sum():,.0f}"),
    ]  # fmt: skip


def _counted(values: Sequence[str] | pd.Series) -> str:
    """Returns the different values; where there are several, with their numbers of records."""
    counts = Counter(values)
    if len(counts) < 2:
        return next(iter(counts), "none")
    return "; ".join(f"{value} ({count} records)" for value, count in counts.most_common())


def _as_text(records: DataFrame) -> DataFrame:
    text = records.astype(object).where(records.notna(), "")
    return text.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))


def _for_template(table: Table) -> dict[str, Any]:
    """Returns a table as the template goes through it: the text of each cell, and what it is sorted by."""
    words = [str(name) in table.words for name in table.text]
    rows = [
        [
            {"text": text, "value": "" if pd.isna(value) else value, "word": word}
            for text, value, word in zip(texts, values, words, strict=True)
        ]
        for texts, values in zip(
            table.text.to_numpy().tolist(), table.values.astype(object).to_numpy().tolist(), strict=True
        )
    ]
    head = [{"text": str(name), "word": word} for name, word in zip(table.text, words, strict=True)]
    return {"title": table.title, "lead": table.lead, "head": head, "rows": rows}
