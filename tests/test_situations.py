"""The twelve situations: few lines each, and a table that says what their records do."""

import pytest

from studies.experiments import situations
from studies.experiments.store import load_records


def test_each_takes_at_most_three_lines():
    lines = {name: situations.product_lines(situation) for name, situation in situations.SITUATIONS.items()}
    assert len(lines) == 12
    assert max(lines.values()) <= 3
    assert min(lines.values()) >= 1


def test_the_page_has_the_table_of_the_records(tmp_path):
    records = load_records(situations.RECORDS)
    assert {record["situation"] for record in records} == set(situations.SITUATIONS)
    for record in records:
        assert record["lines"] == situations.product_lines(situations.SITUATIONS[record["situation"]])
    page = tmp_path / "page.md"
    page.write_text(situations.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    situations.write(page)
    assert page.read_text(encoding="utf-8") == situations.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tabular MLP", "one logit"])
def test_a_situation_gives_what_was_asked(name):
    record = situations.run(name)
    assert record["file_bytes"] <= {"1KB": 1000, "500B": 500}[record["target"]]
    assert record["after"] >= record["before"] - 0.05
