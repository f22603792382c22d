"""Channels: the bilinear model, the widths, the method, and networks made physically smaller."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_task import make_task, train_reference
from torch import nn

import autocompress as ac
from autocompress.cli import main
from autocompress.constraints.energy_channels import (
    choose_widths,
    loss_at,
    lost_saliency,
    widths_by_greedy,
    widths_by_multiplier,
)
from autocompress.energy.channel_graph import ChannelGraph, difference
from autocompress.energy.channel_model import ChannelEnergy, fit_channel_energy, random_widths
from autocompress.energy.energy_meters import RaplMeter, joules_per_call
from autocompress.energy.network_energy import network_energy
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.targets import Energy, parse_target
from autocompress.task.named_models import make_model
from studies.records.resources import count_macs, median_seconds

pytest.importorskip("torch_pruning")

PAIRS = ((0, 1), (1, 2), (2, 2))


def energy_model(seed: int, channels: tuple[int, ...] = (5, 6, 4)) -> ChannelEnergy:
    rng = np.random.default_rng(seed)
    coefficients = tuple(rng.uniform(0.1, 3.0, 1 + len(channels) + len(PAIRS)).tolist())
    return ChannelEnergy(tuple("abc"), channels, PAIRS, coefficients, "J", 0.0)


# --- the bilinear model -------------------------------------------------------------------------------------------


def test_a_bilinear_energy_is_found_again() -> None:
    true = energy_model(0, (50, 60, 40))
    widths = random_widths(true.channels, 100, 0)
    found = fit_channel_energy(true.groups, true.channels, PAIRS, widths, true.of(widths), "J")
    assert found.held_out_error < 1e-3
    np.testing.assert_allclose(found.of([[10, 20, 30], [50, 60, 40]]), true.of([[10, 20, 30], [50, 60, 40]]), rtol=5e-3)


def test_the_error_is_of_what_was_held_out() -> None:
    true = energy_model(1, (50, 60, 40))
    widths = random_widths(true.channels, 100, 0)
    energies = true.of(widths)
    energies[80:] *= 1.5  # the last fifth is what the fit does not see
    found = fit_channel_energy(true.groups, true.channels, PAIRS, widths, energies, "J")
    assert found.held_out_error == pytest.approx(1 / 3, abs=1e-2)


@pytest.mark.parametrize("size", [28])
def test_the_fit_to_the_accelerator_is_within_five_percent(size: int) -> None:
    graph = ChannelGraph(
        make_model("lenet5"), torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    )
    found = graph.fitted_energy()
    assert found.groups == ("classifier.0", "features.2", "features.0")
    assert found.channels == (500, 50, 20)
    assert found.held_out_error < 0.05
    assert (
        graph.analytic_energy(found.channels) == network_energy(make_model("lenet5"), torch.zeros(1, 1, 28, 28)).dense
    )
    fresh = random_widths(found.channels, 50, seed=9)
    wrong = [abs(float(found.of(row)) / graph.analytic_energy(row.tolist()) - 1) for row in fresh]
    assert np.mean(wrong) < 0.05


def test_the_energy_of_fewer_channels_is_that_of_the_smaller_network() -> None:
    model, x = make_model("lenet5"), torch.randn(2, 1, 28, 28)
    graph = ChannelGraph(model, x)
    keep = [torch.arange(group.channels) < group.channels // 3 for group in graph.groups]
    smaller = graph.without(model, keep)
    assert network_energy(smaller, x).dense == graph.analytic_energy([int(k.sum()) for k in keep])


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    model = energy_model(2)
    model.save(tmp_path / "model.json")
    assert ChannelEnergy.load(tmp_path / "model.json") == model
    for text in ("", "[]", "{}", '{"groups": ["a"]}', json.dumps(vars(model) | {"coefficients": [1.0]})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InvalidInputError, match="no energy model"):
            ChannelEnergy.load(tmp_path / "bad.json")
    for bad in (math.nan, math.inf, -1e9):  # of the constant term
        replace(model, coefficients=(bad, *model.coefficients[1:])).save(tmp_path / "bad.json")
        with pytest.raises(InvalidInputError, match=r"bad\.json' cannot be used: it gives the dense network"):
            ChannelEnergy.load(tmp_path / "bad.json")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        ChannelEnergy.load(tmp_path / "missing.json")


# --- widths -------------------------------------------------------------------------------------------------------


def instance(seed: int) -> tuple[list[np.ndarray], ChannelEnergy, float]:
    model = energy_model(seed)
    rng = np.random.default_rng(seed + 100)
    losses = lost_saliency([rng.exponential(1.0, c) ** 2 for c in model.channels])
    smallest = float(model.of(np.ones(3)))
    return losses, model, smallest + float(rng.uniform(0.05, 0.9)) * (model.dense - smallest)


def best_loss(losses: list[np.ndarray], model: ChannelEnergy, limit: float) -> float:
    every = np.array(list(itertools.product(*(range(1, c + 1) for c in model.channels))))
    return min(loss_at(losses, widths) for widths in every[model.of(every) <= limit])


def test_losses_are_of_the_smallest() -> None:
    assert lost_saliency([np.array([3.0, 1.0, 2.0])])[0].tolist() == [6.0, 3.0, 1.0, 0.0]


def test_widths_against_every_choice() -> None:
    gaps: dict[str, list[float]] = {"price": [], "greedy": [], "chosen": []}
    for seed in range(25):
        losses, model, limit = instance(seed)
        best = best_loss(losses, model, limit)
        for name, method in (("price", widths_by_multiplier), ("greedy", widths_by_greedy), ("chosen", choose_widths)):
            widths = method(losses, model, limit)
            assert float(model.of(widths)) <= limit
            assert (widths >= 1).all()
            gaps[name].append(loss_at(losses, widths) / best - 1)
    assert min(min(row) for row in gaps.values()) >= -1e-9
    assert np.mean(gaps["chosen"]) < 0.05
    assert np.mean(gaps["chosen"]) <= min(np.mean(gaps["price"]), np.mean(gaps["greedy"]))


def test_no_channel_more_fits() -> None:
    losses, model, limit = instance(3)
    widths = choose_widths(losses, model, limit)
    for group in range(3):
        more = widths.copy()
        more[group] += 1
        assert more[group] > model.channels[group] or float(model.of(more)) > limit


def test_everything_or_not_even_one() -> None:
    losses, model, _ = instance(0)
    assert choose_widths(losses, model, model.dense).tolist() == list(model.channels)
    with pytest.raises(InfeasibleTargetError, match="one channel per group"):
        choose_widths(losses, model, 0.99 * float(model.of([1, 1, 1])))


# --- networks -----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Convolutions with batch norms, a residual sum, a depthwise one, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.back = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = self.depthwise(torch.relu(self.inner_norm(self.inner(x))))
        x = torch.relu(x + self.back(y))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Mixed(nn.Module):
    """A norm over channels: it sees those that are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.first(x))))


