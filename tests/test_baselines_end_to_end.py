"""`python -m baselines search` as a user runs it, on a network and data of their own, with nothing put in its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from processes import Script
from small_task import RECIPE, make_shallow_model, make_task

from autocompress.codec.file import load
from autocompress.training.evaluation import evaluate
from baselines.cli import main
from baselines.methods import METHODS, PLAN_METHODS

TASK = ["small_task:make_shallow_model", "--data", "small_task:loaders"]
SHORT = ["--trials", "4", "--trial-epochs", "1", "--final-epochs", "2", "--no-progress"]
# Those that differ in more than who proposes the numbers: the spaces of their own, one sampler, one scheduler.
USUAL = ["uniform", "magnitude", "gradual", "optuna-tpe", "ray-asha"]
TESTED_ELSEWHERE = ("optuna-tpe", "ray-asha")  # below, and where a Ray runs already
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in PLAN_METHODS if name not in ("random", *USUAL)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("autocompress.task.recipe_for", lambda *_: RECIPE)
    return tmp_path


def search(capsys, method, *options, target="350B"):
    status = main(["search", method, *TASK, "--target", target, *SHORT, "--out", "net.safetensors", "--json", *options])
    written = capsys.readouterr()
    assert status == 0, written.err
    return json.loads(written.out)


def check(answer, trials):
    """Checks what a search says of itself against the file that it wrote."""
    path = Path("net.safetensors")
    assert path.stat().st_size == answer["file_bytes"] <= 350
    net = load(path, into=make_shallow_model())
    assert evaluate(net, make_task().test).metric == answer["test_accuracy"]
    assert evaluate(net, make_task().validation).metric == answer["validation_accuracy"]
    assert answer["gradient_steps"] == 2 * 10
    assert answer["search_gradient_steps"] == sum(trial["gradient_steps"] for trial in answer["trials"])
    assert len(answer["trials"]) == trials
    assert all(0 < trial["size"] <= 350 for trial in answer["trials"] if trial["state"] == "complete")
    assert answer["plan"] == answer["trials"][answer["best_trial"]]["plan"]
    assert [layer["kept"] > 0 for layer in answer["layers"]] == [True] * 2


def check_search(capsys, method):
    """Checks that a search on the command line writes a file that uses the target."""
    trials = max(4, METHODS[method].least_trials)
    answer = search(capsys, method, "--trials", str(trials))
    check(answer, trials)
    # The file's limit is 347 bytes: its reserve is for values that move in the last phase.
    assert answer["file_bytes"] >= 0.97 * 347
    if method == "optuna-nsga2":
        sizes = [point["size"] for point in answer["front"]]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("method", [name for name in USUAL if name not in TESTED_ELSEWHERE] + OTHERS)
def test_every_search_writes_a_file_within_the_target(method, here, capsys):
    check_search(capsys, method)


@pytest.mark.parametrize(
    "space", ["price", *(pytest.param(name, marks=pytest.mark.slow) for name in ("per-layer", "block", "global"))]
)
def test_every_space(space, here, capsys):
    answer = search(capsys, "random", "--space", space)
    check(answer, 4)
    assert answer["space"] == space


def test_weight_data_is_a_target_too(here, capsys):
    assert search(capsys, "magnitude", target="weights:60x")["weight_data_bytes"] <= 4 * 736 / 60


@pytest.mark.parametrize("method", ["optuna-tpe", pytest.param("optuna-gp", marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_file_in_a_fresh_process(method, here, capsys):
    check(search(capsys, method), 4)
    script = (
        "import sys, autocompress.task\n"
        "from small_task import RECIPE\n"
        "autocompress.task.recipe_for = lambda *_: RECIPE\n"
        "from baselines.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = Script(script, "search", method, *TASK, "--target", "350B", *SHORT, "--out", "again.safetensors")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert Path("again.safetensors").read_bytes() == Path("net.safetensors").read_bytes()


def test_a_target_that_no_plan_meets_is_found_out_before_training(here, capsys):
    assert main(["search", "random", *TASK, "--target", "75B", *SHORT, "--out", "net.safetensors"]) == 2
    assert "smallest" in capsys.readouterr().err
    assert not (here / "data").exists()


@pytest.mark.parametrize("method", ["uniform", "magnitude"])
def test_so_it_is_where_only_the_bits_are_chosen(method, here, capsys):
    assert main(["search", method, *TASK, "--target", "85B", *SHORT, "--out", "net.safetensors"]) == 2
    least = re.search(r"one weight in each of 2 layers, is (\d+) bytes", capsys.readouterr().err)
    assert least is not None
    assert int(least[1]) > 85
    assert not (here / "data").exists()
    assert not list(here.glob("net.*"))
