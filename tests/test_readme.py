"""The README and docs: two commands in the quick start, examples that run as they stand, tables of the records."""

import io
import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import small_task
import torch
from PIL import Image

from autocompress.training.recipe import Recipe
from studies.design.cell import cells_of
from studies.experiments import claims
from studies.finding import find_study
from studies.report import readme as summary
from studies.report.names import method_name

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Returns the README's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def run_example(
    page: str, mark: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, updates: int = 150, **given: object
) -> dict[str, Any]:
    """Runs the Python block after `<!-- example: mark -->` of a page in `folder` and returns its variables.

    Where it trains for 150 updates it may be for fewer.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- example: {mark} -->\n```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    code = code.replace("=150", f"={updates}")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example", **given}
    exec(compile(code, page, "exec"), names)
    return names


def test_quick_start_is_two_command_lines():
    commands = blocks("sh")
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert subprocess.run(["sh", "-n", "-c", command]).returncode == 0
    assert "autocompress compress lenet5 --data digits --target 4KB" in commands[0]
    for checked in ("ruff check", "ruff format", "mypy", "pytest"):
        assert f".venv/bin/{checked} " in commands[1].replace("python -m ", "")
    assert README.index("## Quick start") < README.index(commands[0]) < README.index("## Results")


def test_ci_runs_the_second_command(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text("```sh\nexit 3\n```\n```sh\necho second; exit 7\n```\n", encoding="utf-8")
    outcome = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (7, "+ echo second; exit 7\nsecond\n")


def test_every_python_block_is_an_example_that_is_tested():
    assert len(blocks("python")) == README.count("<!-- example: ") == 2


@pytest.mark.any_file
def test_your_own_loop(tmp_path, monkeypatch):
    task = small_task.make_task()
    model = small_task.train_reference(task)
    names = run_example(
        "README.md",
        "loop",
        tmp_path,
        monkeypatch,
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        loss_fn=torch.nn.functional.cross_entropy,
        loader=task.train,
        val_loader=task.validation,
        make_model=task.make_model,
        epochs=1,
    )
    inputs = next(iter(task.validation))[0]
    assert torch.equal(names["net"].eval()(inputs), names["result"].model(inputs))


def test_the_study_of_the_docs_is_one(tmp_path, monkeypatch):
    names = run_example("docs/studies.md", "study", tmp_path, monkeypatch)
    cells = cells_of(names["SPEC"])
    assert len(cells) == 3 * 2 * 5
    assert {cell.trials for cell in cells} == {0, 10}


@pytest.mark.any_file
@pytest.mark.parametrize("updates", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_the_transformer_in_its_own_loop(updates, tmp_path, monkeypatch):
    names = run_example("docs/own-loop.md", "transformer", tmp_path, monkeypatch, updates=updates)
    path = tmp_path / "reverser.safetensors"
    assert names["compressor"].total_steps == names["result"].gradient_steps == updates
    weights = sum(parameter.numel() for parameter in names["model"].parameters())
    assert path.stat().st_size <= 0.10 * 4 * weights
    if updates == 150:
        assert names["dense_accuracy"] > 0.95
        assert names["accuracy"](names["net"]) >= names["dense_accuracy"] - 0.02
    assert names["net"].head.weight is names["net"].embedding.weight
    with torch.no_grad():
        batch = next(names["batches"](1, seed=3))["symbols"]
        assert torch.equal(names["net"].eval()(batch), names["result"].model.eval()(batch))


@pytest.mark.any_file
def test_compress_in_python(tmp_path, monkeypatch):
    short = Recipe("sgd", 0.1, momentum=0.93, batch_size=256, reference_epochs=1, compress_epochs=1)
    monkeypatch.setattr("autocompress.task.recipe_for", lambda *_: short)
    monkeypatch.setattr("autocompress.solver.compression.Recipe", lambda: Recipe(compress_epochs=1))
    # After one epoch calibration might matter; it would take most of the time.
    monkeypatch.setattr("autocompress.solver.compressor.MAX_CALIBRATION_GAIN", 1.0)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    names = run_example("README.md", "compress", tmp_path, monkeypatch)
    assert (tmp_path / "lenet5.safetensors").stat().st_size == len(names["result"].data) <= 4000
    assert "classifier.0.weight" in names["result"].report()


@pytest.mark.parametrize("name", summary.PLACES)
def test_tables_are_those_of_the_records(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert summary.filled(text, summary.PLACES[name]) == text, "run `python -m studies.report.readme`"


def test_the_first_row_says_what_is_in_the_files():
    asked = {cell.hash for cell in cells_of(find_study("digits")[0])}
    methods = defaultdict(list)
    for path in (ROOT / "studies" / "results" / "digits" / "records").glob("lenet5-digits.*.4KB.*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["spec_hash"] in asked and record["state"] == "finished":
            methods[record["method"]].append(record)
    ours = methods["compressor"]
    searches = [rows for rows in methods.values() if rows[0]["search_gradient_steps"] and len(rows) == len(ours)]
    if all(row["validation_loss"] is not None for rows in searches for row in rows):
        best = min(searches, key=lambda rows: mean(row["validation_loss"] for row in rows))
    else:
        best = max(searches, key=lambda rows: mean(row["validation_accuracy"] for row in rows))
    accuracies = [mean(100 * row["test_accuracy"] for row in rows) for rows in (ours, best)]
    row = next(line for line in README.splitlines() if line.startswith("| LeNet-5 on digits") and "`4KB`" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [float(cells[place].split()[0]) for place in (5, 7)] == pytest.approx(accuracies, abs=0.0051)
    assert cells[6] == method_name(best[0]["method"])
    assert float(cells[9].split()[0]) == pytest.approx(accuracies[0] - accuracies[1], abs=0.0051)


def test_the_figure_is_of_the_records():
    numbers = (ROOT / f"{summary.FIGURE}.csv").read_text(encoding="utf-8")
    assert numbers == summary.figure_numbers(), "run `python -m studies.report.readme`"
    drawn = summary.figure().files["png"]
    with Image.open(ROOT / f"{summary.FIGURE}.png") as committed, Image.open(io.BytesIO(drawn)) as now:
        assert committed.size == now.size


def test_the_page_of_claims_is_that_of_the_records():
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page(), "run `python -m studies.report.readme`"


def test_a_place_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="0 places <!-- results --> instead of one"):
        summary.filled("no place", {"results": lambda: "a table"})
    text = "<!-- results -->\nold\nlines\n<!-- /results -->\nrest"
    assert summary.filled(text, {"results": lambda: "new"}) == "<!-- results -->\nnew\n<!-- /results -->\nrest"