def with_statistics(model: nn.Module, x: torch.Tensor) -> nn.Module:
    model.train()
    for _ in range(3):
        model(x + torch.randn_like(x))
    return model.eval()


def test_the_smaller_network_gives_the_masked_ones_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = with_statistics(Residual(), x)
    graph = ChannelGraph(model, x)
    assert sorted(group.channels for group in graph.groups) == [8, 12]
    keep = [torch.rand(group.channels) > 0.5 for group in graph.groups]
    with torch.no_grad():
        for name, mask in graph.masks(model, keep).items():
            model.get_parameter(name).mul_(mask)
    smaller = ac.shrink(model, x)
    fresh = torch.randn(6, 3, 8, 8)
    torch.testing.assert_close(smaller(fresh), model(fresh), rtol=1e-4, atol=1e-5)
    for group, kept in zip(graph.groups, keep, strict=True):
        assert smaller.get_submodule(group.root).weight.shape[0] == int(kept.sum())
    assert count_macs(smaller, x) < 0.8 * count_macs(model, x)


def test_saliencies_are_what_goes_with_a_channel() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    graph = ChannelGraph(model, torch.ones(1, 2))
    a, b = model[0].weight, model[2].weight
    expected = a.square().sum(1) + b.square().sum(0)
    (found,) = graph.saliencies(dict(model.named_parameters()))
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-6)


class Moved(nn.Module):
    """Moves the channels on by one between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, bias=False), nn.Conv2d(8, 3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).roll(1, 1))


class Shuffled(nn.Module):
    """Makes four channels one of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.pixel_shuffle(self.first(x), 2))


@pytest.mark.parametrize(
    "example", [torch.zeros(1, 2, 8, 8), (torch.ones(1, 2, 8, 8),), {"x": torch.zeros(1, 2, 8, 8)}]
)
def test_an_example_of_one_value_hides_nothing(example) -> None:
    with pytest.raises(InvalidInputError, match="'first' cannot be removed"):
        ac.shrink(Moved(), example)


