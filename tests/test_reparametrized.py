"""Weights that a module divides by their norm, or masks: files that give finite outputs, and waste nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import autocompress as ac
from autocompress.errors import InvalidInputError, TrainingDivergedError
from autocompress.network.compressed_tensors import QuantizedTensor
from autocompress.network.live_network import storage_key
from autocompress.network.selection import WHOLE, NonzeroPerSlice, nonzero_per_slice, normalized, prune_masks, select
from autocompress.solver.compressor import Compressor
from autocompress.solver.lazy_projection import Nearest
from tests.small_task import batches, make_model, make_shallow_model, make_task, train_reference

pytestmark = pytest.mark.any_file


def old_weight_norm(module: nn.Module, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module, **settings)


NORMS = {
    "new weight norm": parametrizations.weight_norm,
    "old weight norm": old_weight_norm,
    "new spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
}


def normed_network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)  # the vectors of spectral norm
    model = make_shallow_model()
    assert isinstance(model, nn.Sequential)
    NORMS[kind](model[0])
    NORMS[kind](model[2])
    return model


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("new weight norm", "smallest"),
        ("new spectral norm", "drop:5"),
        ("old weight norm", "500B"),
        ("old spectral norm", "500B"),
    ],
)
def test_a_network_divided_by_norms_ends_finite_at_any_size(kind: str, target: str, tmp_path: Path) -> None:
    model = normed_network(kind)
    if target == "smallest":
        with pytest.raises(ac.InfeasibleTargetError) as told:
            ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="10B", total_steps=1)
        target = f"{int(told.value.smallest * 1.05)}B"
    task = make_task()
    from autocompress.training.trainer import Trainer

    Trainer(model, task.train, recipe=task.recipe, epochs=3, device="cpu", progress=False).fit()
    result = ac.compress(
        model, train=task.train, val=task.validation, target=target, epochs=1, device="cpu", progress=False
    )
    result.save(tmp_path / "net.safetensors")
    loaded = ac.load(tmp_path / "net.safetensors", into=normed_network(kind))
    inputs = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(result.model(inputs)).all())
    assert torch.equal(loaded.eval()(inputs), result.model(inputs))
    for name, dim in normalized(result.model.named_modules()).items():
        tensor = result.model.get_parameter(name)
        assert dim == 0
        assert bool((tensor.abs().amax(1) > 0).all())


@pytest.mark.parametrize("target", ["weights:100x", "codes:20x", "weights-in-place:100x"])
def test_targets_that_may_empty_a_row_are_refused_by_name(target: str) -> None:
    model = normed_network("new weight norm")
    with pytest.raises(InvalidInputError, match=r"0\.parametrizations\.weight\.original1 is divided by the norm"):
        Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target=target, total_steps=10)


def test_which_tensors_are_divided_by_norms_and_along_what() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        old_weight_norm(nn.ConvTranspose1d(3, 4, 2), dim=1),
        parametrizations.weight_norm(nn.Linear(3, 4), dim=None),
        parametrizations.spectral_norm(nn.Linear(3, 4)),
        nn.utils.spectral_norm(nn.Linear(3, 4)),
    )
    assert normalized(model.named_modules()) == {
        "0.parametrizations.weight.original1": 0,
        "1.weight_v": 1,
        "2.parametrizations.weight.original1": WHOLE,
        "3.parametrizations.weight.original": 0,
        "4.weight_orig": 0,
    }


def test_an_empty_part_gets_the_weight_that_points_farthest_by_hand() -> None:
    codes = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.int16)
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.1, -0.3, 0.2], [0.0, 0.0, 0.0]])
    kept = nonzero_per_slice(QuantizedTensor(codes, torch.tensor([-1.0, 1.0])), weights, 0)
    assert kept.dense().sign().tolist() == [[0.0, -1.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]
    upwards = nonzero_per_slice(QuantizedTensor(codes, torch.tensor([1.0])), weights, 0)  # no code points down
    assert upwards.dense().sign().tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    columns = nonzero_per_slice(QuantizedTensor(codes, torch.tensor([1.0])), weights, 1)
    assert columns.dense().sign().tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    none = QuantizedTensor(torch.zeros(2, 2, dtype=torch.int16), torch.zeros(0))
    whole = nonzero_per_slice(none, torch.tensor([[0.5, -2.0], [1.0, 0.5]]), WHOLE)
    assert whole.dense().sign().tolist() == [[0.0, -1.0], [0.0, 0.0]]


def test_between_projections_no_part_is_empty() -> None:
    nearest = Nearest(torch.tensor([-1.0, 1.0]), 0.9, torch.zeros(0, dtype=torch.int64))
    rule = NonzeroPerSlice(nearest.assign, (2, 2), 0, 0.25)
    weights = torch.tensor([[0.1, 1.5], [0.05, -0.1]])
    index, values = rule.assign(weights)
    assert index.tolist() == [1, 3]
    assert values.tolist() == [1.0, -0.25]


@pytest.mark.parametrize("target", ["1KB", "weights:30x"])
def test_masks_of_prune_are_folded(target: str, tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        model = train_reference(make_task())
        assert isinstance(model, nn.Sequential)
        prune.l1_unstructured(model[0], "weight", 0.5)
        prune.random_unstructured(model[0], "bias", 4)
        prune.ln_structured(model[2], "weight", 0.25, n=2, dim=0)
        return model

    torch.manual_seed(0)
    model = make()
    masks = {name: mask.clone() for name, mask in model.named_buffers()}
    assert prune_masks(model.named_modules()) == {
        f"{name}_orig": f"{name}_mask" for name in ("0.weight", "0.bias", "2.weight")
    }
    task = make_task()
    result = ac.compress(
        model, train=task.train, val=task.validation, target=target, epochs=1, device="cpu", progress=False
    )
    for name, mask in masks.items():
        kept = result.model.get_parameter(name.removesuffix("mask") + "orig")
        assert not bool((kept[mask == 0] != 0).any()), name
        assert bool((result.model.get_buffer(name) == 1).all()), name
        assert torch.equal(model.get_buffer(name), mask), name  # the network that was given is as it was
    assert "folded into what it masks: 0.weight_mask" in result.report()
    result.save(tmp_path / "net.safetensors")
    inputs = torch.randn(20, 20)
    loaded = ac.load(tmp_path / "net.safetensors", into=make())
    assert torch.equal(loaded.eval()(inputs), result.model(inputs))


def test_a_mask_costs_nothing_and_what_it_prunes_neither() -> None:
    plain, masked = make_model(), make_model()
    assert isinstance(plain, nn.Sequential)
    assert isinstance(masked, nn.Sequential)
    prune.random_unstructured(masked[0], "weight", 0.9)
    with torch.no_grad():
        plain[0].weight.mul_(masked[0].weight_mask)
    sizes = []
    for model in (plain, masked):
        compressor = Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="700B", total_steps=0)
        coded = compressor.finish().state.quantized
        sizes.append([compressor.method.constraint.file.smallest, sum(tensor.nonzeros for tensor in coded.values())])
    assert sizes[1][0] - sizes[0][0] <= 16  # its name and that it is constant
    assert sizes[1][1] >= 0.95 * sizes[0][1]


class Divides(nn.Module):
    """Divides by the largest weight, which nothing knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(20, 32, bias=False), nn.Linear(32, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(inputs @ (self.first.weight / self.first.weight.abs().max()).t()))


