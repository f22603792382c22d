"""The paired bootstrap over seeds and examples: against scipy's, under the null, and its verdicts."""

import numpy as np
import pytest
from scipy import stats

from studies.blocks import collect
from studies.comparison import adjust, compare
from studies.significance import LEVEL, Bootstrap, Difference, crossed_variance, holm
from tests.study_records import make_record, make_study


def two_methods(generator, seeds, examples, *, seed_effect=0.0, example_effect=0.0, remainder=1.0, shift=0.0):
    """Returns which examples two methods got right, bool [S, E] each: equally good, but for `shift`."""
    ease = generator.normal(2, 1.5, examples)
    right = []
    for offset in (shift, 0.0):
        logits = ease + offset + seed_effect * generator.standard_normal((seeds, 1))
        logits = logits + example_effect * generator.standard_normal((1, examples))
        right.append(logits + remainder * generator.standard_normal((seeds, examples)) > 0)
    return right


def bootstrap_of(a, b, **settings):
    return Bootstrap({"a": dict(enumerate(a)), "b": dict(enumerate(b))}, **settings)


@pytest.mark.parametrize("seeds", [1, 5])
def test_interval_agrees_with_scipys_paired_bootstrap_where_seeds_add_nothing(seeds):
    """With one seed, or five times the same, only examples vary: that is what scipy's bootstrap resamples."""
    a, b = two_methods(np.random.default_rng(3), 1, 1500, shift=0.3)
    ours = bootstrap_of(np.repeat(a, seeds, 0), np.repeat(b, seeds, 0)).difference("a", "b")
    theirs = stats.bootstrap(
        (a[0].astype(float), b[0].astype(float)),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        random_state=1,
    )
    assert ours.mean == pytest.approx(a.mean() - b.mean())
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    # two Monte Carlo estimates of a 2.5 % quantile; accuracies are multiples of 1 / 1500
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)
    assert ours.high - ours.low == pytest.approx(width, rel=0.05)


def test_replicates_are_those_of_a_loop():
    """The matrix products draw what they say: mean and deviation of replicates drawn one by one."""
    a, b = two_methods(np.random.default_rng(4), 5, 200, seed_effect=0.3, shift=0.3)
    d, replicates = bootstrap_of(a, b).replicates_of("a", "b")
    generator = np.random.default_rng(9)
    slow = [d[generator.integers(5, size=5)][:, generator.integers(200, size=200)].mean() for _ in range(5000)]
    assert replicates.mean() == pytest.approx(np.mean(slow), abs=5 * np.std(slow) / np.sqrt(5000))
    assert replicates.std() == pytest.approx(np.std(slow), rel=0.05)


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
def test_level_holds_under_the_null(effects, least):
    """Equally good methods, examples common to all seeds: about 5 % of the studies are called different."""
    generator = np.random.default_rng(6)
    studies = 400
    rejected = sum(
        bootstrap_of(*two_methods(generator, 5, 400, **effects), replicates=1000).difference("a", "b").p < LEVEL
        for _ in range(studies)
    )
    assert stats.binom.ppf(0.001, studies, least) <= rejected <= stats.binom.ppf(0.999, studies, LEVEL)


def test_interval_and_test_say_the_same():
    generator = np.random.default_rng(7)
    for shift in np.linspace(0, 0.5, 40):
        found = bootstrap_of(*two_methods(generator, 5, 300, shift=shift), replicates=999).difference("a", "b")
        assert (found.low > 0 or found.high < 0) == (found.p < LEVEL) or abs(found.p - LEVEL) < 0.01


def test_a_method_identical_to_the_compressor_is_a_tie():
    records = make_study(methods=("compressor", "uniform"), targets=("4KB",))
    same = [make_record("compressor", seed) for seed in range(5)]
    twins = [type(r)(**{**r.to_json(), "method": "twin"}) for r in same]
    records += twins
    comparison = compare(collect(records, [record.key for record in records])[0])
    twin = comparison.to_compressor["twin"]
    assert (twin.mean, twin.low, twin.high, twin.p, twin.verdict) == (0, 0, 0, 1, "tie")
    assert comparison.to_compressor["uniform"].verdict == "worse"
    assert comparison.best is None  # the compressor's twin is as good


def test_the_best_is_named_only_where_it_beats_all_others():
    clear = [make_record(m, s, skill=k) for m, k in (("compressor", 0.98), ("random", 0.8)) for s in range(5)]
    close = [make_record("ray-asha", s, skill=0.979) for s in range(5)]
    keys = [record.key for record in clear + close]
    assert compare(collect(clear, keys[:10])[0]).best == "compressor"
    assert compare(collect(clear + close, keys)[0]).best is None


def test_fewer_than_five_seeds_claim_nothing():
    records = [make_record(m, s, skill=k) for m, k in (("compressor", 0.98), ("random", 0.5)) for s in range(4)]
    comparison = compare(collect(records, [record.key for record in records])[0])
    assert comparison.to_compressor["random"].verdict == "n < 5"
    assert comparison.best is None


def test_only_seeds_that_both_have_are_compared():
    generator = np.random.default_rng(8)
    a, b = two_methods(generator, 6, 300)
    bootstrap = Bootstrap({"a": dict(enumerate(a)), "b": {s: b[s] for s in (1, 3)}})
    assert bootstrap.difference("a", "b").seeds == 2
    assert bootstrap.difference("a", "b").mean == pytest.approx(a[[1, 3]].mean() - b[[1, 3]].mean())
    assert Bootstrap({"a": {0: a[0]}, "b": {1: b[1]}}).difference("a", "b") is None


def test_the_same_records_give_the_same_answer():
    a, b = two_methods(np.random.default_rng(9), 5, 300, shift=0.1)
    assert bootstrap_of(a, b).difference("a", "b") == bootstrap_of(a, b).difference("a", "b")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    differences = [Difference(0.1, 0, 0, p, 5, p) for p in (0.02, 0.04)]
    assert [each.verdict for each in differences] == ["better", "better"]
    assert [each.adjusted_p for each in adjust(differences)] == pytest.approx([0.04, 0.04])
    assert Difference(-0.1, 0, 0, 0.01, 5, 0.01).verdict == "worse"
    assert Difference(-0.1, 0, 0, 0.01, 5, 0.05).verdict == "tie"
