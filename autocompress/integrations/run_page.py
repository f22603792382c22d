"""What one run did, as tables, pandas frames, CSV files and one HTML page that needs nothing else."""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.codec.atomic_write import write_whole
from autocompress.codec.size_report import kind_of_raw, size_report
from autocompress.codec.state_coder import code_length
from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.integrations.page import (
    Bar,
    Cell,
    Line,
    bars,
    cards,
    facts,
    lines,
    number,
    pairs,
    percent,
    size,
    table,
    to_json,
    whole_page,
)
from autocompress.network.compressed_tensors import QuantizedTensor

if TYPE_CHECKING:
    from autocompress.solver.result import Result

Row = dict[str, Any]

# Parts of a layer in the coder's words and in those of the page.
PARTS = {
    "positions": "positions",
    "codes": "indices",
    "codebook": "codebooks",
    "grid": "vectors",
    "raw": "kept as it is",
}
# Layers shown one by one in a chart; of more the largest, and the rest together.
LAYERS_SHOWN = 24
# Names in one sentence.
NAMES_SHOWN = 6


def layer_rows(result: Result) -> list[Row]:
    """Returns one row per tensor of the file, in the order of the report: what became of it, and its bytes by part.

    `original_bytes` counts 4 bytes per floating-point element; a row's bytes are ideal code lengths.
    """
    of_part: dict[str, dict[str, float]] = defaultdict(dict)
    for (part, name), bits in code_length(result.state).items():
        if part in PARTS:
            of_part[name][part] = bits / 8
    rows = []
    for name, tensor in result.state.quantized.items():
        elements = math.prod(tensor.shape)
        rows.append(_row(name, "weights", tensor.shape, of_part[name], elements, tensor.nonzeros)
                    | {"codebook": len(tensor.values), "bits": tensor.bits})  # fmt: skip
    for name, vector in result.state.grid.items():
        kept = int((vector.levels != 0).sum())
        rows.append(_row(name, "vector", tuple(vector.levels.shape), of_part[name], vector.levels.numel(), kept))
    for name, raw in result.state.raw.items():
        counted = raw.numel() if raw.is_floating_point() else 0
        kept = int((raw != 0).sum())
        rows.append(_row(name, kind_of_raw(raw), tuple(raw.shape), of_part[name], counted, kept, raw.numel()))
    return rows


def _row(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    parts: Mapping[str, float],
    counted: int,
    kept: int,
    elements: int | None = None,
) -> Row:
    elements = counted if elements is None else elements
    total = sum(parts.values())
    return {
        "name": name,
        "kind": kind,
        "shape": tuple(shape),
        "elements": elements,
        "kept": kept,
        "kept_fraction": kept / elements if elements else 0.0,
        "codebook": None,
        "bits": None,
        **{f"{word.replace(' ', '_')}_bytes": parts.get(part, 0.0) for part, word in PARTS.items()},
        "bytes": total,
        "original_bytes": 4 * counted,
        "factor": 4 * counted / total if counted and total else None,
    }


def history_rows(result: Result) -> list[Row]:
    """Returns one row per optimizer step at which something was measured: a projection, the end of an epoch."""
    found: dict[int, Row] = defaultdict(dict)
    for entry in result.history:
        measured = {("multiplier" if key == "price" else key): value for key, value in entry.items() if key != "step"}
        found[int(entry["step"])] |= measured
    for step, loss in result.curve:
        found[step]["training_loss"] = loss
    for step, loss, score in result.validation_curve:
        found[step] |= {"validation_loss": loss, "validation_score": score}
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    return [{"step": step, **{name: found[step].get(name) for name in names}} for step in sorted(found)]


def as_frame(rows: Sequence[Row], index: str) -> Any:
    """Returns rows as a pandas DataFrame with this column as its index.

    Raises:
        AutocompressError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise AutocompressError('frames need pandas: pip install "autocompress[report]"') from error
    return pandas.DataFrame(list(rows), columns=[*rows[0]] if rows else [index]).set_index(index)


def as_csv(rows: Sequence[Row]) -> str:
    """Returns rows as CSV; a shape is written as 16x3x3."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "x".join(map(str, v)) if isinstance(v, tuple) else v for k, v in row.items()})
    return text.getvalue()


