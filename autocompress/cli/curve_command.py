"""`autocompress curve`: one network compressed to several targets; accuracy against bytes as table, figure and page."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.cli.compress_command import (
    arguments,
    checked,
    claim_folder,
    config_of,
    modules_of,
    task_of,
    training_data,
    weights_of,
)
from autocompress.cli.console import to_json
from autocompress.codec.atomic_write import write_whole
from autocompress.integrations.page import Cell, Line, cards, facts, lines, number, percent, size, standalone, table
from autocompress.integrations.page import whole_page as whole
from autocompress.integrations.ray_train import check_address, connected
from autocompress.integrations.run_page import as_csv
from autocompress.solver.compression import compress
from autocompress.solver.compressor import check_target
from autocompress.targets import Targets, combined
from autocompress.training.checkpoint import CHECKPOINT_NAME
from autocompress.training.reference import starting_network

# A point on a cluster is begun anew, or goes on from its checkpoint, after so many lost nodes.
MAX_LOSSES = 8
# Of the record of a point, in the order of the table.
COLUMNS = ("target", "file_bytes", "reference_accuracy", "validation_accuracy", "test_accuracy", "gradient_steps",
           "wall_seconds")  # fmt: skip


def curve_command(options: Namespace) -> str:
    """Compresses to each target that is not done yet, and returns the table, or the JSON object.

    Everything that can be wrong with the command is found before anything is trained.

    Raises:
        InvalidInputError, InfeasibleTargetError: the command asks for what cannot be.
    """
    targets = list(dict.fromkeys(combined(target) for target in options.target))
    if options.ray_address is not None:
        check_address(options.ray_address)
    task = task_of(options)
    training_data(options, task)
    for target in targets:
        check_target(task.make_model(), target, **checked(options, task))
    claim_folder(options.out, options, None)
    missing = [target for target in targets if read_point(options.out, target) is None]
    if missing:
        model = starting_network(
            task, weights_of(options), seed=options.seed, device=options.device, progress=not options.no_progress
        )
        for target, done in _computed(options, missing, model):
            _keep(options.out, target, done)
            _write_curve(options, targets)
    _write_curve(options, targets)
    points = [point for target in targets if (point := read_point(options.out, target)) is not None]
    if options.json:
        return to_json({"out": str(options.out), "config": config_of(options), "points": points})
    return _as_text(points) + f"\n\n{options.out / 'page.html'}"


def _computed(options: Namespace, targets: list[Targets], model: nn.Module) -> Iterator[tuple[Targets, dict[str, Any]]]:
    """Yields each target with its point, as they are done."""
    if options.ray_address is None:
        for target in targets:
            yield target, compute_point(options, target, model)
        return
    with connected(options.ray_address, 1, modules_of(options)) as ray:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        compute = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_LOSSES)(compute_point)
        network = ray.put(model.cpu())
        asked = Namespace(**vars(options) | {"no_progress": True, "out": options.out.absolute()})
        running = {compute.remote(asked, target, network): target for target in targets}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            try:
                yield running.pop(done), ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # what it would have been in this process


def compute_point(options: Namespace, target: Targets, model: nn.Module) -> dict[str, Any]:
    """Returns the record of one point, its file and its page."""
    task = task_of(options)
    train = training_data(options, task)
    checkpoints = options.out / f"{slug(target)}.checkpoints"
    resume = checkpoints if options.out.is_dir() else None  # not on another machine with another disk
    result = compress(model, train=train, target=target, resume=resume, **arguments(options, task))
    record = result.to_json() | {"config": config_of(options) | {"target": [str(each) for each in target.each]}}
    return {"record": record, "data": result.data, "page": result.to_html(f"{task.name}, {target}")}


def slug(target: Targets) -> str:
    """Returns a target as the name of a file."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", str(target).replace("%", "percent")).strip("-")


def _keep(folder: Path, target: Targets, point: Mapping[str, Any]) -> None:
    """Writes a point; its record comes last, and says that it is done."""
    name = slug(target)
    write_whole(folder / f"{name}.safetensors", point["data"])
    write_whole(folder / f"{name}.html", point["page"].encode())
    write_whole(folder / f"{name}.json", (to_json(point["record"]) + "\n").encode())
    checkpoints = folder / f"{name}.checkpoints"
    (checkpoints / CHECKPOINT_NAME).unlink(missing_ok=True)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()


