"""The file: round trips, damage, saving and loading, sizes."""

from __future__ import annotations

import torch
from torch import nn

from autocompress.artifact import decode_state, encode_state, fill, layout_of, load, save_artifact, shared_names
from autocompress.codebooks import CodedTensor, CompressedState, round_codebook, to_grid


def random_state(module: nn.Module, seed: int = 0, keep: float = 0.2, size: int = 5) -> CompressedState:
    """Returns a random compressed state of a module's names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    aliases = shared_names(module)
    state = CompressedState(aliases=aliases)
    for name, tensor in module.state_dict().items():
        if name in aliases:
            continue
        if not tensor.is_floating_point() or "running" in name:
            state.raw[name] = tensor.clone()
        elif tensor.ndim > 1:
            codes = torch.randint(1, size + 1, tensor.shape, generator=generator)
            codes *= torch.rand(tensor.shape, generator=generator) < keep
            values = round_codebook(torch.sort(torch.randn(size, generator=generator)).values)
            state.coded[name] = CodedTensor(codes.to(torch.int16), values)
        else:
            state.grid[name] = to_grid(torch.randn(tensor.shape, generator=generator), 2**-6)
    return state


def assert_same(a: CompressedState, b: CompressedState) -> None:
    """Asserts that two states hold the same bits."""
    assert list(a.coded) == list(b.coded)
    assert list(a.grid) == list(b.grid)
    assert list(a.raw) == list(b.raw)
    assert a.aliases == b.aliases
    for name, coded in a.coded.items():
        assert torch.equal(coded.codes, b.coded[name].codes)
        assert torch.equal(coded.values, b.coded[name].values)
    for name, grid in a.grid.items():
        assert torch.equal(grid.levels, b.grid[name].levels)
        assert grid.step == b.grid[name].step
    for name, raw in a.raw.items():
        assert raw.dtype == b.raw[name].dtype
        assert raw.shape == b.raw[name].shape
        assert raw.numpy().tobytes() == b.raw[name].numpy().tobytes()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(x)))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )


def test_round_trip_with_model(tmp_path):
    for make in (conv_net, Tied):
        model = make()
        state = random_state(model)
        data = encode_state(state, names=False)
        assert_same(decode_state(data, layout_of(model)), state)
        save_artifact(tmp_path / "net.safetensors", data)
        loaded = load(tmp_path / "net.safetensors", make())
        direct = fill(make(), state)
        for (name, a), b in zip(loaded.state_dict().items(), direct.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        assert not loaded.training


def test_round_trip_without_model():
    state = random_state(Tied())
    assert_same(decode_state(encode_state(state, names=True)), state)
