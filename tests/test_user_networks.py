"""Networks as users write them: what a live network may hold besides its parameters."""

import threading
import warnings
from pathlib import Path

import pytest
import torch
from small_task import batches
from torch import Tensor, nn

import autocompress as ac
from autocompress.live_network import check_copyable, copy_network, named_modules, named_tensors
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

INPUT = torch.linspace(-1, 1, 40).view(2, 20)


def seeded(make):
    """Returns what `make` returns with the same random numbers at every call."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old weight norm
        torch.manual_seed(0)
        return make()


class KeepsActivations(nn.Module):
    """Keeps what it computes, as nets with an auxiliary loss or with hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(20, 32), nn.Linear(32, 3)
        self.features: Tensor | None = None
        self.store: dict[str, list[Tensor]] = {}
        self.first.register_forward_hook(lambda module, inputs, output: self.store.update(first=[output]))

    def forward(self, inputs: Tensor) -> Tensor:
        self.features = self.first(inputs).relu()
        return self.last(self.features)


def old_norm(norm) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(20, 32)), nn.ReLU(), norm(nn.Linear(32, 3)))


NETWORKS = {
    "activations": KeepsActivations,
    "weight_norm": lambda: old_norm(nn.utils.weight_norm),
    "spectral_norm": lambda: old_norm(nn.utils.spectral_norm),
    "parametrized": lambda: old_norm(nn.utils.parametrizations.weight_norm),
}


def compressed(model: nn.Module, target: str = "50%", **settings) -> ac.Result:
    return ac.compress(
        model,
        train=batches(128, 1, shuffle=True),
        val=batches(64, 2),
        target=target,
        epochs=1,
        progress=False,
        device="cpu",
        recipe=Recipe("sgd", 0.05),
        **settings,
    )


@pytest.mark.parametrize(("name", "target"), [*((name, "50%") for name in NETWORKS), ("activations", "drop:90")])
def test_a_network_with_non_leaf_tensors_goes_through_a_whole_run(name: str, target: str, tmp_path: Path) -> None:
    model = seeded(NETWORKS[name])
    Trainer(model, batches(128, 1), recipe=Recipe("sgd", 0.1), epochs=8, progress=False, device="cpu").fit()
    model(INPUT)  # it holds tensors with a history
    result = compressed(model, target)
    result.save(tmp_path / "net.safetensors")
    loaded = ac.load(tmp_path / "net.safetensors", into=seeded(NETWORKS[name]))
    assert torch.equal(loaded(INPUT), result.model(INPUT))


def test_a_copy_holds_activations_without_their_history() -> None:
    model = KeepsActivations()
    model(INPUT)
    copied = copy_network(model)
    assert torch.equal(copied.features, model.features.detach())
    assert not copied.features.requires_grad
    assert copied.features is not model.features


def test_a_copy_of_what_was_kept_in_inference_mode_trains() -> None:
    model = KeepsActivations()
    with torch.inference_mode():
        model(INPUT)
    copied = copy_network(model)
    copied(INPUT).sum().backward()
    assert copied.first.weight.grad is not None


def test_what_cannot_be_copied_is_refused_by_name_before_training() -> None:
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    model[2].locks = [threading.Lock()]
    message = r"Sequential cannot be copied: its module '2' holds a list as 'locks' \(cannot pickle"
    with pytest.raises(ac.InvalidInputError, match=message):
        ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="50%", total_steps=3)
    with pytest.raises(ac.InvalidInputError, match=message):
        copy_network(model)


def test_the_check_copies_no_tensor(monkeypatch) -> None:
    model = seeded(KeepsActivations)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda *_: pytest.fail("a parameter was copied"))
    check_copyable(model)


def test_two_parameters_over_one_storage_stay_tied_in_a_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    copied = copy_network(model)
    with torch.no_grad():
        copied[0].weight.fill_(7)
    assert torch.equal(copied[1].weight, torch.full((4, 4), 7.0))
    assert not (model[0].weight == 7).any()


def test_wrappers_are_removed_at_every_level_of_a_copy() -> None:
    inner = nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.DataParallel(nn.Linear(4, 4)))
    model = torch.compile(nn.Sequential(inner, nn.Linear(4, 4)))
    names = ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias"]
    assert list(copy_network(model).state_dict()) == names
    assert list(named_tensors(model)) == names
    assert [name for name, _ in named_modules(model)] == ["", "0", "0.0", "0.1", "1"]
    assert type(copy_network(model, keep_wrappers=True)) is type(model)


class WithExtraState(nn.Module):
    """A module with a state that is no tensor, and one that is."""

    def __init__(self, state: object = None) -> None:
        super().__init__()
        self.last, self.state = nn.Linear(20, 3), state

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(inputs)

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


@pytest.mark.parametrize("state", [{"version": 3}, None, 7, torch.ones(3)])
def test_extra_state_is_not_in_the_file_and_the_report_says_so(state: object, tmp_path: Path) -> None:
    model = nn.Sequential(WithExtraState(state), nn.Linear(3, 3))
    result = compressed(model, resume=tmp_path / "run")
    assert "not in the file, no tensors: 0._extra_state" in result.report()
    assert result.to_json()["not_in_file"] == ["0._extra_state"]
    result.save(tmp_path / "net.safetensors")
    loaded = ac.load(tmp_path / "net.safetensors", into=nn.Sequential(WithExtraState(), nn.Linear(3, 3)))
    assert torch.equal(loaded(INPUT), result.model(INPUT))
    plain = nn.Sequential(nn.ModuleDict({"last": nn.Linear(20, 3)}), nn.Linear(3, 3))
    ac.load(tmp_path / "net.safetensors", into=plain)
    assert torch.equal(plain[0]["last"].weight, loaded[0].last.weight)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapper_inside_the_network_leaves_no_trace_in_the_file(wrap, tmp_path: Path) -> None:
    def make(wrapped: bool) -> nn.Module:
        first = nn.Linear(20, 8)
        return nn.Sequential(wrap(first) if wrapped else first, nn.ReLU(), nn.Linear(8, 3))

    model = seeded(lambda: make(True))
    compressor = ac.Compressor(
        model, torch.optim.SGD(model.parameters(), 0.1), target="50%", total_steps=2, ignore=["0.bias"]
    )
    result = compressor.finish()
    assert [name for name, _ in compressor.network.selection.weights] == ["0.weight", "2.weight"]
    result.save(tmp_path / "net.safetensors")
    loaded = [ac.load(tmp_path / "net.safetensors", into=make(wrapped)) for wrapped in (False, True)]
    for each in loaded:
        assert torch.equal(dict(named_tensors(each))["0.weight"], result.model[0].weight)
    assert torch.equal(loaded[0](INPUT), result.model(INPUT))


class WithExpandedBuffer(nn.Module):
    """A module with a buffer that has one element in memory for several."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.last = nn.Linear(20, 3)
        self.register_buffer("scale", torch.full((1,), scale).expand(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.last(inputs)


def test_an_expanded_buffer_is_filled(tmp_path: Path) -> None:
    result = compressed(WithExpandedBuffer(2.0))
    result.save(tmp_path / "net.safetensors")
    loaded = ac.load(tmp_path / "net.safetensors", into=WithExpandedBuffer(1.0))
    assert loaded.scale.tolist() == [2.0, 2.0, 2.0]
    assert torch.equal(loaded(INPUT), result.model(INPUT))
