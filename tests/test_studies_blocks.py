"""Records that no table may be made from, and the marks of a partial report."""

import csv
import io
from dataclasses import replace

import pytest

from autocompress.errors import InvalidInputError
from tests.study_records import failure, make_record, make_study, small_study, written


def test_a_missing_cell_raises():
    records = small_study()
    with pytest.raises(InvalidInputError, match=r"1 missing: lenet5-digits/uniform/4KB/seed 1\. --partial"):
        written(records[:-1], [record.key for record in records])


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
