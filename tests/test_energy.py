"""Energy by the analytic model, the target, and networks compressed to it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_task import make_task, train_reference
from torch import nn

import autocompress as ac
from autocompress.cli import main
from autocompress.energy.accelerator import LayerShape, WeightEnergy
from autocompress.energy.network_energy import network_energy
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.targets import Energy, FileSize, combined, parse_target
from autocompress.task.named_models import make_model
from baselines.fitting import make_budget

pytestmark = pytest.mark.any_file

# --- the model ----------------------------------------------------------------------------------------------------


def test_a_convolution_by_hand() -> None:
    # LeNet-5's second: 20 x 5 x 5 -> 50, inputs of 12 x 12, outputs of 8 x 8: 6 passes of 12 rows, 4 of 14 columns.
    shape = LayerShape(20, 50, positions=64, kernel=25, input_size=(12, 12), overlap=4)
    cost = shape.weight_energy()
    assert cost == WeightEnergy(each=200 + 6 * 6 + 64 * (1 + 3), overflow=5 * 200)
    assert cost.of(25_000) == 492 * 25_000 + 1000 * (25_000 - 4096)
    reads = 20 * 25 * 64 * (4 * 6 + 50)
    assert shape.activation_energy() == reads + 200 * (20 * 144 + 50 * 64)
    assert shape.energy() == cost.of(shape.weights) + shape.activation_energy()


def test_a_linear_layer_by_hand() -> None:
    shape = LayerShape(800, 500, positions=1)
    assert shape.weight_energy() == WeightEnergy(200 + 6 + 1 + 3, 0)
    assert shape.activation_energy() == 800 * (36 * 6 + 500) + 200 * (800 + 500)
    wide = LayerShape(60_000, 28, positions=1)  # 8,800 inputs do not fit and come twice, for 14 outputs each time
    assert wide.activation_energy() == 60_000 * (2 * 6 + 28) + 200 * (51_200 + 2 * 8_800 + 28)


def test_rows_that_two_bands_share_are_fetched_twice() -> None:
    # 512 words in a row: the cache holds 100 of 300 rows, bands of 100 share 2, so that 4 bands are needed.
    shape = LayerShape(4, 1, positions=1, kernel=9, input_size=(300, 128), overlap=2)
    fits = LayerShape(4, 1, positions=1, kernel=9, input_size=(100, 128), overlap=2)
    row = 512 * 200
    rest = 4 * 9 * (6 + 1) + 200
    assert shape.activation_energy() == (300 + 3 * 2) * row + rest
    assert fits.activation_energy() == 100 * row + rest


class Odd(nn.Module):
    """A grouped and a strided convolution, a layer used twice, one on a sequence, and one never used."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.line = nn.Conv1d(8, 6, 3, stride=2)
        self.twice = nn.Linear(6, 6)
        self.unused = nn.Linear(3, 3)
        self.table = nn.Embedding(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.line(self.grouped(x).flatten(2)).transpose(1, 2)
        return self.twice(self.twice(x + self.table.weight[0]))


def test_sizes_are_found_from_an_example_of_any_batch() -> None:
    model = Odd().train()
    found = network_energy(model, torch.zeros(1, 4, 5, 5))
    length = (25 - 3) // 2 + 1
    assert found.shapes["grouped.weight"] == (LayerShape(4, 8, 25, 9, 4, (5, 5), 2),)
    assert found.shapes["line.weight"] == (LayerShape(8, 6, length, 3, 1, (25,), 1),)
    assert found.shapes["twice.weight"] == (LayerShape(6, 6, length),) * 2
    assert found.weights["twice.weight"].each == 2 * LayerShape(6, 6, length).weight_energy().each
    assert found.uncounted == {"unused.weight": "Linear", "table.weight": "Embedding"}
    assert (
        network_energy(model, (torch.zeros(7, 4, 5, 5),))
        == found
        == network_energy(model, {"x": torch.ones(2, 4, 5, 5)})
    )
    assert model.training


def test_energy_of_a_sparse_network() -> None:
    model, x = make_model("lenet5"), torch.zeros(1, 1, 28, 28)
    dense = ac.energy_of(model, x)
    assert dense.used == dense.dense == network_energy(model, x).dense
    with torch.no_grad():
        model.classifier[0].weight[:, 400:] = 0
    sparse = ac.energy_of(model, x)
    assert sparse.dense == dense.dense
    assert dense.used - sparse.used == pytest.approx(200_000 * 210)


@pytest.mark.parametrize(
    "example", [torch.zeros(1, 3, 28, 28), torch.zeros(1, 1, 20, 20), (torch.zeros(1), 2), {"y": torch.zeros(1)}]
)
def test_an_example_that_the_network_does_not_take(example) -> None:
    with pytest.raises(InvalidInputError):
        network_energy(make_model("lenet5"), example)


@pytest.mark.parametrize("example", [None, torch.tensor(1.0), torch.zeros(0, 1, 28, 28), (), 3])
def test_what_is_no_example(example) -> None:
    with pytest.raises(InvalidInputError, match="needs example="):
        network_energy(make_model("lenet5"), example)


def test_nothing_to_count() -> None:
    with pytest.raises(InvalidInputError, match="no convolution or linear layer"):
        network_energy(nn.Sequential(nn.BatchNorm1d(3)), torch.zeros(2, 3))


# --- the target ---------------------------------------------------------------------------------------------------


def test_the_target_in_words() -> None:
    assert parse_target("energy:40%") == Energy(fraction=0.4) == Energy(0.4)
    assert str(Energy(0.125)) == "energy:12.5%"
    both = combined("50KB and ENERGY:40%")
    assert both == combined([FileSize("50KB"), Energy(0.4)])
    assert combined(str(both)) == both


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan"), float("inf"), True, "0.4", None])
def test_what_is_no_fraction(fraction) -> None:
    with pytest.raises(InvalidInputError, match="above 0 and at most 1"):
        Energy(fraction)


@pytest.mark.parametrize(
    "text",
    [
        "weights:10x and energy:40%",
        "energy:40% and energy-channels:40%",
        "1KB and energy-channels:40%",
        "drop:1 and energy:40%",
    ],
)
def test_what_does_not_go_together(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"not supported together|are two methods"):
        combined(text)


def test_a_search_does_not_take_energy() -> None:
    with pytest.raises(InvalidInputError, match="energy:40% is none that a search can fit plans to"):
        make_budget(None, parse_target("energy:40%"))


# --- networks -----------------------------------------------------------------------------------------------------


def compressor_of(model: nn.Module, target: str, **kwargs) -> ac.Compressor:
    return ac.Compressor(model, torch.optim.SGD(model.parameters(), lr=0.1), target=target, total_steps=10, **kwargs)


def test_a_target_below_the_smallest_names_it() -> None:
    model, x = make_model("lenet5"), torch.zeros(1, 1, 28, 28)
    with pytest.raises(InfeasibleTargetError, match="of the dense energy, but the smallest is") as caught:
        compressor_of(model, "energy:1%", example=x)
    smallest = caught.value.smallest
    compressor_of(model, f"energy:{smallest}%", example=x)
    with pytest.raises(InfeasibleTargetError):
        compressor_of(model, f"energy:{round(smallest - 0.02, 2)}%", example=x)


def test_what_a_compressor_needs_to_count_energy() -> None:
    with pytest.raises(InvalidInputError, match="'energy:40%' needs example="):
        compressor_of(make_model("lenet5"), "energy:40%")
    with pytest.raises(InvalidInputError, match=r"cannot count unused.weight \(Linear\).*ignore='unused.weight'"):
        compressor_of(Odd(), "energy:90%", example=torch.zeros(1, 4, 5, 5))
    compressor_of(Odd(), "energy:90%", example=torch.zeros(1, 4, 5, 5), ignore=["unused", "table"])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train_reference(make_task())


def compressed(trained: nn.Module, target: str | list[str], **kwargs) -> ac.Result:
    task = make_task()
    settings = {"train": task.train, "val": task.validation, "recipe": task.recipe, "progress": False, "device": "cpu"}
    return ac.compress(copy.deepcopy(trained), target=target, **settings | kwargs)


def test_energy_alone(trained: nn.Module) -> None:
    result = compressed(trained, "energy:60%")
    again = ac.energy_of(result.model, torch.zeros(1, 20))
    assert result.energy == again
    assert 0.595 < again.fraction <= 0.6
    assert any(layer["codebook"] > 100 for layer in result.to_json()["layers"])  # values stay fine
    assert result.to_json()["energy_fraction"] == again.fraction
    assert "60.00 %" in result.report() or "59.9" in result.report()
    assert result.validation_accuracy is not None
    assert result.validation_accuracy > 0.9


@pytest.mark.parametrize(("size", "percent"), [("900B", 60), ("2KB", 55)])
def test_a_file_size_and_an_energy(trained: nn.Module, size: str, percent: int, tmp_path) -> None:
    result = compressed(trained, [size, f"energy:{percent}%"], epochs=2)
    result.save(tmp_path / "net.safetensors")
    network = ac.load(tmp_path / "net.safetensors", into=make_task().make_model())
    assert (tmp_path / "net.safetensors").stat().st_size <= FileSize(size).size_bytes
    assert ac.energy_of(network, torch.zeros(1, 20)).fraction <= percent / 100
    assert result.validation_accuracy is not None
    assert result.validation_accuracy > 0.85


@pytest.mark.parametrize("target", [["900B", "energy:60%"], ["energy:60%"]])
def test_a_run_that_is_stopped_gives_the_same_file(trained: nn.Module, target: list[str]) -> None:
    x, y = next(iter(make_task().train))

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, compressor: ac.Compressor, count: int) -> None:
        for _ in range(count):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            compressor.step()
            optimizer.zero_grad()

    def fresh(model: nn.Module) -> tuple[torch.optim.Optimizer, ac.Compressor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return optimizer, ac.Compressor(model, optimizer, target=target, total_steps=8, example=x)

    whole = copy.deepcopy(trained)
    parts = (whole, *fresh(whole))
    steps(*parts, 8)
    first = copy.deepcopy(trained)
    begun = (first, *fresh(first))
    steps(*begun, 3)
    second = copy.deepcopy(first)
    optimizer, compressor = fresh(second)
    compressor.load_state_dict(copy.deepcopy(begun[2].state_dict()))
    steps(second, optimizer, compressor, 5)
    assert compressor.finish().data == parts[2].finish().data


def test_the_command_line(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    torch.save(train_reference(make_task()).state_dict(), tmp_path / "net.pt")
    command = [
        "compress",
        "small_task:make_model",
        "--data",
        "small_task:loaders",
        "--weights",
        str(tmp_path / "net.pt"),
    ]
    command += ["--epochs", "1", "--out", str(tmp_path / "net.safetensors"), "--json", "--device", "cpu"]
    assert main([*command, "--target", "900B", "--target", "energy:70%"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["energy"] <= 0.7 * answer["dense_energy"]
    assert answer["file_bytes"] <= 900
    assert main([*command, "--target", "energy:1%"]) == 2
    assert "the smallest is" in capsys.readouterr().err
