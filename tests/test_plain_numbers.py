"""Numbers of numpy and torch are taken as Python's own, wherever they enter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_task import batches, make_shallow_model, train_reference

import autocompress as ac
from autocompress.errors import whole_number
from autocompress.targets import parse_target
from autocompress.training.checkpoint import load_checkpoint, save_checkpoint
from autocompress.training.recipe import Recipe, real_number

pytestmark = pytest.mark.any_file

NUMPY_RECIPE = Recipe("sgd", np.float64(0.05), momentum=np.float32(0.5), batch_size=np.int32(16))


def test_a_run_with_numpy_numbers_can_be_resumed_and_gives_the_same_file(tmp_path: Path) -> None:
    def run(number, real, folder: str) -> ac.Result:
        return ac.compress(
            make_shallow_model(),
            train=batches(96, 1, shuffle=True),
            target="50%",
            epochs=number(2),
            seed=number(3),
            resume=tmp_path / folder,
            recipe=Recipe("sgd", real(0.05)),
            progress=False,
            device="cpu",
        )

    ours, numpys = run(int, float, "python"), run(np.int64, np.float64, "numpy")
    assert load_checkpoint(tmp_path / "numpy" / "compress.checkpoint")["epoch"] == 2
    assert run(np.int64, np.float64, "numpy").data == numpys.data == ours.data
    assert json.dumps(numpys.to_json()["seed"]) == "3"


def test_a_recipe_holds_plain_numbers() -> None:
    assert type(NUMPY_RECIPE.learning_rate) is type(NUMPY_RECIPE.momentum) is float
    assert type(NUMPY_RECIPE.batch_size) is int
    assert Recipe("sgd", np.float64(0.05)).key() == Recipe("sgd", 0.05).key()


def test_a_compressor_notes_plain_numbers() -> None:
    model = make_shallow_model()
    compressor = ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="50%", total_steps=np.int64(5))
    assert type(compressor.state_dict()["total_steps"]) is int


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (lambda: ac.FileSize(np.int64(5000)), "5000B"),
        (lambda: ac.WeightBits(factor=np.float32(8.5)), "weights:8.5x"),
        (lambda: ac.WeightBits(bits=np.int64(900)), "weights:900bits"),
        (lambda: ac.Energy(np.float32(0.25)), "energy:25%"),
        (lambda: ac.AccuracyDrop(np.float64(0.5)), "drop:0.5"),
        (lambda: ac.LossIncrease(np.int32(2)), "loss:+2%"),
    ],
)
def test_targets_take_numbers_of_numpy(target, text: str) -> None:
    assert target() == parse_target(text)
    assert str(target()) == text


@pytest.mark.parametrize("value", [2.5, "3", None, True, [3], np.float64(2)])
def test_what_is_no_whole_number_is_named(value) -> None:
    with pytest.raises(ac.InvalidInputError, match=r"epochs is .*; it must be a whole number of at least 1"):
        whole_number("epochs", value, 1)


def test_a_number_of_any_library() -> None:
    assert whole_number("epochs", np.uint8(3), 1) == whole_number("epochs", torch.tensor(3), 1) == 3
    assert real_number("rate", torch.tensor(0.5)) == real_number("rate", np.float16(0.5)) == 0.5
    with pytest.raises(ac.InvalidInputError, match=r"rate is '0\.5'; it must be a number"):
        real_number("rate", "0.5")


def test_a_checkpoint_that_could_not_be_read_is_refused_when_it_is_written(tmp_path: Path) -> None:
    state = {"log": {"losses": [0.5, np.float64(0.25)]}, "model": {"w": torch.ones(2)}}
    with pytest.raises(
        ac.InvalidInputError, match=r"could never be read: the state\['log'\]\['losses'\]\[1\] is a numpy\.float64"
    ):
        save_checkpoint(tmp_path / "run.checkpoint", state)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_is_trained_as_before() -> None:
    from small_task import make_task

    task = make_task(recipe=Recipe("sgd", 0.1, batch_size=32, reference_epochs=1))
    again = make_task(recipe=Recipe("sgd", np.float64(0.1), batch_size=np.int64(32), reference_epochs=np.int64(1)))
    assert torch.equal(train_reference(task)[0].weight, train_reference(again)[0].weight)