@pytest.mark.parametrize("given", ["train", "val"])
def test_finish_returns_no_network_whose_outputs_are_not_finite(given: str) -> None:
    model = Divides()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compressor = Compressor(model, optimizer, target="200B", total_steps=1)
    nn.functional.cross_entropy(model(torch.randn(8, 20)), torch.randint(3, (8,))).backward()
    optimizer.step()
    compressor.step()
    assert compressor.run.fine_tuning is not None
    compressor.run.fine_tuning.codes[0].zero_()
    compressor.run.fine_tuning.index[0] = compressor.run.fine_tuning.codes[0].flatten().nonzero().flatten()
    compressor.total_steps = 1
    compressor.evaluate = None
    judged: dict[str, Any] = {"train": batches(64, 1, shuffle=True)} if given == "train" else {"val": batches(64, 1)}
    if given == "val":
        compressor.run.one_shot = lambda method, train: compressor.run.file(  # type: ignore[method-assign]
            compressor.run.fine_tuning,
            compressor.method,
            train,  # type: ignore[arg-type]
        )
        compressor.run.fine_tuning.step_count = 0
    with pytest.raises(TrainingDivergedError, match="NaN or infinite outputs"):
        compressor.finish(**judged)


@pytest.mark.parametrize(
    ("target", "score", "message"),
    [
        ("drop:1", lambda loss, accuracy: loss, r"an accuracy, of which more is better.*loss:\+2%"),
        ("loss:+2%", lambda loss, accuracy: accuracy, "a loss, of which less is better.*drop:1"),
    ],
)
def test_a_score_of_the_other_direction_is_refused_before_training(target: str, score, message: str) -> None:
    model = train_reference(make_task())
    inputs, labels = next(iter(batches(200, 2)))

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            outputs = network(inputs)
        loss = float(nn.functional.cross_entropy(outputs, labels))
        return float(score(loss, float((outputs.argmax(1) == labels).float().mean())))

    assert 0 < evaluate(model) < 1
    settings: dict[str, Any] = {"total_steps": 10, "evaluate": evaluate}
    with pytest.raises(InvalidInputError, match=message):
        Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target=target, **settings)
    other = "loss:+2%" if target == "drop:1" else "drop:1"
    assert Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target=other, **settings).quality is not None


def test_a_score_that_is_not_defined_without_weights_is_taken() -> None:
    model = train_reference(make_task())

    def evaluate(network: nn.Module) -> float:
        return 0.5 / bool(next(network.parameters()).any())

    Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="drop:1", total_steps=10, evaluate=evaluate)


def test_tensors_without_an_address_are_no_aliases() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert len({storage_key(parameter) for parameter in model.parameters()}) == 2
    with pytest.raises(InvalidInputError, match=r"0\.weight is on the meta device"):
        select(model)


def test_shards_are_no_aliases_and_refused_by_name(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        for layer in model:
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.data, mesh, [Replicate()]))
        assert all(isinstance(parameter.data, DTensor) for parameter in model.parameters())
        assert len({storage_key(parameter) for parameter in model.parameters()}) == 2
        with pytest.raises(InvalidInputError, match=r"0\.weight is a DTensor"):
            select(model)
    finally:
        distributed.destroy_process_group()
