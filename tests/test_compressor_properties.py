"""Random untrained networks and targets: never above the target, bit-exact when loaded, no exception.

20 of them, two of each family, and 180 more among the slow tests.

Each case follows from its seed alone: `pytest "tests/test_compressor_properties.py::test_...[17]"` repeats the 17th.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.selection import original_bytes, select
from autocompress.targets import FileSize, WeightBits

pytestmark = pytest.mark.any_file

CASES = [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))]
FAMILIES = (
    "grouped", "transposed", "attention", "encoder", "tied", "batch norm", "other norms", "volume", "mixed", "half",
)  # fmt: skip


@dataclass
class Case:
    """A network, what goes into it, and what is not to be compressed."""

    make: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    ignore: list[str | type[nn.Module]] = field(default_factory=list)


class Tied(nn.Module):
    """An embedding whose weight is the output's, perhaps with a layer between."""

    def __init__(self, tokens: int, width: int, *, bias: bool, norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.inner = nn.Linear(width, width)
        self.output = nn.Linear(width, tokens, bias=bias)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.norm(torch.relu(self.inner(self.embedding(tokens)))))


class Attention(nn.Module):
    """Attention to itself; queries of another width have projections of their own."""

    def __init__(self, width: int, heads: int, *, separate: bool, bias: bool) -> None:
        super().__init__()
        other = width + 1 if separate else width
        self.widen = nn.Linear(width, other)
        self.attention = nn.MultiheadAttention(width, heads, kdim=other, vdim=other, bias=bias, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.widen(x)
        return self.head(self.attention(x, wide, wide, need_weights=False)[0].mean(1))


class Mixed(nn.Module):
    """Scalars, a parameter of one element, an empty one, a frozen one, buffers of several kinds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width + 1)
        self.frozen = nn.Linear(width + 1, width)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.rand(()))
        self.single = nn.Parameter(torch.rand(1, 1))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.zero = nn.Parameter(torch.zeros(3, 2))
        self.register_buffer("places", torch.arange(width))
        self.register_buffer("running", torch.zeros(width))
        self.register_buffer("mask", torch.rand(width) < 0.8)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.running += 0.1 * x.mean(0)
        x = (x - self.running + 0.01 * self.places) * self.mask * self.scale
        return self.head(torch.tanh(self.frozen(torch.relu(self.first(x))))) * self.single + self.empty.sum()


def batch_norms(rng: random.Random) -> Case:
    affine = [rng.random() < 0.6 for _ in range(2)]
    tracked = rng.random() < 0.8
    width = rng.randint(2, 8)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, width, 3, bias=rng_bias),
            nn.BatchNorm2d(width, affine=affine[0]),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9 * width, 5),
            nn.BatchNorm1d(5, affine=affine[1], track_running_stats=tracked),
        )

    rng_bias = rng.random() < 0.5
    return Case(make, lambda: torch.randn(4, 2, 5, 5))


def other_norms(rng: random.Random) -> Case:
    groups, each = rng.randint(1, 3), rng.randint(1, 3)
    width, affine, length = groups * each, rng.random() < 0.7, rng.randint(6, 9)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(2, width, 3),
            nn.GroupNorm(groups, width, affine=affine),
            nn.GELU(),
            nn.Conv1d(width, 3, 2, dilation=2, bias=False),
            nn.InstanceNorm1d(3, affine=not affine, track_running_stats=affine),
            nn.Flatten(),
            nn.LayerNorm(3 * (length - 4)),
            nn.Linear(3 * (length - 4), 2),
        )

    return Case(make, lambda: torch.randn(3, 2, length))


def convolutions(rng: random.Random, family: str) -> Case:
    groups, width = rng.choice([2, 3]), 6
    depthwise, bias = rng.random() < 0.4, rng.random() < 0.6
    size = rng.randint(4, 6)

    def make() -> nn.Module:
        if family == "grouped":
            layers: list[nn.Module] = [
                nn.Conv2d(2, width, 3, bias=bias),
                nn.ReLU(),
                nn.Conv2d(width, width, 2, groups=width if depthwise else groups, bias=bias),
                nn.Conv2d(width, 3, 1),
            ]
        elif family == "transposed":
            layers = [
                nn.Conv2d(2, width, 2, stride=2),
                nn.ReLU(),
                nn.ConvTranspose2d(width, width, 2, stride=2, groups=groups, bias=bias),
                nn.ConvTranspose2d(width, 1, 2),
            ]
        else:
            layers = [nn.Conv3d(2, width, 2, bias=bias), nn.ReLU(), nn.Conv3d(width, 2, 1, groups=2)]
        return nn.Sequential(*layers, nn.Flatten())

    shape = (2, 2, size, size, size) if family == "volume" else (3, 2, size, size)
    return Case(make, lambda: torch.randn(shape))


def attentions(rng: random.Random, family: str) -> Case:
    heads, each, bias = rng.randint(1, 2), rng.randint(1, 3), rng.random() < 0.7
    width, separate, first = heads * each, rng.random() < 0.4, rng.random() < 0.5

    def make() -> nn.Module:
        if family == "attention":
            return Attention(width, heads, separate=separate, bias=bias)
        return nn.TransformerEncoderLayer(width, heads, width + 1, 0.1, batch_first=True, norm_first=first, bias=bias)

    return Case(make, lambda: torch.randn(2, 4, width))


def half_precision(rng: random.Random) -> Case:
    dtype, width = rng.choice([torch.bfloat16, torch.float64]), rng.randint(2, 10)

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 3)).to(dtype)

    return Case(make, lambda: torch.randn(5, 4).to(dtype))


def case_of(seed: int) -> Case:
    rng, family = random.Random(seed), FAMILIES[seed % len(FAMILIES)]
    if family in ("grouped", "transposed", "volume"):
        case = convolutions(rng, family)
    elif family in ("attention", "encoder"):
        case = attentions(rng, family)
    elif family == "tied":
        tokens, width, bias, norm = rng.randint(5, 20), rng.randint(2, 8), rng.random() < 0.5, rng.random() < 0.5
        case = Case(lambda: Tied(tokens, width, bias=bias, norm=norm), lambda: torch.randint(tokens, (3, 5)))
    elif family == "mixed":
        width = rng.randint(2, 9)
        choices: list[list[str | type[nn.Module]]] = [[], ["head.*"], ["first", "*.bias"], ["zero", "single"]]
        case = Case(lambda: Mixed(width), lambda: torch.randn(4, width), rng.choice(choices))
    else:
        case = {"batch norm": batch_norms, "other norms": other_norms, "half": half_precision}[family](rng)
    if family != "mixed" and rng.random() < 0.2:
        case.ignore = rng.choice([["*bias*"], [nn.LayerNorm], [nn.modules.batchnorm._BatchNorm]])
    return case


def made(case: Case, seed: int) -> tuple[nn.Module, list[str | type[nn.Module]]]:
    """Returns the network and what of its `ignore` matches anything."""
    torch.manual_seed(seed)
    model = case.make()
    usable: list[str | type[nn.Module]] = []
    for item in case.ignore:
        try:
            select(model, [item])
        except InvalidInputError:
            continue
        usable.append(item)
    return model, usable


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def smallest(model: nn.Module, ignore: list[str | type[nn.Module]], tiny: FileSize | WeightBits) -> int:
    """Returns the smallest target that the error names."""
    with pytest.raises(InfeasibleTargetError) as caught:
        ac.Compressor(model, optimizer_of(model), target=tiny, total_steps=1, ignore=ignore)
    return caught.value.smallest


def target_of(rng: random.Random, model: nn.Module, ignore: list[str | type[nn.Module]]) -> FileSize | WeightBits:
    if rng.random() < 0.4:
        chosen = select(model, ignore)
        parameters, least = chosen.compressible, len(chosen.weights)
        return WeightBits(bits=rng.choice([least, int(least + rng.random() ** 2 * 8 * parameters), 40 * parameters]))
    least = smallest(model, ignore, FileSize(1))
    dense = original_bytes(model)
    ceiling = max(dense, least)
    kind = rng.random()
    if kind < 0.15:
        return FileSize(least + rng.randint(0, 3))
    if kind < 0.25:
        return FileSize(2 * ceiling + 1000)
    return FileSize(int(least + rng.random() ** 3 * (1.2 * ceiling - least)) if ceiling > least else least)


def train_steps(compressor: ac.Compressor, model: nn.Module, case: Case, count: int) -> None:
    optimizer = compressor.optimizer
    model.train()
    for _ in range(count):
        output = model(case.example()).float()
        (output - torch.randn_like(output)).square().mean().backward()
        optimizer.step()
        compressor.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("seed", CASES)
def test_never_above_the_target_and_loads_bit_exact(seed: int, tmp_path) -> None:
    case, rng = case_of(seed), random.Random(seed + 10_000)
    model, ignore = made(case, seed)
    target = target_of(rng, model, ignore)
    total_steps = rng.choice([1, 1, 1, 1, 2, 3, 8])
    compressor = ac.Compressor(model, optimizer_of(model), target=target, total_steps=total_steps, ignore=ignore)
    train_steps(compressor, model, case, total_steps if rng.random() < 0.7 else rng.randint(0, total_steps))
    result = compressor.finish(train=[(case.example(), torch.zeros(1))] if rng.random() < 0.3 else None)
    path = tmp_path / "net.safetensors"
    result.save(path)
    if isinstance(target, FileSize):
        assert path.stat().st_size <= target.size_bytes
    else:
        assert result.state.weight_data_bits <= target.bits
    torch.manual_seed(seed + 1)
    loaded = ac.load(path, into=case.make())
    x = case.example()
    with torch.no_grad():
        logits, again = result.model(x), loaded(x)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("seed", range(10))
def test_the_smallest_size_that_is_named_succeeds_and_one_byte_less_does_not(seed: int) -> None:
    case = case_of(seed)
    model, ignore = made(case, seed)
    least = smallest(model, ignore, FileSize(1))
    assert smallest(model, ignore, FileSize(least - 1)) == least
    compressor = ac.Compressor(model, optimizer_of(model), target=FileSize(least), total_steps=2, ignore=ignore)
    train_steps(compressor, model, case, 2)
    assert compressor.finish().file_bytes <= least


@pytest.mark.parametrize("seed", range(0, 20, 4))
def test_the_fewest_bits_that_are_named_succeed_and_one_less_does_not(seed: int) -> None:
    case = case_of(seed)
    model, ignore = made(case, seed)
    parameters = [p for p in model.parameters() if p.dim() > 1 and p.numel()]
    if len(parameters) < 2:
        pytest.skip("a single tensor needs a single bit")
    least = smallest(model, ignore, WeightBits(bits=1))
    if least > 2:
        assert smallest(model, ignore, WeightBits(bits=least - 1)) == least
    compressor = ac.Compressor(model, optimizer_of(model), target=WeightBits(bits=least), total_steps=3, ignore=ignore)
    train_steps(compressor, model, case, 3)
    assert compressor.finish().state.weight_data_bits <= least
