"""Tables of a study: golden files, rows by hand, LaTeX, and what is in bold."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studies.blocks import collect
from studies.latex import escape
from studies.record import Record, pack
from studies.rows import make_tables
from studies.table import HEAD, cells_of, points
from tests.study_records import make_record, small_study, written

GOLDEN = Path(__file__).parent / "golden" / "studies"


def golden_records():
    lines = (GOLDEN / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [Record.from_json(json.loads(line)) for line in lines]


@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.tex"])
def test_fixed_records_give_byte_identical_tables(name):
    assert written(golden_records())[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_order_of_the_records_does_not_matter():
    records = golden_records()
    assert written(records[::-1], [record.key for record in records]) == written(records)


def test_no_cell_of_a_finished_row_is_empty():
    (table,) = make_tables(collect(small_study(), [record.key for record in small_study()]))
    compressor, uniform = (cells_of(row) for row in table.rows)
    assert all(re.search(r"\d|n < 5|compressor|uniform", cell) for cell in uniform)
    # the compressor is not compared with itself
    assert [HEAD[i] for i, cell in enumerate(compressor) if not re.search(r"\w", cell)] == [
        "to compressor [95 % interval]",
        "verdict",
    ]


def test_numbers_of_a_row_by_hand():
    right = np.zeros((2, 8), bool)
    right[0, :6], right[1, :4] = True, True
    layers = [{"name": "fc", "shape": [10, 10], "kept": 20, "codebook": 4, "bits": 2, "bytes": 9.0}]
    records = [
        replace(
            make_record(seed=seed),
            examples=8,
            correct=pack(right[seed]),
            test_accuracy=float(right[seed].mean()),
            reference_accuracy=0.75,
            file_bytes=1000 + seed,
            layers=layers,
            weight_data_bytes=5.0,
            gradient_steps=100,
            search_gradient_steps=250 + 100 * seed,
            device_seconds=12.0,
        )
        for seed in (0, 1)
    ]
    (table,) = make_tables(collect(records, [record.key for record in records]))
    cells = dict(zip(HEAD, cells_of(table.rows[0]), strict=True))
    assert cells["file bytes"] == "1,000 to 1,001"
    assert cells["test accuracy, %"] == "62.50 ± 17.68"
    assert cells["to reference"] == "-12.50"
    assert cells["weight data"] == "80x"
    assert (cells["steps"], cells["search steps"], cells["device s"]) == ("100", "3.0x", "12")


def test_best_is_bold_only_where_the_test_allows_it():
    clear = [make_record(m, s, skill=k) for m, k in (("compressor", 0.98), ("random", 0.8)) for s in range(5)]
    text = written(clear)
    assert "**compressor**" in text["table.md"]
    assert r"\textbf{compressor}" in text["table.tex"]
    few = [record for record in clear if record.seed < 4]
    assert "**" not in written(few)["table.md"]
    assert "textbf" not in written(few)["table.tex"]


def test_latex_is_well_formed():
    records = [replace(record, task="net_1-data%", method=record.method) for record in small_study()]
    text = written(records)["table.tex"]
    assert r"net\_1-data\%, 4KB" in text
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(HEAD) - 1}
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.count(r"\begin") == text.count(r"\end")
    assert all(ord(sign) < 128 for sign in text)
    assert escape("a_b & 5 % -1.00 [-2.00, +3.00] x-y") == r"a\_b \& 5 \% $-$1.00 [$-$2.00, +3.00] x-y"


def test_differences_that_round_to_zero_have_no_sign():
    assert [points(x) for x in (-0.00001, 0.0, 0.0123, -0.01)] == ["0.00", "0.00", "+1.23", "-1.00"]