def read_point(folder: Path, target: Targets) -> dict[str, Any] | None:
    """Returns the record of a point; None where it is not done."""
    record = folder / f"{slug(target)}.json"
    if not record.is_file() or not record.with_suffix(".safetensors").is_file():
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return None
    whole = isinstance(found, dict) and found.keys() >= {*COLUMNS, "metric"} and found["target"] == str(target)
    return found if whole else None


def _split(points: list[dict[str, Any]]) -> tuple[str, str]:
    """Returns the split that all points were scored on, and the name of its score."""
    split = "test" if all(point["test_accuracy"] is not None for point in points) else "validation"
    return split, f"{split}_accuracy"


def _score(point: Mapping[str, Any], name: str) -> str:
    value = point[name]
    if value is None:
        return "not known"
    return percent(value) if point["metric"] == "accuracy" else number(value)


def _factor(point: Mapping[str, Any]) -> float:
    return float(point["original_bytes"]) / float(point["file_bytes"])


def _as_text(points: list[dict[str, Any]]) -> str:
    """Returns the table in the terminal."""
    _, name = _split(points)
    metric = points[0]["metric"]
    rows = [("target", "bytes", "smaller by", metric, "before")]
    for point in points:
        factor = f"{_factor(point):,.1f}x"
        scores = (_score(point, name), _score(point, "reference_accuracy"))
        rows.append((point["target"], f"{point['file_bytes']:,}", factor, *scores))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _write_curve(options: Namespace, targets: list[Targets]) -> None:
    """Writes the table, the figure and the page of all points that are done."""
    points = [point for target in targets if (point := read_point(options.out, target)) is not None]
    if not points:
        return
    write_whole(
        options.out / "curve.csv", as_csv([{name: point[name] for name in COLUMNS} for point in points]).encode()
    )
    figure, page = _page(options, points, len(targets))
    write_whole(options.out / "curve.svg", standalone(figure).encode())
    write_whole(options.out / "page.html", page.encode())


def _page(options: Namespace, points: list[dict[str, Any]], asked: int) -> tuple[str, str]:
    split, name = _split(points)
    metric, reference = points[0]["metric"], points[0]["reference_accuracy"]
    known = sorted((p["file_bytes"], p[name]) for p in points if p[name] is not None)
    title = f"{options.model} on {options.data}: {metric} by size"
    figure = ""
    if known:
        x, y = zip(*known, strict=True)
        series = [Line("compressed", x, y)]
        if reference is not None and len(x) > 1:
            series.append(Line("given network", [x[0], x[-1]], [reference, reference]))
        caption = f"{split.capitalize()} {metric} of each file, against its bytes."
        figure = lines(title, caption, series, "bytes of the file", in_percent=metric == "accuracy", log_x=True)
    rows = [
        [
            Cell(point["target"]),
            Cell(f"{point['file_bytes']:,}", float(point["file_bytes"])),
            Cell(
                f"{point['original_bytes'] / point['file_bytes']:,.1f}x", point["original_bytes"] / point["file_bytes"]
            ),
            Cell(_score(point, name), point[name]),
            Cell(f"{point['gradient_steps']:,}", float(point["gradient_steps"])),
            Cell(f"{point['wall_seconds']:,.1f}", point["wall_seconds"]),
        ]
        for point in points
    ]
    head = ["target", "bytes", "smaller by", f"{split} {metric}", "gradient steps", "seconds"]
    original = points[0]["original_bytes"]
    links = "".join(
        f'<li><a href="{escape(slug(combined(p["target"])))}.html">{escape(p["target"])}</a></li>' for p in points
    )
    smallest, largest = (size(pick(p["file_bytes"] for p in points)) for pick in (min, max))
    body = (
        f'<main>\n<h1>{escape(title)}</h1>\n<p class="finding">{size(original)} in {len(points)} of {asked} '
        f"sizes, from {smallest} to {largest}.</p>\n"
        + cards([("given network", size(original)), (f"its {split} {metric}", _score(points[0], "reference_accuracy"))])
        + f'\n<section class="figures">{figure}</section>\n<section>\n<h2>Points</h2>\n{table("Points", head, rows)}\n'
        + f"<p>What each run did:</p><ul>{links}</ul>\n</section>\n<section>\n<h2>Asked for</h2>\n"
        + facts([(name, ", ".join(v) if isinstance(v, list) else str(v)) for name, v in config_of(options).items()])
        + "</section>\n</main>"
    )
    return figure, whole(title, body)
