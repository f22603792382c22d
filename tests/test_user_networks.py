"""Networks as users write them: what a live network may hold besides its parameters."""

import threading
import warnings
from pathlib import Path

import pytest
import torch
from small_task import batches
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import InvalidInputError
from autocompress.network.live_network import check_copyable, copy_network, named_modules, named_tensors
from autocompress.network.selection import select
from autocompress.solver.admm import RelativeRate
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

pytestmark = pytest.mark.any_file

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


def with_buffer(tensor: torch.Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 2))
    model.register_buffer("edges", tensor)
    return model


def exported() -> nn.Module:
    return torch.export.export(nn.Linear(8, 2), (torch.ones(4, 8),)).module()


def scripted_block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(nn.Linear(8, 2)), "the network is TorchScript; give the torch.nn.Module"),
        (lambda: torch.jit.trace(nn.Linear(8, 2), torch.ones(1, 8)), "the network is TorchScript"),
        (scripted_block, "the module '1' is TorchScript"),
        (lambda: with_buffer(torch.eye(3).to_sparse()), "edges is a sparse tensor, which no file holds"),
        (lambda: with_buffer(torch.eye(3).to_sparse_csr()), "edges is a sparse tensor"),
        (lambda: with_buffer(torch.nested.nested_tensor([torch.ones(2)])), "edges is a nested tensor"),
        (exported, "the network cannot be put into evaluation mode"),
        (lambda: nn.Sequential(nn.Linear(8, 2), nn.LazyBatchNorm1d()), r"1\.weight has no shape yet; pass a batch"),
        (lambda: nn.Sequential(nn.Linear(8, 2), nn.LazyBatchNorm1d(affine=False)), r"1\.running_mean has no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:The PyTorch API of nested tensors")
def test_what_is_no_whole_network_of_modules_is_refused_by_name(make, message: str) -> None:
    model = make()
    for refuse in (
        copy_network,
        lambda model: ac.compress(model, train=[(torch.ones(4, 8), torch.zeros(4, dtype=torch.int64))], target="90%"),
        lambda model: ac.Compressor(model, torch.optim.SGD([torch.ones(1)], 0.1), target="90%", total_steps=1),
    ):
        with pytest.raises(InvalidInputError, match=message):
            refuse(model)


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


def compressor(model: nn.Module, target: str = "50%", steps: int = 3, **settings) -> ac.Compressor:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    return ac.Compressor(model, optimizer, target=target, total_steps=steps, **settings)


class WithMask(nn.Module):
    """A float mask as large as the weights: constant but for its triangle."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.last = nn.Linear(size, size)
        self.register_buffer("mask", torch.ones(size, size).tril())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ (self.last.weight * self.mask) + self.last.bias


def test_a_float_buffer_counts_as_it_is_and_the_message_names_it() -> None:
    model = WithMask()
    with pytest.raises(ac.InfeasibleTargetError, match=r"at zero; .* kept as it is: mask \[64, 64\] \(") as error:
        compressor(model, "100B")
    assert error.value.smallest < 4 * 64 * 64 / 8  # as random bytes it would be eight times as much
    result = compressor(model, f"{int(error.value.smallest)}B").finish()
    assert result.file_bytes <= error.value.smallest
    assert torch.equal(result.model.mask, model.mask)


def test_norm_statistics_still_count_as_what_they_may_become() -> None:
    model = nn.Sequential(nn.Linear(20, 256), nn.BatchNorm1d(256, affine=False), nn.Linear(256, 3))
    with pytest.raises(ac.InfeasibleTargetError) as error:
        compressor(model, "100B")
    assert error.value.smallest > 2 * 4 * 256


def test_frozen_parameters_are_kept_as_they_are_and_listed() -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = compressor(model, "95%")
    result = run.finish()
    assert [name for name, _ in run.network.selection.weights] == ["3.weight"]
    assert "not compressed, frozen: requires_grad is False: 0.weight, 0.bias, 1.weight" in result.report()
    for name in ("0.weight", "0.bias", "1.weight"):
        assert torch.equal(result.model.state_dict()[name], before[name])


def test_a_network_that_is_frozen_whole_is_compressed_whole() -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    assert [name for name, _ in select(model).weights] == ["0.weight", "2.weight"]


def test_a_group_with_rate_zero_says_nothing_of_the_others() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.0}, {"params": [second], "lr": 0.4}])
    rate = RelativeRate(optimizer, [first, second])
    assert rate.now() == 1.0
    optimizer.param_groups[1]["lr"] = 0.1
    assert rate.now() == 0.25
    optimizer.param_groups[0]["lr"] = 0.2  # unfrozen
    assert rate.now() == (1 + 0.25) / 2


def test_a_float16_network_is_refused_with_the_cause() -> None:
    with pytest.raises(ac.InvalidInputError, match=r"0\.weight is float16, .*give model\.float\(\)"):
        compressor(nn.Sequential(nn.Linear(20, 3)).half())


@pytest.mark.parametrize("value", [1e19, 3e38])
def test_enormous_weights_are_refused(value: float) -> None:
    model = nn.Sequential(nn.Linear(20, 3))
    with torch.no_grad():
        model[0].weight[0, 0] = value
    with pytest.raises(ac.InvalidInputError, match=r"0\.weight holds values of .*e\+\d+; give a trained network"):
        compressor(model)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_become_enormous_are_a_divergence(steps: int) -> None:
    model = nn.Sequential(nn.Linear(20, 3))
    run = compressor(model, steps=steps)
    model(INPUT).sum().backward()
    with torch.no_grad():
        model[0].weight[0, 0] = 1e20
    with pytest.raises(ac.TrainingDivergedError, match=r"0\.weight became NaN or infinite, or above 1e18, by step 1"):
        run.step()


@pytest.mark.parametrize("optimizer", [torch.optim.SparseAdam, torch.optim.SGD])
def test_sparse_gradients_go_through_a_run(optimizer) -> None:
    model = nn.Sequential(nn.EmbeddingBag(30, 4, sparse=True))
    run = ac.Compressor(model, optimizer(model.parameters(), lr=0.01), target="50%", total_steps=10)
    for step in range(10):
        run.optimizer.zero_grad()
        model(torch.arange(step, step + 8).view(2, 4)).square().sum().backward()
        run.optimizer.step()
        run.step()
    assert run.finish().file_bytes <= 60 * 4


def test_a_network_with_sparse_gradients_is_compressed_by_any_recipe() -> None:
    model = nn.Sequential(nn.EmbeddingBag(30, 4, sparse=True), nn.Linear(4, 3))
    data = [(torch.arange(32).view(8, 4) % 30, torch.arange(8) % 3)]
    for recipe in (Recipe("sgd"), Recipe("adamw", 0.01)):
        result = ac.compress(model, train=data, target="80%", epochs=4, recipe=recipe, progress=False, device="cpu")
        assert result.gradient_steps == 4
