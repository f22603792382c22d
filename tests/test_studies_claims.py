"""What a study says of costs, and two studies side by side."""

import re
from dataclasses import replace

import pytest

from autocompress.errors import InvalidInputError
from studies.blocks import collect
from studies.claims import claims, steps_to_reach
from studies.report import compare_command
from studies.rows import make_tables
from tests.study_records import failure, make_record, make_study, written


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
