"""What a study says of costs, and two studies side by side."""

import re
from dataclasses import replace

import pytest

from autocompress.errors import InvalidInputError
from studies.report.frame import frame_of
from studies.report.sentences import claims, cost_to_reach, finding
from studies.report.side_by_side import compare_command
from tests.study_records import failure, framed, make_record, make_study, written


def steps_to_reach(search, other):
    rows = frame_of([search, replace(other, method="other")])
    return cost_to_reach(rows.iloc[0], rows.iloc[1])[0]


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
        (
            5,
            r"the cheapest search, random search, takes 2\.0 times the compressor's gradient steps \(geometric",
        ),
        (3, r"no search reaches it in all seeds within 4\.0 times .*; random search reaches it in 3 of 5 seeds\."),
        (0, r"no search reaches it in all seeds within 4\.0 times the compressor's gradient steps\.$"),
    ],
)
def test_claim_of_cost(reached, said):
    table, summary = framed(study_with_search(reached))
    accuracy, cost = claims(summary, table)
    assert re.search(said, cost)
    assert "with 4.0 times the gradient steps" in accuracy


def test_cost_is_by_validation_loss_where_the_records_have_it():
    """By hand: the seeds reach the compressor's loss after one or two trials, of 100 steps and 3 s each."""
    records = study_with_search(0)
    changed = []
    for record in records:
        if record.method == "compressor":
            changed.append(replace(record, validation_loss=0.5, device_seconds=3.0))
            continue
        losses = [0.4, 0.3, 0.3] if record.seed == 0 else [0.6, 0.5, 0.3]
        trials = [{"state": "complete", "loss": loss, "gradient_steps": 100, "device_seconds": 3.0} for loss in losses]
        changed.append(replace(record, validation_loss=0.45, search=trials))
    table, summary = framed(changed)
    cost = claims(summary, table)[1]
    factor = 2 ** (4 / 5)  # geometric mean of 1, 2, 2, 2, 2
    assert (
        f"cost to the compressor's validation loss: the cheapest search, random search, takes {factor:.1f} times ["
        in cost
    )
    assert cost.count(f"{factor:.1f} times [") == 2  # steps and seconds


def test_the_finding_counts_verdicts():
    records = make_study(methods=("compressor", "uniform", "random"), targets=("4KB",))
    text = finding(framed(records)[1])
    assert re.match(r"Of 2 comparisons with the compressor none better, 2 worse", text)
    assert "the best search by validation" in text
    assert finding(framed(make_study(methods=("uniform",), targets=("4KB",)))[1]) == ""


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
    compressor, uniform = (line for line in text.splitlines() if line.startswith("| LeNet-5 on digits, 4 KB"))
    assert re.search(r"0\.00 \[0\.00, 0\.00\] \| equivalent .*-100 \| smaller", compressor)
    assert re.search(r"\| higher ", uniform)
    few = compare_command("first", a, "second", b[:2])
    assert "8 finished cells only in first" in few
    assert few.count("| undecided") == 1
    assert "Revisions of the code, A: 0123456789 (10); B: 0123456789 (2)" in few
    with pytest.raises(InvalidInputError, match="first and second have no finished cell in common"):
        compare_command("first", a, "second", [make_record(target="2KB")])
    with pytest.raises(InvalidInputError, match="1 failed"):
        compare_command("first", [failure(a[0]), *a[1:]], "second", b)
    partial = compare_command("first", [failure(a[0]), *a[1:]], "second", b, partial=True)
    assert re.search(r"\| compressor \| +4 \|", partial)
