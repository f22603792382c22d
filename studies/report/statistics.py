"""Whether a difference of accuracies is more than chance: a paired t over seeds and test examples, by scipy.

Notation, for two methods trained with the same S seeds and tested on the same E examples:

    d[s, e]   1 where only the first is right, -1 where only the second, else 0; the difference is its mean
    seeds and examples are crossed: d = mean + seed effect + example effect + remainder

The variance of the mean is the unbiased one of a crossed design (McCullagh 2000; Owen 2007), so that seeds and examples
both count as drawn at random; interval and test are those of a t with Satterthwaite's degrees of freedom.
Under simulated nulls at a level of 5 % the test rejects in 1 to 6 % of the cases, whatever differs most: seeds,
examples or the single networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas import DataFrame, Series
from scipy import stats

from studies.records.record import COMPRESSOR
from studies.report.frame import BLOCK, correct_by_seed

LEVEL = 0.05
# Of one or two seeds nobody can say how much seeds differ.
MIN_SEEDS = 3
# Differences of accuracy within so many points are nothing to choose a method by.
EQUIVALENT_POINTS = 0.5
RESAMPLES = 2_000
VERDICTS = ("better", "worse", "equivalent", "undecided")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The difference of two methods' test accuracies, the first's minus the second's, as fractions of 1.

    Attributes:
        mean: over seeds and examples.
        low, high: 95 % interval.
        p: two-sided, of the hypothesis that there is none.
        seeds: number of seeds that both have.
        p_holm: after Holm's correction over the methods of a table; p before.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    p_holm: float

    @property
    def verdict(self) -> str:
        """Returns "better" or "worse" (corrected p below 5 %), "equivalent" (interval within half a point) or neither.

        With fewer than three seeds everything is "undecided".
        """
        if self.seeds < MIN_SEEDS:
            return "undecided"
        if self.p_holm < LEVEL and self.mean != 0:
            return "better" if self.mean > 0 else "worse"
        within = max(abs(self.low), abs(self.high)) <= EQUIVALENT_POINTS / 100
        return "equivalent" if within else "undecided"


def difference(first: Series, second: Series) -> Difference | None:
    """Returns the first method's accuracy minus the second's, or None where they have no seed in common.

    Args:
        first, second: for each seed, which examples were right, bool [E].
    """
    common = [seed for seed in first.index if seed in second.index]
    if not common:
        return None
    d = np.array([first[seed].astype(float) - second[seed] for seed in common])
    mean = float(d.mean())
    variance, freedom = crossed_variance(d)
    if variance == 0:
        p = 1.0 if mean == 0 else 0.0
        return Difference(mean, mean, mean, p, len(d), p)
    error = float(np.sqrt(variance))
    low, high = stats.t.interval(1 - LEVEL, freedom, mean, error)
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, float(low), float(high), p, len(d), p)


def crossed_variance(d: Floats) -> tuple[float, float]:
    """Returns the variance of the mean of d, [S, E], and its degrees of freedom; seeds and examples both vary.

    The three parts are estimated from the mean squares of the two-way layout, none below zero. The degrees of freedom
    are Satterthwaite's with the mean square of the seeds in full, which is the careful side: with the seeds' part alone
    they are too many whenever that part comes out too small by chance. Of one seed it is the variance over examples.
    """
    seeds, examples = d.shape
    of_examples = float(d.mean(axis=0).var(ddof=1)) / examples
    if seeds == 1:
        return of_examples, examples - 1.0
    of_seeds = float(d.mean(axis=1).var(ddof=1)) / seeds
    rest = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0, keepdims=True) + d.mean()
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    variance = max(0.0, of_seeds - of_rest) + max(0.0, of_examples - of_rest) + of_rest
    if variance < 1e-24:  # nothing but rounding
        return 0.0, 1.0
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_examples**2 / (examples - 1))
    return variance, freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's method (1979): the family's error stays at the level."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """Returns the differences with the p-values of a family of so many."""
    corrected = holm([each.p for each in differences])
    return [replace(each, p_holm=p) for each, p in zip(differences, corrected, strict=True)]


def to_compressor(block: DataFrame) -> dict[str, Difference]:
    """Returns how each method of one task and target differs from the compressor, corrected over these methods."""
    rows = {method: correct_by_seed(cells) for method, cells in block.groupby("method", sort=False)}
    if COMPRESSOR not in rows:
        return {}
    found = {str(m): difference(right, rows[COMPRESSOR]) for m, right in rows.items() if m != COMPRESSOR}
    known = {method: each for method, each in found.items() if each is not None}
    return dict(zip(known, adjust(list(known.values())), strict=True)) if known else {}


def aggregate(table: DataFrame) -> DataFrame:
    """Returns the interquartile mean of each method's differences to the compressor over all tasks, targets and seeds.

    A value is the test accuracy of a cell minus that of the compressor's cell of the same task, target and seed. The
    interval is a stratified bootstrap over the seeds of each task and target (Agarwal et al. 2021), by scipy; tasks
    with one seed have no spread of their own in it.

    Returns:
        Index: method. Columns: "iqm", "low", "high" in fractions of 1, "blocks", "cells".
    """
    keys = [*BLOCK, "seed"]
    finished = table[table["state"] == "finished"]
    ours = finished[finished["method"] == COMPRESSOR].set_index(keys)["test_accuracy"].rename("compressor")
    others = finished[finished["method"] != COMPRESSOR].join(ours, on=keys, how="inner")
    others = others.assign(value=others["test_accuracy"] - others["compressor"])
    rows = {}
    for method, mine in others.groupby("method", sort=False):
        strata = [group.to_numpy(float) for _, group in mine.groupby(BLOCK, sort=False)["value"]]
        low, high = _interval(strata)
        value = float(stats.trim_mean(np.concatenate(strata), 0.25))
        rows[method] = {"iqm": value, "low": low, "high": high, "blocks": len(strata), "cells": len(mine)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["iqm", "low", "high", "blocks", "cells"])


def _interval(strata: Sequence[Floats]) -> tuple[float, float]:
    several = [each for each in strata if len(each) > 1]
    if not several:
        return float("nan"), float("nan")
    single = np.concatenate([np.empty(0), *[each for each in strata if len(each) == 1]])

    def middle(*samples: Floats, axis: int = -1) -> Floats:
        alone = np.broadcast_to(single, (*samples[0].shape[:-1], len(single)))
        found: Floats = stats.trim_mean(np.concatenate([*samples, alone], axis=-1), 0.25, axis=-1)
        return found

    with np.errstate(invalid="ignore"):
        found = stats.bootstrap(
            several, middle, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
    return float(found.low), float(found.high)
