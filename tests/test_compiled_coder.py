"""The compiled coder: bit for bit the stream of the other one, both ways, and doing without numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.codec import state_coder
from autocompress.codec.file import encode_state, read_compressed
from autocompress.codec.range_coder import ONE, Coder, Decoder, Encoder, Meter
from autocompress.codec.state_coder import code_length, decode_stream, encode_stream, entries_of
from autocompress.errors import CorruptArtifactError
from autocompress.network.compressed_tensors import CompressedState, QuantizedTensor, round_codebook, to_grid
from autocompress.network.kernel_tensor import kernel_tensor

pytest.importorskip("numba")
from autocompress.codec.compiled_coder import CompiledDecoder, CompiledEncoder, CompiledMeter

COMPILED_ASSIGNMENT = "autocompress.constraints.rate_distortion.compiled_assignment"
GOLDEN = Path(__file__).parent / "golden"


def random_calls(generator):
    """Returns calls of a coder with values of all kinds: (method, model, values)."""
    calls = []
    for _ in range(100):
        count, kind = int(generator.integers(0, 60)), generator.integers(3)
        if kind == 0:
            ends = generator.choice([1, 2, ONE // 2, ONE - 1], count)
            chances = generator.integers(1, ONE, count) if generator.random() < 0.5 else ends
            calls.append(("flags", chances, generator.integers(0, 2, count)))
        elif kind == 1:
            size = int(generator.integers(1, 300))
            weights = np.minimum(generator.integers(1, 1 << int(generator.integers(1, 22)), size), (1 << 22) // size)
            calls.append(("symbols", weights, generator.integers(0, size, count)))
        else:
            width = int(generator.integers(0, 17))
            calls.append(("bits", width, generator.integers(0, 1 << width, count)))
    return calls


@pytest.mark.parametrize("seed", range(30))
def test_every_call_writes_and_reads_the_same_stream(seed):
    calls = random_calls(np.random.default_rng(seed))
    coders: list[Coder] = [Encoder(), CompiledEncoder(), Meter(), CompiledMeter()]
    for coder in coders:
        for method, model, values in calls:
            assert np.array_equal(getattr(coder, method)(model, values), values)
    plain, compiled, meter, compiled_meter = coders
    stream = plain.finish()
    assert compiled.finish() == stream
    assert compiled_meter.total_bits == pytest.approx(meter.total_bits)
    for decoder in (Decoder(stream), CompiledDecoder(stream)):
        for method, model, values in calls:
            assert np.array_equal(getattr(decoder, method)(model, np.zeros_like(values)), values)


def test_a_carry_runs_through_the_words_before():
    # Intervals at the very top of the last one: what is written ends in words of ones until a carry clears them.
    rare, values = np.full(400, 1, np.int64), np.zeros(400, np.int64)
    for last in (np.array([0, 0]), np.array([1, 1])):
        coders = Encoder(), CompiledEncoder()
        for coder in coders:
            coder.symbols(np.array([1, (1 << 22) - 2, 1]), np.full(50, 2, np.int64))
            coder.flags(rare, values)
            coder.bits(16, last)
        assert coders[0].finish() == coders[1].finish()


def state_of(shape, keep, size, seed):
    """Returns a state of two tensors of a shape, whose rows and columns differ in density, and their biases."""
    generator = torch.Generator().manual_seed(seed)
    state = CompressedState()
    for name in ("a", "b"):
        scale = torch.rand(shape[0], generator=generator).reshape(-1, *[1] * (len(shape) - 1)) ** 2
        scale = scale * torch.rand(shape[1], generator=generator).reshape(1, -1, *[1] * (len(shape) - 2)) * 4
        live = torch.rand(shape, generator=generator) < keep * scale
        live[: shape[0] // 8] = False
        codes = torch.randint(1, size + 1, shape, generator=generator) * live
        values = round_codebook(torch.sort(torch.randn(size, generator=generator)).values)
        state.quantized[f"{name}.weight"] = QuantizedTensor(codes.to(torch.int16), values)
        state.grid[f"{name}.bias"] = to_grid(torch.randn(shape[0], generator=generator), 2.0**-6)
    state.raw["counter"] = torch.arange(40)
    return state


def both(monkeypatch, call):
    """Returns what a call returns without and with compiled code."""
    found = []
    for least in (1 << 60, 0):
        monkeypatch.setattr(state_coder, "COMPILED_FROM", least)
        found.append(call())
    return found


@pytest.mark.parametrize(
    ("shape", "keep", "size"),
    [
        ((32, 16, 3, 3), 0.1, 7),
        ((16, 8, 5, 5), 1.0, 40),
        ((24, 24, 1, 1), 0.3, 1),
        ((40, 30, 3), 0.2, 15),
        ((64, 96), 0.05, 12),
        ((300, 20), 0.5, 300),
        ((6, 3, 2, 2, 3), 0.4, 4),
        ((5, 3, 17, 17), 0.2, 4),
        ((9, 1, 3, 3), 0.9, 5),
    ],
)
def test_states_have_the_same_stream_either_way(monkeypatch, shape, keep, size):
    state = state_of(shape, keep, size, seed=len(shape) + size)
    plain, compiled = both(monkeypatch, lambda: encode_stream(state))
    assert compiled == plain
    lengths, compiled_lengths = both(monkeypatch, lambda: code_length(state))
    assert compiled_lengths == pytest.approx(lengths)
    for back in both(monkeypatch, lambda: decode_stream(plain, entries_of(state), {})):
        for name, tensor in state.quantized.items():
            assert torch.equal(back.quantized[name].codes, tensor.codes)
            assert torch.equal(back.quantized[name].values, tensor.values)
        assert all(torch.equal(back.grid[name].levels, tensor.levels) for name, tensor in state.grid.items())
        assert torch.equal(back.raw["counter"], state.raw["counter"])


def test_codebooks_of_kernels_have_the_same_stream_either_way(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 8, (48,), generator=generator)
    kernels = kernel_tensor(codes, torch.randn(8, 9, generator=generator), (12, 4, 3, 3))
    state = CompressedState({"k.weight": kernels, "q.weight": state_of((8, 12), 0.3, 5, 1).quantized["a.weight"]})
    plain, compiled = both(monkeypatch, lambda: encode_state(state, names=True))
    assert compiled == plain


@pytest.mark.parametrize("version", [1, 2])
def test_golden_files_are_read_the_same(monkeypatch, version):
    path = GOLDEN / f"version{version}.safetensors"
    plain, compiled = (state.dense() for state in both(monkeypatch, lambda: read_compressed(path)))
    assert plain.keys() == compiled.keys()
    assert all(torch.equal(compiled[name], tensor) for name, tensor in plain.items())


def test_a_damaged_stream_is_refused_or_read_as_the_other_coder_reads_it(monkeypatch):
    state = state_of((12, 8, 3, 3), 0.3, 9, seed=0)
    stream = bytearray(encode_stream(state))
    generator = np.random.default_rng(0)

    def outcome():
        try:
            return decode_stream(bytes(stream), entries_of(state), {}).dense()
        except CorruptArtifactError:
            return None

    refused = 0
    for _ in range(60):
        at, byte = int(generator.integers(len(stream))), int(generator.integers(256))
        kept, stream[at] = stream[at], byte
        plain, compiled = both(monkeypatch, outcome)
        stream[at] = kept
        assert (plain is None) == (compiled is None)
        if plain is None:
            refused += 1
            continue
        assert all(torch.equal(compiled[name], tensor) or tensor.isnan().any() for name, tensor in plain.items())
    assert refused


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_without_numba_or_a_place_for_its_code_the_other_coder_writes_the_same(monkeypatch, error):
    state = state_of((8, 6, 3, 3), 0.3, 5, seed=0)
    monkeypatch.setattr(state_coder, "COMPILED_FROM", 0)
    expected = encode_stream(state)
    module = "autocompress.codec.compiled_coder"

    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name == module:
                raise error("no numba here")

    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("autocompress.codec.compiled_coder")
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    assert state_coder._coders(entries_of(state)).encoder is Encoder
    assert encode_stream(state) == expected


def test_where_the_disk_is_full_the_other_coder_goes_on(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    state = state_of((8, 6, 3, 3), 0.3, 5, seed=0)
    expected, lengths = encode_stream(state), code_length(state)
    monkeypatch.setattr(state_coder, "COMPILED_FROM", 0)
    monkeypatch.setattr(CompiledEncoder, "run", full)  # the kernels are the same for all three
    monkeypatch.setattr(CompiledDecoder, "run", full)
    monkeypatch.setattr(CompiledMeter, "run", full)
    assert encode_stream(state) == expected
    assert code_length(state) == lengths
    back = decode_stream(expected, entries_of(state), {})
    assert torch.equal(back.quantized["a.weight"].codes, state.quantized["a.weight"].codes)


@pytest.mark.parametrize("module", ["codec.compiled_coder", "constraints.rate_distortion.compiled_assignment"])
def test_where_numba_is_told_not_to_compile_it_is_left_alone(module):
    program = f"import autocompress.{module}"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ImportError: numba is told not to compile" in done.stderr


def test_a_large_network_is_compressed_and_loads_back(tmp_path, monkeypatch):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 16))

    inputs = torch.randn(8, 1024)
    result = ac.compress(make(), target="30x")
    assert 0.99 * 1_067_024 * 4 / 30 < result.file_bytes <= 1_067_024 * 4 / 30
    assert {"autocompress.codec.compiled_coder", COMPILED_ASSIGNMENT} <= sys.modules.keys()
    result.save(tmp_path / "net.safetensors")
    loaded = ac.load(tmp_path / "net.safetensors", into=make())
    assert torch.equal(loaded(inputs), result.model(inputs))
    monkeypatch.setattr(state_coder, "COMPILED_FROM", 1 << 60)
    again = ac.load(tmp_path / "net.safetensors", into=make())  # by the other coder
    assert torch.equal(again(inputs), loaded(inputs))
