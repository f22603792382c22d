"""A small part of `tests/fuzz`, and the proof that its checks can fail."""

from __future__ import annotations

import random

import pytest
import torch

from autocompress.codec import file
from autocompress.errors import CorruptArtifactError
from tests.fuzz import loader
from tests.fuzz.mutations import KINDS, mutate, run


def test_mutated_files_end_in_an_error_of_ours_or_a_sound_state() -> None:
    outcomes = run(1500, seed=1)
    assert outcomes["plain, refused"] > 100
    assert outcomes["sealed, refused"] > 500
    assert outcomes.total() == 1500


def test_the_seeds_are_read_and_belong_to_the_network() -> None:
    seeds = loader.seeds()
    assert len(seeds) == 6
    assert [loader.check(seed, loader.LAYOUT) for seed in seeds] == ["read"] * 6
    assert [loader.seal(seed) for seed in seeds] == seeds


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mutation_changes_files(kind: str) -> None:
    first, second, *_ = loader.seeds()
    chance = random.Random(0)
    assert sum(mutate(first, second, kind, chance) != first for _ in range(20)) >= 10


def test_a_seal_lets_damage_through_to_the_stream() -> None:
    data = bytearray(loader.seeds()[0])
    data[-3] ^= 255
    with pytest.raises(CorruptArtifactError, match="checksum"):
        file.decode_state(bytes(data), loader.LAYOUT)
    try:
        file.decode_state(loader.seal(bytes(data)), loader.LAYOUT)
        deeper = "read"
    except CorruptArtifactError as error:
        deeper = str(error)
    assert "checksum" not in deeper


def test_values_beyond_float32_are_refused() -> None:
    state = file.decode_state(loader.seeds()[0], loader.LAYOUT)
    name, grid = next(iter(state.grid.items()))
    assert int(grid.levels.abs().max()) > 1
    spoilt = grid.__class__(grid.levels, 2.0**127)
    data = file.encode_state(state.__class__(state.quantized, state.grid | {name: spoilt}, state.raw, state.aliases))
    with pytest.raises(CorruptArtifactError, match=f"'{name}' has values beyond"):
        file.decode_state(data, loader.LAYOUT)


def test_an_error_that_is_not_ours_is_let_through(monkeypatch) -> None:
    def broken(data: bytes, layout: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(loader, "decode_state", broken)
    with pytest.raises(IndexError):
        loader.check(b"", loader.LAYOUT)


def test_a_state_with_infinite_values_is_no_sound_state(monkeypatch) -> None:
    state = file.decode_state(loader.seeds()[0], loader.LAYOUT)
    name = next(iter(state.grid))
    spoilt = state.grid[name].__class__(state.grid[name].levels, float("inf"))
    monkeypatch.setattr(
        loader,
        "decode_state",
        lambda data, layout: state.__class__(state.quantized, state.grid | {name: spoilt}, state.raw, state.aliases),
    )
    assert not bool(torch.isfinite(spoilt.dense()).all())
    with pytest.raises(AssertionError, match=name):
        loader.check(b"", loader.LAYOUT)
