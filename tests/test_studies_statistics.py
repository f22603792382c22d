"""The paired t over seeds and examples: against scipy's, under the null, and its verdicts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from studies.report.statistics import LEVEL, Difference, adjust, aggregate, crossed_variance, difference, holm
from studies.report.statistics import to_compressor as compared
from tests.study_records import framed, make_record, make_study


def two_methods(generator, seeds, examples, *, seed_effect=0.0, example_effect=0.0, remainder=1.0, shift=0.0):
    """Returns which examples two methods got right, bool [S, E] each: equally good, but for `shift`."""
    ease = generator.normal(2, 1.5, examples)
    right = []
    for offset in (shift, 0.0):
        logits = ease + offset + seed_effect * generator.standard_normal((seeds, 1))
        logits = logits + example_effect * generator.standard_normal((1, examples))
        right.append(logits + remainder * generator.standard_normal((seeds, examples)) > 0)
    return right


def by_seed(right):
    return pd.Series(list(right), dtype=object)


def of(a, b):
    return difference(by_seed(a), by_seed(b))


def to_compressor(records):
    return compared(framed(records, mixed=True)[0])


def test_of_one_seed_it_is_scipys_paired_t_over_examples():
    a, b = two_methods(np.random.default_rng(3), 1, 1500, shift=0.3)
    ours, theirs = of(a, b), stats.ttest_rel(a[0].astype(float), b[0].astype(float))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.mean == pytest.approx(a.mean() - b.mean())


def test_where_examples_add_nothing_it_is_scipys_paired_t_over_seeds():
    """Each seed is right on all examples or on none, so that only seeds vary."""
    a, b = (np.repeat(np.array(x, bool)[:, None], 5000, 1) for x in ([1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 1]))
    ours, theirs = of(a, b), stats.ttest_rel(a.mean(1), b.mean(1))
    assert ours.p == pytest.approx(theirs.pvalue, rel=0.01)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=0.01)


def test_variance_of_a_crossed_design_is_unbiased():
    """The parts are known here: sd 0.3, 1 and 2 of seeds, examples and remainder."""
    generator = np.random.default_rng(5)
    truth = 0.09 / 6 + 1 / 40 + 4 / 240
    found = []
    for _ in range(1500):
        effects = 0.3 * generator.standard_normal((6, 1)) + generator.standard_normal((1, 40))
        found.append(crossed_variance(effects + 2 * generator.standard_normal((6, 40)))[0])
    assert np.mean(found) == pytest.approx(truth, rel=0.08)


@pytest.mark.parametrize(
    ("effects", "least"),
    [
        # where seeds add nothing the degrees of freedom are on the careful side
        ({"remainder": 1.0}, 0.01),
        ({"remainder": 0.3, "example_effect": 1.0}, LEVEL),
        ({"remainder": 1.0, "seed_effect": 1.0}, LEVEL),
        ({"remainder": 1.0, "seed_effect": 0.15, "example_effect": 1.0}, LEVEL),
        ({"remainder": 1.0, "seed_effect": 0.15}, LEVEL),
    ],
    ids=["networks differ", "examples differ", "seeds differ", "all", "seeds differ a little"],
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_level_holds_under_the_null(effects, least, seeds):
    """Equally good methods, examples common to all seeds: about 5 % of the studies are called different."""
    generator = np.random.default_rng(6)
    studies = 400
    rejected = sum(of(*two_methods(generator, seeds, 400, **effects)).p < LEVEL for _ in range(studies))
    assert stats.binom.ppf(0.001, studies, least) <= rejected <= stats.binom.ppf(0.999, studies, LEVEL)


def test_interval_and_test_say_the_same():
    generator = np.random.default_rng(7)
    for shift in np.linspace(0, 0.5, 40):
        found = of(*two_methods(generator, 5, 300, shift=shift))
        assert (found.low > 0 or found.high < 0) == (found.p < LEVEL)


def test_a_method_identical_to_the_compressor_is_equivalent():
    records = make_study(methods=("compressor", "uniform"), targets=("4KB",))
    records += [replace(make_record("compressor", seed), method="twin") for seed in range(5)]
    found = to_compressor(records)
    twin = found["twin"]
    assert (twin.mean, twin.low, twin.high, twin.p, twin.verdict) == (0, 0, 0, 1, "equivalent")
    assert found["uniform"].verdict == "worse"


def test_fewer_than_three_seeds_claim_nothing():
    records = [make_record(m, s, skill=k) for m, k in (("compressor", 0.98), ("random", 0.5)) for s in range(3)]
    assert to_compressor(records)["random"].verdict == "worse"
    few = to_compressor([record for record in records if record.seed < 2])["random"]
    assert (few.verdict, few.seeds) == ("undecided", 2)


def test_only_seeds_that_both_have_are_compared():
    a, b = two_methods(np.random.default_rng(8), 6, 300)
    some = by_seed(b)[[1, 3]]
    assert difference(by_seed(a), some).seeds == 2
    assert difference(by_seed(a), some).mean == pytest.approx(a[[1, 3]].mean() - b[[1, 3]].mean())
    assert difference(by_seed(a)[[0]], by_seed(b)[[1]]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    found = adjust([Difference(0.1, 0.05, 0.15, p, 5, p) for p in (0.02, 0.04)])
    assert [each.p_holm for each in found] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "verdict"),
    [
        (0.01, 0.002, 0.018, 0.01, "better"),
        (-0.003, -0.004, -0.002, 0.01, "worse"),  # small, but beyond chance
        (0.001, -0.003, 0.005, 0.5, "equivalent"),
        (0.001, -0.004, 0.006, 0.5, "undecided"),
        (-0.01, -0.03, 0.01, 0.3, "undecided"),
    ],
)
def test_verdicts(mean, low, high, p, verdict):
    assert Difference(mean, low, high, p, 5, p).verdict == verdict
    assert Difference(mean, low, high, p, 2, p).verdict == "undecided"


def test_the_interval_of_the_aggregate_covers_the_middle_of_what_it_is_drawn_from():
    """Two tasks of six seeds, differences normal around -2 points: in about 95 of 100 studies -2 lies inside."""
    generator, inside = np.random.default_rng(11), 0
    for _ in range(60):
        rows = [
            {"task": task, "target": "1KB", "seed": seed, "state": "finished", "method": method,
             "test_accuracy": 0.9 + (method == "x") * generator.normal(-0.02, 0.01)}
            for task in "ab" for seed in range(6) for method in ("compressor", "x")
        ]  # fmt: skip
        found = aggregate(pd.DataFrame(rows)).loc["x"]
        inside += found.low <= -0.02 <= found.high
    assert inside >= 48
