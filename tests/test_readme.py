"""The README: two commands in its quick start, and examples that run as they stand."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from studies.design.cell import cells_of
from studies.experiments import claims
from studies.report import readme as summary

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Returns the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def run_example(mark: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs the Python block after `<!-- example: mark -->` in `folder` and returns its variables."""
    (code,) = re.findall(rf"<!-- example: {mark} -->\n```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_quick_start_is_two_command_lines():
    commands = blocks("sh")
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert subprocess.run(["sh", "-n", "-c", command]).returncode == 0
    assert "autocompress compress lenet5 --data digits --target 4KB" in commands[0]
    assert "pytest" in commands[1]
    assert README.index("## Quick start") < README.index(commands[0]) < README.index("## Results")


def test_ci_runs_the_second_command(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text("```sh\nexit 3\n```\n```sh\necho second; exit 7\n```\n", encoding="utf-8")
    outcome = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (7, "+ echo second; exit 7\nsecond\n")


def test_every_python_block_is_an_example_that_is_tested():
    assert len(blocks("python")) == README.count("<!-- example: ") == 3


def test_the_study_of_the_readme_is_one(tmp_path, monkeypatch):
    names = run_example("study", tmp_path, monkeypatch)
    cells = cells_of(names["SPEC"])
    assert len(cells) == 3 * 2 * 5
    assert {cell.trials for cell in cells} == {0, 10}


def test_the_transformer_in_its_own_loop(tmp_path, monkeypatch):
    names = run_example("loop", tmp_path, monkeypatch)
    path = tmp_path / "reverser.safetensors"
    weights = sum(parameter.numel() for parameter in names["model"].parameters())
    assert path.stat().st_size <= 0.10 * 4 * weights
    assert names["dense_accuracy"] > 0.95
    assert names["accuracy"](names["net"]) >= names["dense_accuracy"] - 0.02
    assert names["net"].head.weight is names["net"].embedding.weight
    with torch.no_grad():
        batch = next(names["batches"](1, seed=3))["symbols"]
        assert torch.equal(names["net"].eval()(batch), names["result"].model.eval()(batch))


def test_compress_in_python(tmp_path, monkeypatch):
    from autocompress.training.recipe import Recipe

    short = Recipe("sgd", 0.1, momentum=0.93, batch_size=256, reference_epochs=1, compress_epochs=1)
    monkeypatch.setattr("autocompress.task.named_task.recipe_for", lambda *_: short)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    names = run_example("compress", tmp_path, monkeypatch)
    assert (tmp_path / "lenet5.safetensors").stat().st_size == len(names["result"].data) <= 4000
    assert "classifier.0.weight" in names["result"].report()


def test_the_results_are_the_table_of_the_records():
    (block,) = re.findall(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, flags=re.DOTALL)
    assert block == summary.sizes()


def test_the_table_of_the_studies_is_that_of_their_records():
    (block,) = re.findall(r"<!-- studies -->\n(.*?)\n<!-- /studies -->", README, flags=re.DOTALL)
    assert block == summary.summary()


def test_the_table_of_the_family_is_that_of_its_records():
    (block,) = re.findall(r"<!-- family -->\n(.*?)\n<!-- /family -->", README, flags=re.DOTALL)
    assert block == summary.family()


def test_the_page_of_claims_is_that_of_the_records():
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page()
