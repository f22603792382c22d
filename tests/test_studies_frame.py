"""Records as one table of pandas: what no report may be made from, and the marks of a partial one."""

import csv
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import studies
from autocompress.errors import InvalidInputError
from studies.report.frame import NESTED, flat, frame_of
from tests.study_records import failure, make_record, make_study, small_study, written


def test_a_row_for_each_cell_in_the_order_asked():
    records = small_study()
    keys = [record.key for record in records]
    table = frame_of(records[::-1], [*keys, ("lenet5-digits", "random", "4KB", 0)])
    assert list(table["state"]) == ["finished"] * 4 + ["missing"]
    assert list(table["method"]) == ["compressor", "compressor", "uniform", "uniform", "random"]
    assert list(table["test_accuracy"][:4]) == [record.test_accuracy for record in records]
    assert table["test_accuracy"].isna().tolist() == [False] * 4 + [True]
    assert table["used"][0] == records[0].file_bytes / 4000
    assert table["correct"][0].mean() == pytest.approx(records[0].test_accuracy)
    assert not set(NESTED) & set(flat(table))


@pytest.mark.parametrize(
    ("target", "changes", "used"),
    [
        ("20x", {"original_bytes": 100_000, "file_bytes": 4_900}, 0.98),
        ("weights:10x", {"weight_data_bytes": 36.0}, 0.9),
        ("codes:10x", {"code_bytes": 39.0}, 0.975),
        ("weights:3200bits", {"weight_data_bytes": 40.0}, 0.1),
        ("4KB and energy:40%", {"file_bytes": 3_000}, 0.75),
        ("drop:1", {}, np.nan),
    ],
)
def test_part_of_what_the_target_allows(target, changes, used):
    layer = {"name": "a", "shape": [10, 10], "kept": 5, "codebook": 2, "bits": 1, "bytes": 9.0}
    record = replace(make_record(), target=target, layers=[layer], **changes)
    assert frame_of([record])["used"][0] == pytest.approx(used, nan_ok=True)


def test_what_was_asked_stands_beside_what_came_of_it():
    cell = {"method": "optuna-tpe", "final_epochs": 40, "trials": 50, "trial_epochs": 8, "space": "per-layer",
            "pruner": "none", "budget": 10.0, "fold": 1, "alpha": 0.0}  # fmt: skip
    record = replace(make_record("optuna-tpe"), cell=cell, hardware={"cpu": "Xeon", "gpu": "", "cores": 2})
    row = frame_of([record]).iloc[0]
    assert (row["engine"], row["trials_asked"], row["budget"], row["cpu"], row["cores"]) == (
        "optuna-tpe", 50, 10.0, "Xeon", 2,
    )  # fmt: skip
    assert row["total_steps"] == record.gradient_steps + record.search_gradient_steps


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
    with pytest.raises(InvalidInputError, match="there more than once: lenet5-digits/compressor/4KB/seed 1"):
        written([*records, records[1]], [record.key for record in records])


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


def test_cells_of_two_revisions_or_references_are_not_compared_silently():
    records = small_study()
    other = [*records[:3], replace(records[3], revision="fedcba9876")]
    with pytest.raises(InvalidInputError, match=r"2 revisions .*: 0123456789 \(3\), fedcba9876 \(1\)\. --mixed"):
        written(other)
    text = written(other, mixed=True)["table.md"]
    assert "Mixed: the cells are of 2 revisions of the code: 0123456789 (3), fedcba9876 (1)." in text
    hashed = [replace(record, reference_hash=f"{record.seed:016x}") for record in records]
    assert "Mixed" not in written(hashed)["table.md"]
    hashed[2] = replace(hashed[2], reference_hash="f" * 16)
    with pytest.raises(InvalidInputError, match="different references: lenet5-digits, seed 0"):
        written(hashed)
    folded = replace(hashed[2], cell={"method": "compressor", "fold": 2, "alpha": 0.0})  # it has one of its own
    assert "Mixed" not in written([*hashed[:2], folded, hashed[3]])["table.md"]


def test_many_missing_cells_are_counted():
    keys = [record.key for record in make_study(methods=("compressor",), targets=("4KB",), seeds=range(9))]
    keys += [(task, "uniform", target, seed) for task, _, target, seed in keys]
    with pytest.raises(InvalidInputError, match=r"18 missing: .* and 6 more"):
        written([], keys)


def test_partial_marks_what_is_not_there():
    records = make_study(methods=("compressor", "uniform", "random"), targets=("4KB",))
    keys = [record.key for record in records]
    kept = [r for r in records if r.method != "uniform" or r.seed < 2] + [failure(make_record("uniform", 4))]
    kept = [r for r in kept if r.method != "random"]
    text = written(kept, keys, partial=True)
    rows = {line.split("|")[1].strip(): line for line in text["table.md"].splitlines() if line.startswith("| ")}
    assert "| 2 of 5, 1 failed, 2 missing |" in rows["uniform"]
    assert "undecided" in rows["uniform"]
    assert "0 of 5, 5 missing" in rows["random search"]
    assert "Not complete:" in text["table.md"]
    lines = list(csv.DictReader(io.StringIO(text["table.csv"])))
    assert [(line["seeds"], line["failed"], line["missing"]) for line in lines] == [
        ("5", "0", "0"),
        ("2", "1", "2"),
        ("0", "0", "5"),
    ]
    assert lines[2]["test_accuracy_mean"] == ""
    with pytest.raises(InvalidInputError, match="no cell is finished"):
        written([], keys, partial=True)


