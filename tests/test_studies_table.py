"""Tables of a study: golden files, what may not be made a table of, marks of what is not there, claims, comparison."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import InvalidInputError
from studies.cells import collect
from studies.claims import claims, steps_to_reach
from studies.latex import escape, to_latex
from studies.record import Record, pack
from studies.report import compare_command
from studies.rows import make_tables
from studies.spreadsheet import to_csv
from studies.table import HEAD, cells_of, points, to_markdown
from tests.study_records import make_record, make_study

GOLDEN = Path(__file__).parent / "golden" / "studies"


def golden_records():
    lines = (GOLDEN / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [Record.from_json(json.loads(line)) for line in lines]


def written(records, keys=None, **settings):
    tables = make_tables(collect(records, keys or [record.key for record in records], **settings))
    return {
        "table.md": to_markdown("golden", tables, claims(tables)),
        "table.csv": to_csv(tables),
        "table.tex": to_latex("golden", tables),
    }


def small_study(**more):
    return make_study(methods=("compressor", "uniform"), targets=("4KB",), seeds=range(2), **more)


@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.tex"])
def test_fixed_records_give_byte_identical_tables(name):
    assert written(golden_records())[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_order_of_the_records_does_not_matter():
    records = golden_records()
    assert written(records[::-1], [record.key for record in records]) == written(records)


def test_a_missing_cell_raises():
    records = small_study()
    with pytest.raises(InvalidInputError, match=r"1 missing: lenet5-digits/uniform/4KB/seed 1\. --partial"):
        written(records[:-1], [record.key for record in records])


def failure(record):
    empty = {"test_accuracy": None, "validation_accuracy": None, "file_bytes": None, "correct": "", "layers": []}
    return replace(record, state="failed", error="Traceback: out of memory", **empty)


def test_a_failed_cell_raises():
    records = small_study()
    records[2] = failure(records[2])
    with pytest.raises(InvalidInputError, match="1 failed: lenet5-digits/uniform/4KB/seed 0"):
        written(records)


def test_a_doubled_cell_raises():
    records = small_study()
    with pytest.raises(InvalidInputError, match="1 there more than once: lenet5-digits/compressor/4KB/seed 1"):
        written([*records, records[1]], [record.key for record in records])


def test_a_cell_that_was_not_asked_for_raises():
    records = small_study()
    with pytest.raises(InvalidInputError, match="1 not asked for: lenet5-digits/uniform/4KB/seed 1"):
        written(records, [record.key for record in records[:-1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_accuracy": "0.98"}, "test_accuracy is '0.98'; it must be float"),
        ({"file_bytes": 3941.5}, "file_bytes is 3941.5; it must be int"),
        ({"seed": True}, "seed is True; it must be int"),
        ({"weight_data_bytes": None}, "it is finished, but has no weight_data_bytes"),
        ({"reference_accuracy": None}, "it is finished, but has no reference_accuracy"),
        ({"validation_accuracy": float("nan")}, "validation_accuracy is nan"),
        ({"layers": [{"name": "a", "shape": [2], "kept": "7", "bits": 2, "bytes": 1.0}]}, "kept is '7', not a number"),
        ({"anytime": [[150, None]]}, "anytime is None, not a number"),
        ({"test_accuracy": 0.5}, "test accuracy is 0.5, but .* of the examples are marked right"),
    ],
)
def test_a_record_of_the_wrong_type_raises(change, message):
    records = small_study()
    records[0] = replace(records[0], **change)
    with pytest.raises(InvalidInputError, match=message):
        written(records)


def test_records_of_two_test_splits_raise():
    records = small_study()
    records[0] = make_record(seed=0, examples=300)
    with pytest.raises(InvalidInputError, match="of 300 and 360 test examples"):
        written(records)


def test_many_missing_cells_are_counted():
    keys = [record.key for record in make_study(methods=("compressor",), targets=("4KB",), seeds=range(9))]
    keys += [(task, "uniform", target, seed) for task, _, target, seed in keys]
    with pytest.raises(InvalidInputError, match=r"18 missing: .* and 6 more"):
        written([], keys)


def test_a_failure_that_was_mended_does_not_count():
    records = small_study()
    assert written([failure(records[0]), *records], [r.key for r in records]) == written(records)


def test_partial_marks_what_is_not_there():
    records = make_study(methods=("compressor", "uniform", "random"), targets=("4KB",))
    keys = [record.key for record in records]
    kept = [r for r in records if r.method != "uniform" or r.seed < 2] + [failure(make_record("uniform", 4))]
    kept = [r for r in kept if r.method != "random"] + [records[0]]
    text = written(kept, keys, partial=True)
    rows = {line.split("|")[1].strip(): line for line in text["table.md"].splitlines() if line.startswith("| ")}
    assert "| 2 of 5, 1 failed, 2 missing |" in rows["uniform"]
    assert "n < 5" in rows["uniform"]
    assert " 5 of 5, 1 doubled |" in rows["compressor"]
    assert "0 of 5, 5 missing" in rows["random"]
    assert "Not complete:" in text["table.md"]
    lines = list(csv.DictReader(io.StringIO(text["table.csv"])))
    assert [(line["seeds"], line["failed"], line["missing"], line["doubled"]) for line in lines] == [
        ("5", "0", "0", "1"),
        ("2", "1", "2", "0"),
        ("0", "0", "5", "0"),
    ]
    assert lines[2]["test_accuracy_mean"] == ""


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


def test_steps_to_the_compressors_accuracy():
    compressor = replace(make_record(), validation_accuracy=0.97, gradient_steps=100)
    search = replace(make_record("random"), gradient_steps=100, search_gradient_steps=300, validation_accuracy=0.96)
    early = replace(search, anytime=[[100, 0.9], [200, 0.97], [300, 0.98]])
    assert steps_to_reach(early, compressor) == 200
    late = replace(search, anytime=[[300, 0.9]], validation_accuracy=0.975)
    assert steps_to_reach(late, compressor) == 400
    assert steps_to_reach(replace(search, anytime=[[300, 0.9]]), compressor) == float("inf")


def study_with_search(reached):
    """Returns five seeds of a compressor of 100 steps and a search of 300 + 100, in so many as good at 200 steps."""
    compressor = [replace(make_record(seed=s), validation_accuracy=0.97, gradient_steps=100) for s in range(5)]
    search = [
        replace(
            make_record("random", s),
            gradient_steps=100,
            search_gradient_steps=300,
            validation_accuracy=0.96,
            anytime=[[100, 0.9], [200, 0.97 if s < reached else 0.95]],
        )
        for s in range(5)
    ]
    return compressor + search


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        (5, r"the cheapest search, random, takes 2\.0 times the compressor's \(median of 5 seeds; reached in 5\)"),
        (3, r"takes 2\.0 times the compressor's \(median of 5 seeds; reached in 3\)"),
        (2, r"never reached by the median seed of any search within 4\.0 times .*; in 2 of 5 seeds random does\."),
        (0, r"never reached by the median seed of any search within 4\.0 times the compressor's\.$"),
    ],
)
def test_claim_of_cost(reached, said):
    records = study_with_search(reached)
    tables = make_tables(collect(records, [record.key for record in records]))
    accuracy, cost = claims(tables)
    assert re.search(said, cost)
    assert "with 4.0 times the gradient steps" in accuracy


def test_no_claims_without_the_compressor():
    records = make_study(methods=("uniform", "random"), targets=("4KB",))
    text = written(records)["table.md"]
    assert "What it says" not in text
    assert "To compressor:" not in text


def test_two_studies_side_by_side():
    a = make_study(methods=("compressor", "uniform"), targets=("4KB",))
    b = [replace(record, file_bytes=record.file_bytes - 100) for record in a if record.method == "compressor"]
    b += [make_record("uniform", seed, skill=0.99) for seed in range(5)]
    text = compare_command("first", a, "second", b)
    compressor, uniform = (line for line in text.splitlines() if line.startswith("| lenet5-digits, 4KB"))
    assert re.search(r"0\.00 \[0\.00, 0\.00\] \| tie .*-100 \| smaller", compressor)
    assert re.search(r"\| higher ", uniform)
    few = compare_command("first", a, "second", b[:3])
    assert "7 finished cells only in first" in few
    assert few.count("| n < 5") == 2
    with pytest.raises(InvalidInputError, match="first and second have no finished cell in common"):
        compare_command("first", a, "second", [make_record(target="2KB")])
    with pytest.raises(InvalidInputError, match="1 failed"):
        compare_command("first", [failure(a[0]), *a[1:]], "second", b)
    partial = compare_command("first", [failure(a[0]), *a[1:]], "second", b, partial=True)
    assert re.search(r"\| compressor \| +4 \|", partial)