def save_report(result: Result, folder: str | Path, title: str) -> None:
    """Writes `page.html`, `layers.csv`, `history.csv` and `run.json` into a folder, which is made.

    Raises:
        InvalidInputError: the folder cannot be made or written.
    """
    files = {
        "page.html": run_page(result, title),
        "layers.csv": as_csv(layer_rows(result)),
        "history.csv": as_csv(history_rows(result)),
        "run.json": to_json(result.to_json()) + "\n",
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(Path(folder) / name, text.encode())
    except OSError as error:
        raise InvalidInputError(f"the report cannot be written into {str(folder)!r}: {error.strerror}") from error


def run_page(result: Result, title: str = "Compressed network") -> str:
    """Returns the page of a run; charts that would be empty are left out."""
    rows = layer_rows(result)
    report = size_report(result.state, result.data, result.model)
    container = report.overhead_bytes + report.parts["header"]
    body = [
        f"<main>\n<header>\n<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(headline(result, report.original_bytes))}</p>',
        cards(_cards(result, report.original_bytes)),
        "</header>",
        '<section class="figures">',
        *_size_charts(rows, container),
        *_run_charts(result),
        "</section>",
        f"<section>\n<h2>What was given up</h2>\n<ul>{''.join(f'<li>{escape(s)}</li>' for s in given_up(result))}</ul>",
        _candidates(result),
        "</section>",
        "<section>\n<h2>Tensors</h2>",
        "<p>A click on a column's head sorts by it. Bytes are ideal code lengths; the file adds "
        f"{size(container)} of header and container.{_small(rows)}</p>",
        _layer_table([row for row in rows if _is_large(row)]),
        "</section>",
        "<section>\n<h2>The run</h2>",
        facts(_facts(result)),
        "</section>\n</main>",
    ]
    return whole_page(title, "\n".join(part for part in body if part))


def score_text(result: Result, value: float) -> str:
    """Returns a score as people write it: of accuracy in percent."""
    return percent(value) if result.metric == "accuracy" else number(value)


def headline(result: Result, original_bytes: float) -> str:
    """Returns the outcome in one sentence."""
    factor = original_bytes / result.file_bytes
    said = f"{size(original_bytes)} became {size(result.file_bytes)}, {factor:,.1f} times smaller"
    before, after, split = scores_of(result)
    if before is None or after is None:
        return said + "."
    return f"{said}; {split} {result.metric} went from {score_text(result, before)} to {score_text(result, after)}."


def scores_of(result: Result) -> tuple[float | None, float | None, str]:
    """Returns the score before and after on one split, and its name."""
    split = result.reference_split or "validation"
    after = result.test_accuracy if split == "test" else result.validation_accuracy
    return result.reference_accuracy, after, split


def _cards(result: Result, original_bytes: float) -> list[tuple[str, str]]:
    compressed = result.state.quantized.values()
    weights, kept = sum(math.prod(t.shape) for t in compressed), sum(t.nonzeros for t in compressed)
    found = [
        ("file", f"{result.file_bytes:,} bytes"),
        ("of the original", percent(result.file_bytes / original_bytes)),
    ]
    if weights:
        found.append(("of the weights are not zero", percent(kept / weights, 1)))
        found.append(("per weight of the network", f"{8 * result.file_bytes / weights:.2f} bits"))
    before, after, split = scores_of(result)
    if after is not None:
        found.append((f"{split} {result.metric}", score_text(result, after)))
    if before is not None:
        found.append((f"{split} {result.metric} before", score_text(result, before)))
    return found


def _size_charts(rows: Sequence[Row], container: float) -> list[str]:
    names = [f"{word.replace(' ', '_')}_bytes" for word in PARTS.values()]
    sums = [sum(row[name] for row in rows) for name in names]
    by_part = [
        Bar(word, tuple(total if place == other else 0.0 for other in range(len(names))), size(total))
        for place, (word, total) in enumerate(zip(PARTS.values(), sums, strict=True))
        if total >= 1
    ]
    by_part.append(Bar("header and container", (0.0,) * len(names) + (container,), size(container)))
    found = [
        bars(
            "Bytes by part",
            "Positions say which weights are not zero, indices which value of its codebook each of them has. "
            "Vectors are biases and the parameters of norms.",
            [],
            by_part,
        )
    ]
    shown = _largest(rows, names)
    words = [word for word, name in zip(PARTS.values(), names, strict=True) if any(row[name] >= 1 for row in shown)]
    used = [name for name in names if any(row[name] >= 1 for row in shown)]
    found.append(
        bars(
            "Bytes by layer",
            "",
            words,
            [Bar(row["name"], tuple(row[name] for name in used), size(row["bytes"])) for row in shown],
        )
    )
    weights = _largest([row for row in rows if row["kind"] == "weights"], names)
    if weights:
        kept = [
            Bar(
                row["name"],
                (row["kept_fraction"],),
                percent(row["kept_fraction"], 1),
                f"{row['name']}: {row['kept']:,} of {row['elements']:,} weights are not zero",
            )
            for row in weights
        ]
        found.append(bars("Weights that are not zero, by layer", "", [], kept, full=1.0))
    before, after = sum(row["original_bytes"] for row in rows), sum(row["bytes"] for row in rows)
    if before and after:
        found.append(
            pairs(
                "Shares of the network, before and after",
                "Each layer's part of all bytes. Where the second bar is the shorter one, the layer was compressed by "
                "more than the network as a whole. On the right: by how much.",
                ["original", "compressed"],
                [
                    Bar(
                        row["name"],
                        (row["original_bytes"] / before, row["bytes"] / after),
                        f"{row['original_bytes'] / row['bytes']:,.1f}x" if row["bytes"] else "nothing left",
                        f"{row['name']}: {percent(row['original_bytes'] / before, 1)} of the original, "
                        f"{percent(row['bytes'] / after, 1)} of the file",
                    )
                    for row in shown
                    if row["original_bytes"]
                ],
            )
        )
    return found


def _largest(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Returns the largest rows in their order, those under a byte and those beyond the limit together in the last."""
    order = sorted(rows, key=lambda row: max(row["bytes"], row["original_bytes"] / 1e6), reverse=True)
    chosen = {row["name"] for row in order[:LAYERS_SHOWN] if row["bytes"] >= 1 or row["kind"] == "weights"}
    rest = [row for row in rows if row["name"] not in chosen]
    shown = [row for row in rows if row["name"] in chosen]
    if not rest or sum(row["bytes"] + row["original_bytes"] for row in rest) < 1:
        return shown
    together: Row = {name: sum(row[name] for row in rest) for name in (*names, "bytes", "original_bytes", "kept")}
    elements = sum(row["elements"] for row in rest)
    together |= {
        "name": f"{len(rest)} more",
        "elements": elements,
        "kept_fraction": together["kept"] / max(1, elements),
    }
    return [*shown, together]


def _run_charts(result: Result) -> list[str]:
    found = []
    finite = [point for point in result.validation_curve if all(map(math.isfinite, point))]
    accuracy = result.metric == "accuracy"
    before = result.validation_reference
    if finite:
        steps = [float(step) for step, *_ in finite]
        series = [Line("compressed network", steps, [score for *_, score in finite])]
        if before is not None and math.isfinite(before) and len(steps) > 1:
            series.append(Line("given network", [steps[0], steps[-1]], [before, before]))
        found.append(
            lines(
                f"Validation {result.metric} along the run",
                "Of the network that would have been written at that moment.",
                series,
                "optimizer step",
                in_percent=accuracy,
            )
        )
    losses = [
        Line(name, [float(x) for x, _ in points], [y for _, y in points])
        for name, points in (
            ("training", [point for point in result.curve if math.isfinite(point[1])]),
            ("validation", [(step, loss) for step, loss, _ in finite]),
        )
        if points
    ]
    if losses and max(len(line.x) for line in losses) > 1:
        taught = " That of training includes the distillation from the given network, where there is one."
        found.append(lines("Loss along the run", f"After each epoch.{taught}", losses, "optimizer step"))
    sizes = [(entry["step"], entry["file_bytes"]) for entry in result.history if entry.get("file_bytes", 0) > 0]
    if len(sizes) > 1:
        caption = "By the estimate that the projections work with; the file itself is measured at the end."
        x, y = zip(*sizes, strict=True)
        found.append(lines("Bytes of the file along the run", caption, [Line("file", x, y)], "optimizer step"))
    kept = [(entry["step"], entry["nonzeros"]) for entry in result.history if entry["nonzeros"] > 0]
    if len(kept) > 1:
        x, y = zip(*kept, strict=True)
        found.append(lines("Weights that are not zero, along the run", "", [Line("weights", x, y)], "optimizer step"))
    residual = [(entry["step"], entry["residual"]) for entry in result.history if entry["residual"] > 0]
    if len(residual) > 1:
        x, y = zip(*residual, strict=True)
        found.append(
            lines(
                "Distance of the trained weights to the compressed ones",
                "||W - V|| at each projection.",
                [Line("distance", x, y)],
                "optimizer step",
            )
        )
    tried = [(s, v) for s, v in (result.promise or {}).get("tried", ()) if math.isfinite(v)]
    if len(tried) > 1:
        tried.sort()
        x, y = zip(*tried, strict=True)
        limit = result.promise["limit"]  # type: ignore[index]
        series = [Line("files tried", x, y, "dots"), Line("allowed", [x[0], x[-1]], [limit, limit])]
        by_accuracy = accuracy and str(result.target.quality).startswith("drop")
        title = "Files that were tried for the quality constraint"
        found.append(
            lines(title, "On validation data.", series, "bytes of the file", in_percent=by_accuracy, log_x=True)
        )
    return found


def given_up(result: Result) -> list[str]:
    """Returns what the smaller file cost, in sentences."""
    found = []
    before, after, split = scores_of(result)
    if before is not None and after is not None:
        change = (
            f"{100 * (after - before):+.2f} points" if result.metric == "accuracy" else f"{after - before:+.4g}"
        ).replace("-", "\N{MINUS SIGN}")
        found.append(
            f"{split.capitalize()} {result.metric}: {score_text(result, before)} before, {score_text(result, after)} "
            f"after ({change})."
        )
    compressed = result.state.quantized
    weights, kept = sum(math.prod(t.shape) for t in compressed.values()), sum(t.nonzeros for t in compressed.values())
    if weights:
        values = sum(len(t.values) for t in compressed.values())
        what = "values" if all(isinstance(t, QuantizedTensor) for t in compressed.values()) else "entries"
        zero = percent((weights - kept) / weights, 1)
        found.append(
            f"{weights - kept:,} of {weights:,} weights ({zero}) are zero; the others take one of {values:,} {what} of "
            f"{len(compressed)} codebook{'s' * (len(compressed) != 1)}."
        )
    if result.promise is not None:
        kept_or_not = "is kept" if result.promise["kept"] else "is NOT kept by any network that was seen"
        found.append(f"The quality constraint {result.target.quality} {kept_or_not}.")
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in result.selection.raw.items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        found.append(f"Not compressed, {reason}: {', '.join(names[:NAMES_SHOWN])}{more}.")
    if result.outcome is not None:
        found += [f"{note[:1].upper()}{note[1:]}." for note in result.outcome.notes]
    return found


def _candidates(result: Result) -> str:
    """Returns the networks that the run chose between; nothing where there was no choice."""
    outcome = result.outcome
    if outcome is None or len(outcome.scores) < 2:
        return ""
    rows = [
        [
            Cell(name),
            Cell(number(score), score if math.isfinite(score) else None),
            Cell("yes" * (name == outcome.chosen)),
        ]
        for name, score in outcome.scores.items()
    ]
    # By the loss scores are negative, so that higher is better as of any score.
    head = ["network", "score, higher is better", "written"]
    lead = f"<p>The network that was written is the best of these by {escape(outcome.judged_by)}.</p>"
    return lead + table("Candidates", head, rows)


def _is_large(row: Row) -> bool:
    """Tells whether a tensor has a row of its own on the page."""
    return row["kind"] == "weights" or bool(row["bytes"] >= 1)


def _small(rows: Sequence[Row]) -> str:
    """Returns what is said of the tensors without a row."""
    count = sum(not _is_large(row) for row in rows)
    return f" {count} more tensors take less than a byte each, such as statistics folded into norms." if count else ""


def _layer_table(rows: Sequence[Row]) -> str:
    head = ["tensor", "kind", "shape", "not zero", "of all", "values", "bits", "positions", "indices", "codebook",
            "bytes", "smaller by"]  # fmt: skip

    def figure(value: float | None, text: str) -> Cell:
        return Cell(text if value is not None else "", value)

    cells = []
    for row in rows:
        weights, others = row["kind"] == "weights", row["bytes"]
        cells.append(
            [
                Cell(row["name"]),
                Cell(row["kind"]),
                Cell(" x ".join(map(str, row["shape"])) or "one number"),
                Cell(f"{row['kept']:,}", float(row["kept"])),
                Cell(percent(row["kept_fraction"], 1), row["kept_fraction"]),
                figure(row["codebook"], f"{row['codebook']}"),
                figure(row["bits"], f"{row['bits']}"),
                *(
                    figure(row[name] if weights else None, f"{row[name]:,.0f}")
                    for name in ("positions_bytes", "indices_bytes", "codebooks_bytes")
                ),
                Cell(f"{others:,.0f}" if others >= 0.5 or not others else f"{others:.1f}", others),
                figure(row["factor"], "" if row["factor"] is None else f"{row['factor']:,.1f}x"),
            ]
        )
    return table("Tensors", head, cells)


def _facts(result: Result) -> list[tuple[str, str]]:
    seconds = result.wall_seconds
    outcome = result.outcome
    found = [
        ("target", str(result.target)),
        ("file", f"{result.file_bytes:,} bytes"),
        ("gradient steps", f"{result.gradient_steps:,}"),
        (
            "time",
            "" if seconds is None else f"{seconds:,.1f} seconds" if seconds < 600 else f"{seconds / 60:,.0f} minutes",
        ),
        ("device", result.device or ""),
        ("seed", "" if result.seed is None else str(result.seed)),
        ("network written", "" if outcome is None else outcome.chosen),
        ("decided by", "" if outcome is None else outcome.judged_by),
        ("energy", "" if result.energy is None else str(result.energy)),
    ]
    return [(name, value) for name, value in found if value]