@pytest.mark.parametrize("name", ["digits", "family", "lenet5-mnist", "resnet20-cifar10"])
def test_the_committed_tests_by_a_few_lines(name):
    """Intervals, p-values and Holm's correction of table.csv again, from which examples were right."""
    cells = studies.load(name).query("state == 'finished'")  # not yet run: what was asked for after the records
    theirs = pd.read_csv(f"{studies.__path__[0]}/results/{name}/table.csv").set_index(["task", "target", "method"])
    found = {}
    for block, rows in cells.groupby(["task", "target"]):
        right = {
            method: np.stack(mine.sort_values("seed").correct).astype(float) for method, mine in rows.groupby("method")
        }
        for method in set(right) - {"compressor"}:
            d = right[method] - right["compressor"]
            seeds, examples = d.shape
            parts = [d.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0, d.mean(0).var(ddof=1) / examples]
            rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
            rest = (rest**2).sum() / max(1, seeds - 1) / (examples - 1) / d.size
            variance = sum(max(0, part - rest) for part in parts) + rest
            freedom = variance**2 / sum(p**2 / (n - 1) for p, n in zip(parts, d.shape, strict=True) if n > 1)
            low, high = d.mean() + np.array(stats.t(freedom).interval(0.95)) * variance**0.5
            found[*block, method] = low, high, 2 * stats.t(freedom).sf(abs(d.mean()) / variance**0.5)
    assert set(found) == set(theirs.p.dropna().index)
    for (task, target, method), (low, high, p) in found.items():
        row = theirs.loc[(task, target, method)]
        assert [row.interval_low, row.interval_high, row.p] == pytest.approx([low, high, p], rel=1e-5, abs=1e-12)
        family = sorted(value for key, (*_, value) in found.items() if key[:2] == (task, target))
        steps = [(len(family) - rank) * value for rank, value in enumerate(family) if value <= p]
        assert row.p_holm == pytest.approx(min(1, max(steps)), rel=1e-5)
        tried, within = len(cells.query("task == @task and target == @target and method == @method")) > 2, (low, high)
        significant = row.p_holm < 0.05 and tried
        verdict = ("better" if low > 0 else "worse") if significant else "undecided"
        assert row.verdict == (
            "equivalent" if not significant and tried and max(map(abs, within)) <= 0.005 else verdict
        )


@pytest.mark.parametrize("name", ["digits", "family", "lenet5-mnist", "resnet20-cifar10"])
def test_the_committed_tables_by_a_few_lines_of_pandas(name):
    """All numbers of table.csv again, from `studies.load` alone, without a line of the report's code."""
    cells = studies.load(name).query("state == 'finished'")
    cells["difference_to_reference"] = cells.test_accuracy - cells.reference_accuracy
    cells["weight_data_factor"] = [
        sum(4 * np.prod(layer["shape"]) for layer in row.layers) / row.weight_data_bytes for row in cells.itertuples()
    ]
    cells["total_steps"] = cells.gradient_steps + cells.search_gradient_steps
    cells["search_multiple"] = cells.search_gradient_steps / cells.gradient_steps
    groups = cells.groupby(["task", "target", "method"])
    theirs = pd.read_csv(f"{studies.__path__[0]}/results/{name}/table.csv").set_index(["task", "target", "method"])
    theirs = theirs[theirs.seeds > 0]
    means = ("file_bytes", "test_accuracy", "validation_accuracy", "reference_accuracy", "entropy_bytes")
    means += ("weight_data_bytes", "energy", "macs", "latency")
    plain = ("difference_to_reference", "weight_data_factor", "gradient_steps", "search_multiple", "total_steps")
    plain += ("device_seconds",)
    for column, name_there in [*((c, f"{c}_mean") for c in means), *((c, c) for c in plain)]:
        ours, there = groups[column].mean().sort_index(), theirs[name_there].sort_index()
        pd.testing.assert_series_equal(ours, there, check_names=False, check_dtype=False, rtol=1e-6)
    spread = groups.test_accuracy.std().sort_index()
    pd.testing.assert_series_equal(spread, theirs.test_accuracy_sd.sort_index(), check_names=False, rtol=1e-6)
    assert (groups.size().sort_index() == theirs.seeds.sort_index()).all()
    wide = cells.pivot(index=["task", "target", "seed"], columns="method", values="test_accuracy")
    differences = wide.sub(wide["compressor"], axis=0).groupby(["task", "target"]).mean().stack()
    for key, value in theirs.difference_to_compressor.dropna().items():
        assert differences[key] == pytest.approx(value, rel=1e-6, abs=1e-9)
