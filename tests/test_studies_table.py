"""Tables of a study: golden files, rows by hand, LaTeX, and what is in bold."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studies.records.record import Record, pack
from studies.report.tables import aggregate_table, blocks_of, comparison_table, latex_text, points
from tests.study_records import framed, make_record, small_study, written


def text_of(records):
    """Returns the text of the table of one task and target."""
    table, summary = framed(records)
    (rows,) = blocks_of(summary)
    return comparison_table(rows, table).text.to_dict("records")


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
    compressor, uniform = text_of(small_study())
    assert all(re.search(r"\d|undecided|uniform", cell) for cell in uniform.values())
    # the compressor is not compared with itself
    nothing = [name for name, cell in compressor.items() if not re.search(r"\w", cell)]
    assert nothing == ["to compressor [95 % interval]", "verdict"]


def test_numbers_of_a_row_by_hand():
    right = np.zeros((2, 8), bool)
    right[0, :6], right[1, :4] = True, True
    layers = [{"name": "fc", "shape": [10, 10], "kept": 20, "codebook": 4, "bits": 2, "bytes": 9.0}]
    records = [
        replace(
            make_record(seed=seed),
            examples=8,
            correct=pack(right[seed]),
            reference_correct=pack(right[seed]),
            test_accuracy=float(right[seed].mean()),
            reference_accuracy=0.75,
            file_bytes=1000 + seed,
            layers=layers,
            weight_data_bytes=5.0,
            gradient_steps=100,
            search_gradient_steps=250 + 100 * seed,
            trials={"complete": 3},
            device_seconds=12.0,
        )
        for seed in (0, 1)
    ]
    (cells,) = text_of(records)
    assert (cells["file bytes"], cells["of target, %"]) == ("1,000 to 1,001", "25.0")
    assert cells["test accuracy, %"] == "62.50 ± 17.68"
    assert cells["to reference"] == "-12.50"
    assert cells["weight data"] == "80x"
    assert (cells["steps"], cells["search steps"], cells["device s"]) == ("100", "3.0x", "12")


def test_the_aggregate_of_tasks_and_targets_by_hand():
    """Differences of -1, -2, -3 and -10 points to the compressor: the middle half has a mean of -2.5."""
    ours = [
        replace(make_record(seed=s, target=t), correct="", test_accuracy=0.9) for t in ("4KB", "2KB") for s in (0, 1)
    ]
    fall = {("4KB", 0): 0.01, ("4KB", 1): 0.02, ("2KB", 0): 0.03, ("2KB", 1): 0.1}
    theirs = [replace(r, method="random", test_accuracy=0.9 - fall[r.target, r.seed]) for r in ours]
    table = aggregate_table(framed(ours + theirs)[0])
    assert table.text["tasks and targets"].tolist() == ["2"]
    mean, low, high = map(float, re.findall(r"-?\d+\.\d+", table.text["to compressor [95 % interval]"][0]))
    assert mean == pytest.approx(-2.5)
    assert -10 <= low < -2.5 < high <= -1
    one = [record for record in ours + theirs if record.target == "4KB"]
    assert aggregate_table(framed(one)[0]) is None


def test_latex_is_well_formed():
    records = [replace(record, task="net_1-data%", method=record.method) for record in small_study()]
    text = written(records)["table.tex"]
    assert r"net\_1-data\%, 4 KB" in text
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(body) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(text_of(records)[0]) - 1}
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.count(r"\begin") == text.count(r"\end")
    assert all(ord(sign) < 128 for sign in text)
    assert latex_text("a_b & 5 % -1.00 [-2.00, +3.00] x-y") == r"a\_b \& 5 \% $-$1.00 [$-$2.00, +3.00] x-y"


def test_differences_that_round_to_zero_have_no_sign():
    assert [points(x) for x in (-0.00001, 0.0, 0.0123, -0.01)] == ["0.00", "0.00", "+1.23", "-1.00"]