def test_what_is_no_network_has_no_channels() -> None:
    for function in (ac.shrink, ac.energy_of):
        with pytest.raises(InvalidInputError, match="the model is a str; give a network"):
            function("net", torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Shuffled(), torch.randn(1, 2, 8, 8), "channels of layer 'first' cannot be followed to second: something"),
        (Mixed(), torch.randn(2, 6), "'first' cannot be removed"),
        (make_model("resnet20"), torch.randn(1, 3, 32, 32), "'conv1' cannot be removed"),
        (nn.Linear(3, 2), torch.randn(1, 3), "no channels that could be removed"),
    ],
)
def test_channels_that_cannot_be_followed_name_the_layer(model: nn.Module, example: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ChannelGraph(model, example)


def test_compressed_by_channels_and_made_smaller(tmp_path: Path) -> None:
    task = make_task()
    model = train_reference(task)
    before = copy.deepcopy(model.state_dict())
    graph = ChannelGraph(model, task.input_example)
    graph.fitted_energy().save(tmp_path / "model.json")
    results = [
        ac.compress(
            model,
            train=task.train,
            val=task.validation,
            target="energy-channels:40%",
            recipe=task.recipe,
            device="cpu",
            progress=False,
            energy_model=energy,
        )
        for energy in (None, ChannelEnergy.load(tmp_path / "model.json"))
    ]
    result = results[0]
    assert results[1].data == result.data
    assert result.energy is not None
    assert 0.3 < result.energy.fraction <= 0.4
    smaller = ac.shrink(result.model, task.input_example)
    x = next(iter(task.test))[0]
    assert difference(result.model, smaller, x) < 1e-4
    widths = [int(k.sum()) for k in graph.kept(dict(result.model.named_parameters()))]
    assert [smaller[0].out_features, smaller[2].out_features] == [
        dict(zip((g.root for g in graph.groups), widths, strict=True))[name] for name in ("0", "2")
    ]
    assert result.validation_accuracy is not None
    assert result.validation_accuracy > 0.85
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_what_a_channel_target_refuses() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def ask(target: str, **kwargs) -> ac.Compressor:
        kwargs = {"example": torch.randn(1, 4)} | kwargs
        return ac.Compressor(model, torch.optim.SGD(model.parameters(), lr=1.0), target=target, total_steps=1, **kwargs)

    assert parse_target("energy-channels:40%") == Energy(0.4, channels=True) != Energy(0.4)
    with pytest.raises(InfeasibleTargetError, match="one channel in each group") as caught:
        ask("energy-channels:1%")
    ask(f"energy-channels:{caught.value.smallest}%")
    with pytest.raises(InvalidInputError, match=r"needs 2\.weight, which is ignored"):
        ask("energy-channels:60%", ignore=["2"])
    with pytest.raises(InvalidInputError, match="energy model is of another network"):
        ask("energy-channels:60%", energy_model=energy_model(0))
    with pytest.raises(InvalidInputError, match="has no use for the target 'energy:60%'"):
        ask("energy:60%", energy_model=energy_model(0))
    with pytest.raises(InvalidInputError, match="needs example="):
        ask("energy-channels:60%", example=None)


def test_medians_of_networks_that_take_turns() -> None:
    calls = []

    class Noted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(self.out_features)
            return super().forward(x)

    times = median_seconds([Noted(2, 3), Noted(2, 4)], torch.zeros(1, 2), runs=4)
    assert len(times) == 2
    assert min(times) > 0
    assert calls == [3, 4] * (4 + 5)


# --- meters and the command line ----------------------------------------------------------------------------------


def fake_powercap(folder: Path, counts: list[int]) -> None:
    for number, count in enumerate(counts):
        package = folder / f"intel-rapl:{number}"
        package.mkdir(exist_ok=True)
        (package / "energy_uj").write_text(f"{count}\n")
        (package / "max_energy_range_uj").write_text("1000000\n")
    (folder / "intel-rapl:0:0").mkdir(exist_ok=True)  # a part of package 0, which counts it already


def test_rapl_adds_packages_and_counters_that_begin_again(tmp_path: Path) -> None:
    fake_powercap(tmp_path, [100_000, 900_000])
    meter = RaplMeter(tmp_path)
    meter.start()
    fake_powercap(tmp_path, [350_000, 50_000])
    assert meter.joules() == pytest.approx(0.25 + 0.15)


def test_joules_per_call_is_a_mean() -> None:
    class Counter:
        device = torch.device("cpu")
        total = 0.0

        def start(self) -> None:
            self.total = 0.0

        def joules(self) -> float:
            return self.total

    meter = Counter()

    def run() -> None:
        meter.total += 3.0

    assert joules_per_call(meter, run, seconds=0.01) == pytest.approx(3.0)


def test_no_meter_is_bad_input(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.energy.energy_meters.RaplMeter.__init__.__defaults__", (tmp_path,))
    assert main(["energy", "fit", "lenet5", "--meter", "rapl"]) == 2
    assert "has no counters of energy" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert main(["energy", "fit", "lenet5", "--meter", "nvml"]) == 2
    assert "needs the package nvidia-ml-py" in capsys.readouterr().err


def test_fit_on_the_command_line(tmp_path: Path, capsys) -> None:
    out = tmp_path / "lenet5.json"
    assert main(["energy", "fit", "lenet5", "--samples", "60", "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["held_out_error"] < 0.08
    assert list(ChannelEnergy.load(out).coefficients) == answer["coefficients"]
    assert main(["energy", "fit", "small_task:make_model", "--input-shape", "20"]) == 0
    text = capsys.readouterr().out
    assert "held-out mean relative error" in text
    assert "not kept: --out FILE writes it" in text
    assert main(["energy", "fit", "small_task:make_model"]) == 2
    assert "--input-shape" in capsys.readouterr().err
    assert main(["energy", "fit", "resnet20", "--samples", "20"]) == 2
    assert "'conv1' cannot be removed" in capsys.readouterr().err
    assert main(["energy", "fit", "lenet5", "--samples", "3"]) == 2
