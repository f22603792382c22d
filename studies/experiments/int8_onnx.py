"""What int8 costs and gives in onnxruntime: a compressed network exported in float32 and in int8, side by side.

    python -m studies.experiments.int8_onnx run resnet20
    python -m studies.experiments.int8_onnx run mobilenet_v3_small
    python -m studies.experiments.int8_onnx table

ResNet-20 on CIFAR-10, from trained weights in the data folder; MobileNetV3 (small) on the digits in three channels of
64 x 64 pixels, trained here. The first is compressed without training, the second for a few epochs; both are saved,
loaded and exported. Latency is the median of one-image calls on one thread, the two models in turn. A record is one
line of `studies/results/int8_onnx.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

import autocompress as ac
from autocompress.network.onnx_export import export_onnx
from autocompress.task import Task, load_task
from autocompress.task.arrays import data_root, load_digits, stratified
from autocompress.task.named_models import load_weights, make_model
from autocompress.training.batches import TensorBatches
from autocompress.training.losses import classification_loss, correct_predictions
from autocompress.training.random_state import seeded
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer
from studies.experiments import store
from studies.experiments.store import Row, add_record, load_records
from studies.records.machine import revision, versions

RECORDS = store.RESULTS / "int8_onnx.jsonl"
CALIBRATION_BATCHES = 4
CALLS = 100
# epochs of compression
NETWORKS = {"resnet20": 0, "mobilenet_v3_small": 10}


def mobilenet_task() -> Task:
    """Returns MobileNetV3 (small) on the digits, 64 x 64 pixels in three channels."""
    images, labels = load_digits()
    large = F.interpolate(images.float() / 255, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    parts = stratified(labels, (0.6, 0.2, 0.2))
    train, validation, test = (
        TensorBatches(large[part], labels[part], batch_size=64, shuffle=shuffle)
        for part, shuffle in zip(parts, (True, False, False), strict=True)
    )

    def make() -> torch.nn.Module:
        with seeded(0):
            return make_model("torchvision:mobilenet_v3_small", 10, 3)

    return Task(
        "mobilenet_v3_small-digits", make, train, validation, test, classification_loss, correct_predictions,
        Recipe(learning_rate=3e-3, compress_learning_rate=1e-3, reference_epochs=25), large[:1],
    )  # fmt: skip


def start(name: str) -> tuple[Task, torch.nn.Module]:
    """Returns a task and its trained network."""
    if name == "resnet20":
        task = load_task("resnet20", "cifar10", device="cpu")
        model = task.make_model()
        load_weights(model, data_root() / "resnet20_cifar10.safetensors")
        return task, model
    task = mobilenet_task()
    model = task.make_model()
    for module in model.modules():  # a slow running mean is that of weights long gone
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    Trainer(model, task.train, recipe=task.recipe, epochs=task.recipe.reference_epochs, device="cpu").fit()
    return replace(task, input_example=task.input_example[:1]), model


def session_of(path: Path) -> Any:
    """Returns a session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def accuracy(session: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Returns the part of right answers."""
    name = session.get_inputs()[0].name
    right = total = 0
    for inputs, labels in batches:
        answers = session.run(None, {name: inputs.numpy()})[0].argmax(1)
        right, total = right + int((answers == labels.numpy()).sum()), total + len(labels)
    return right / total


def latencies(sessions: Sequence[Any], example: Tensor) -> list[float]:
    """Returns milliseconds of a call of each, the median of many, taken in turn."""
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(CALLS):
        for session, times in zip(sessions, found, strict=True):
            started = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: example.numpy()})
            times.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(times) for times in found]


def measured(name: str, target: str) -> Row:
    """Returns the record of a network."""
    task, model = start(name)
    settings: dict[str, Any] = {"loss": task.loss, "metric": task.metric, "recipe": task.recipe, "device": "cpu"}
    result = ac.compress(
        model, train=task.train, val=task.validation, test=task.test, target=target, epochs=NETWORKS[name], **settings
    )
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "net.safetensors")
        network = ac.load(Path(folder) / "net.safetensors", into=task.make_model())
        examples = [inputs for _, (inputs, _) in zip(range(CALIBRATION_BATCHES), task.train, strict=False)]
        paths = [Path(folder) / f"{kind}.onnx" for kind in ("float32", "int8")]
        export_onnx(network, task.input_example, paths[0])
        difference = export_onnx(network, task.input_example, paths[1], calibration=examples)
        sessions = [session_of(path) for path in paths]
        assert task.test is not None
        scores = [accuracy(session, task.test) for session in sessions]
        times = latencies(sessions, task.input_example)
        sizes = [path.stat().st_size for path in paths]
    return {
        "task": task.name,
        "target": target,
        "file_bytes": result.file_bytes,
        "reference_accuracy": result.reference_accuracy,
        "test_accuracy": dict(zip(("float32", "int8"), scores, strict=True)),
        "onnx_bytes": dict(zip(("float32", "int8"), sizes, strict=True)),
        "milliseconds": {kind: round(each, 3) for kind, each in zip(("float32", "int8"), times, strict=True)},
        "difference": difference,
        "input": list(task.input_example.shape),
        "onnxruntime": onnxruntime.__version__,
        "revision": revision(),
        "versions": versions(),
    }


def table(records: Sequence[Row]) -> str:
    """Returns the Markdown table, two rows per record."""
    rows = []
    for record in records:
        for kind in ("float32", "int8"):
            rows.append(
                {
                    "network, target": f"{record['task']}, `{record['target']}`",
                    "ONNX": kind,
                    "bytes": f"{record['onnx_bytes'][kind]:,}",
                    "test accuracy": f"{100 * record['test_accuracy'][kind]:.2f} %",
                    "one image": f"{record['milliseconds'][kind]:.2f} ms",
                }
            )
    return store.table(rows, ("network, target", "ONNX"))


def main() -> None:
    """Measures a network or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("network", choices=NETWORKS)
    runner.add_argument("--target", default="8x")
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "run":
        torch.set_num_threads(1)
        add_record(options.records, measured(options.network, options.target))
        print(json.dumps(load_records(options.records)[-1]), flush=True)
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
