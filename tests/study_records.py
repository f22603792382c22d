"""Made-up records of studies: accuracies, sizes and curves that look like real ones, the same on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from studies.records.record import Record, pack
from studies.report.frame import check_frame, frame_of
from studies.report.tables import summarize, to_csv, to_latex, to_markdown
from studies.report.write import make_report

SKILL = {
    "compressor": 0.972,
    "uniform": 0.905,
    "magnitude": 0.94,
    "random": 0.955,
    "optuna-tpe": 0.966,
    "optuna-cmaes": 0.962,
    "optuna-gp": 0.964,
    "optuna-nsga2": 0.956,
    "ray-optuna": 0.965,
    "ray-asha": 0.968,
    "ray-pbt": 0.958,
}
LAYERS = {
    "features.0.weight": (20, 1, 5, 5),
    "features.2.weight": (50, 20, 5, 5),
    "classifier.0.weight": (500, 800),
    "classifier.2.weight": (10, 500),
}


def make_record(method="compressor", seed=0, target="4KB", task="lenet5-digits", *, examples=360, skill=None) -> Record:
    """Returns a finished record; `skill` is its chance of being right on an example of middling difficulty."""
    digest = hashlib.sha256(f"{task} {method} {target} {seed}".encode()).digest()
    generator = np.random.default_rng(list(digest[:8]))
    hard = np.random.default_rng([examples, len(task)]).random(examples)
    skill = SKILL[method] if skill is None else skill
    size = 1000 * float(target.removesuffix("KB"))
    right = hard < skill - 0.02 * (size < 3000) + 0.012 * generator.standard_normal(examples)
    reference = hard < 0.985 + 0.005 * np.random.default_rng(seed).standard_normal(examples)
    file_bytes = int(size * (1 - 0.02 * generator.random()))
    searched = 0 if method == "compressor" else (36000 if method in ("optuna-tpe", "ray-asha") else 7200)
    validation = float(np.clip(right.mean() + 0.004 * generator.standard_normal(), 0, 1))
    return Record(
        study="digits",
        spec_hash="5f2a91c0",
        task=task,
        method=method,
        target=target,
        seed=seed,
        state="finished",
        revision="0123456789",
        versions={"python": "3.11.7", "torch": "2.15.0", "optuna": "5.0.0", "ray": "2.60.0"},
        device="cpu",
        threads=1,
        started=f"2026-01-0{1 + seed}T12:00:00+00:00",
        wall_seconds=20.0 + searched / 400,
        reference_accuracy=float(reference.mean()),
        test_accuracy=float(right.mean()),
        reference_validation_accuracy=0.985,
        validation_accuracy=validation,
        reference_correct=pack(reference),
        correct=pack(right),
        examples=examples,
        file_bytes=file_bytes,
        entropy_bytes=file_bytes - 77.0,
        weight_data_bytes=round(0.45 * file_bytes, 1),
        original_bytes=1724320,
        layers=_layers(file_bytes, generator),
        parts=_parts(file_bytes, generator),
        gradient_steps=3600,
        search_gradient_steps=searched,
        device_seconds=round(18.0 + searched / 420, 2),
        peak_memory_bytes=400_000_000,
        curve=[[30 * epoch, round(2.0 / epoch, 4)] for epoch in range(1, 121)],
        anytime=_anytime(searched, validation, generator),
        history=_history(generator) if method == "compressor" else [],
        trials={} if method == "compressor" else {"complete": searched // 150},
    )


def _layers(file_bytes, generator):
    rows = []
    for (name, shape), share, codebook in zip(LAYERS.items(), (0.05, 0.3, 0.55, 0.1), (14, 7, 4, 10), strict=True):
        size = file_bytes * share * generator.uniform(0.8, 1.2)
        kept = int(min(0.9 * np.prod(shape), size * 1.4))
        bits = int(np.ceil(np.log2(codebook)))
        row = {"name": name, "shape": list(shape), "kept": kept, "codebook": codebook, "bits": bits}
        rows.append({**row, "bytes": round(size, 1)})
    return rows


def _parts(file_bytes, generator):
    positions = 0.55 * generator.uniform(0.9, 1.1) * (file_bytes - 230)
    codes = file_bytes - 230 - positions - 90
    return {
        "positions": round(positions, 1),
        "codes": round(codes, 1),
        "codebook": 60.0,
        "grid": 90.0,
        "raw": 0.0,
        "header": 93.0,
        "overhead": 77.0,
    }


def _anytime(searched, validation, generator):
    trials = searched // 150
    found = np.maximum.accumulate(validation - 0.002 - 0.12 * generator.random(trials) ** 2) if trials else []
    return [[150 * (number + 1), round(float(best), 4)] for number, best in enumerate(found)]


def _history(generator):
    steps = np.arange(0, 2881, 96)
    price = 1e-5 * np.exp(steps / 1200) * np.exp(0.03 * generator.standard_normal(len(steps)))
    residual = 12 * np.exp(-steps / 700) * np.exp(0.05 * generator.standard_normal(len(steps)))
    return [
        {"step": float(s), "residual": float(r), "error": float(r * r / 2), "price": float(p), "nonzeros": 9000.0 - s}
        for s, r, p in zip(steps, residual, price, strict=True)
    ]


def make_study(methods=tuple(SKILL), targets=("4KB", "2KB"), seeds=range(5), tasks=("lenet5-digits",), **more):
    """Returns the records of a whole study, in the order of a table."""
    return [
        make_record(method, seed, target, task, **more)
        for task in tasks
        for target in targets
        for method in methods
        for seed in seeds
    ]


def framed(records, keys=None, **settings):
    """Returns (the table of the records, its summary), checked; of these cells, or of those of the records."""
    table = frame_of(records, keys or [record.key for record in records])
    check_frame(table, **settings)
    return table, summarize(table)


def written(records, keys=None, **settings):
    """Returns the text of each file of tables; the study asks for these cells, or for those of the records."""
    table, summary = framed(records, keys, **settings)
    report = make_report(table, summary)
    said = [line for line in (report.finding, *report.claims) if line]
    return {
        "table.md": to_markdown("golden", report.tables, report.notes, said),
        "table.csv": to_csv(summary),
        "table.tex": to_latex("golden", report.tables),
    }


def small_study(**more):
    """Returns four records: two methods, two seeds."""
    return make_study(methods=("compressor", "uniform"), targets=("4KB",), seeds=range(2), **more)


def failure(record):
    """Returns the record of the same cell, had it failed."""
    empty = {"test_accuracy": None, "validation_accuracy": None, "file_bytes": None, "correct": "", "layers": []}
    return replace(record, state="failed", error="Traceback: out of memory", **empty)
