"""The entropy coder: exact round trips, its length against the ideal, and probabilities that are whole numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.codec.adaptive_models import Integers, Ordered, Symbols, blocks
from autocompress.codec.positions import class_bounds
from autocompress.codec.range_coder import ONE, Decoder, Encoder, Meter
from autocompress.codec.state_coder import code_length, decode_stream, encode_stream, entries_of
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import (
    CompressedState,
    GridTensor,
    QuantizedTensor,
    quantized_tensor,
    round_codebook,
    to_grid,
)


def coded(shape, keep=0.2, size=5, seed=0):
    """Returns a random QuantizedTensor."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.zeros(shape, dtype=torch.int64)
    if size:
        codes = torch.randint(1, size + 1, shape, generator=generator)
        codes *= torch.rand(shape, generator=generator) < keep
    values = torch.sort(torch.randn(size, generator=generator)).values
    return QuantizedTensor(codes.to(torch.int16), round_codebook(values))


def assert_round_trip(state):
    back = decode_stream(encode_stream(state), entries_of(state), state.aliases)
    for name, tensor in state.quantized.items():
        assert torch.equal(back.quantized[name].codes, tensor.codes)
        assert back.quantized[name].codes.dtype == torch.int16
        assert torch.equal(back.quantized[name].values, tensor.values)
    for name, tensor in state.grid.items():
        assert torch.equal(back.grid[name].levels, tensor.levels)
        assert back.grid[name].levels.dtype == torch.int32
        assert back.grid[name].step == tensor.step
    for name, tensor in state.raw.items():
        assert back.raw[name].dtype == tensor.dtype
        assert back.raw[name].shape == tensor.shape
        assert bytes(back.raw[name].reshape(-1).view(torch.uint8).numpy()) == bytes(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        )


SHAPES = [(4, 3, 5, 5), (8, 4, 3, 3), (6, 72), (10, 6), (72, 5), (1, 7), (7, 1), (3, 2, 4), (1, 5, 6), (4, 2, 2, 2, 3), (9, 1, 3, 3), (2, 2, 20, 20)]  # fmt: skip  # noqa: E501


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([*SHAPES, (0, 3), (3, 0)]), min_size=0, max_size=5),
    keep=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.95, 1.0]),
    size=st.sampled_from([0, 1, 2, 7, 40, 127, 128, 300]),
    step=st.sampled_from([2.0**-3, 2.0**-9, 2.0**-126, 3.0]),
    seed=st.integers(0, 1000),
)
def test_random_states_come_back_exactly(shapes, keep, size, step, seed):
    generator = torch.Generator().manual_seed(seed)
    state = CompressedState()
    for i, shape in enumerate(shapes):
        state.quantized[f"l{i}.weight"] = coded(shape, keep, size, seed + i)
        state.grid[f"l{i}.bias"] = to_grid(torch.randn(shape[0], generator=generator) * 50 * step, step)
    state.raw["n"] = torch.tensor(seed)
    state.raw["x"] = torch.randn(3, 4, generator=generator)
    assert_round_trip(state)


def test_extreme_grids_and_codebooks_come_back_exactly():
    levels = torch.tensor([0, 1, -1, 32767, -32767, 2, 255, -256], dtype=torch.int32)
    wide = round_codebook(torch.sort(torch.randn(2000, generator=torch.Generator().manual_seed(0))).values)
    codes = torch.arange(0, 2000).reshape(40, 50).to(torch.int16)
    one = QuantizedTensor(torch.ones(2, 2, dtype=torch.int16), round_codebook(torch.tensor([-1e-30])))
    state = CompressedState({"a": QuantizedTensor(codes, wide), "b": one}, {"g": GridTensor(levels, 2.0**10)})
    assert_round_trip(state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(7),
        torch.tensor([True, False, True]),
        torch.tensor([[1.5, float("nan")], [float("-inf"), -0.0]]),
        torch.zeros(0, 3),
        torch.randn(5, 3).to(torch.bfloat16),
        torch.randn(4).to(torch.complex64),
        torch.full((6,), 1 - 1e-5),
        torch.arange(300, dtype=torch.int64),
        torch.randn(4, 5).T,
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_other_tensors_come_back_bit_for_bit(tensor):
    assert_round_trip(CompressedState(raw={"t": tensor, "running_var": tensor.clone()}))


def test_batch_norm_constants_are_nearly_free():
    plain = CompressedState({"w": coded((8, 8))})
    raw = {}
    for i in range(20):
        raw |= {f"bn{i}.running_mean": torch.zeros(64), f"bn{i}.running_var": torch.full((64,), 1 - 1e-5)}
        raw[f"bn{i}.num_batches_tracked"] = torch.tensor(0)
    assert len(encode_stream(CompressedState(plain.quantized, raw=raw))) - len(encode_stream(plain)) <= 8


def test_the_stream_is_as_long_as_its_ideal_length():
    state = CompressedState({"c.weight": coded((20, 10, 5, 5)), "d.weight": coded((50, 500), 0.02)})
    ideal_bits = sum(code_length(state).values())
    assert abs(len(encode_stream(state)) - ideal_bits / 8) <= 3


def test_unstructured_positions_cost_little_more_than_their_entropy():
    tensor = coded((100, 400), 0.05, 4)
    q = tensor.nonzeros / tensor.codes.numel()
    entropy = -tensor.codes.numel() * (q * math.log2(q) + (1 - q) * math.log2(1 - q))
    booked = code_length(CompressedState({"w": tensor}))
    assert booked["positions", "w"] <= 1.03 * entropy
    assert booked["codes", "w"] <= 2 * tensor.nonzeros + 60


def test_dead_rows_columns_and_channels_cost_little():
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.rand(200, generator=generator) < 0.2, torch.rand(300, generator=generator) < 0.2
    first = coded((200, 300), 0.2)
    first = QuantizedTensor(first.codes * rows[:, None] * columns, first.values)
    n, cells = first.nonzeros, int(rows.sum()) * int(columns.sum())
    q = n / cells
    known = -cells * (q * math.log2(q) + (1 - q) * math.log2(1 - q))  # if live rows and columns were known
    booked = code_length(CompressedState({"a": first}))
    assert booked["positions", "a"] <= known + 0.73 * 500 + 1.3 * 500
    second = coded((10, 200), 0.9)
    second = QuantizedTensor(second.codes * rows, second.values)
    alone = code_length(CompressedState({"b": second}))["positions", "b"]
    after = code_length(CompressedState({"a": first, "b": second}))["positions", "b"]
    assert after <= 0.75 * alone


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 100, 4608])
def test_row_classes_cover_every_count(columns):
    bounds = class_bounds(columns)
    assert bounds[0] == 0
    assert bounds[1] == 1
    assert bounds[-1] == columns + 1
    assert columns in bounds
    assert (np.diff(bounds) > 0).all()


def test_blocks_cover_every_item_once():
    for count, size in [(0, 1), (1, 5000), (700, 3), (5000, 1)]:
        assert [i for block in blocks(count, size) for i in range(count)[block]] == list(range(count))


@pytest.mark.parametrize("model", [lambda: Integers(), lambda: Integers(signed=False), lambda: Ordered(1000)])
def test_integers_come_back(model):
    values = np.random.default_rng(0).integers(0, 1000, 300) * (np.arange(300) % 3 > 0)
    encoder = Encoder()
    model().code(encoder, values)
    assert model().code(Decoder(encoder.finish()), np.zeros(300, np.int64)).tolist() == values.tolist()


def test_streams_end_without_waste():
    rng = np.random.default_rng(0)
    for count in range(1, 200):
        probabilities = rng.integers(1, ONE, count)
        values = (rng.integers(0, ONE, count) < probabilities).astype(np.int64)
        encoder, meter = Encoder(), Meter()
        encoder.flags(probabilities, values)
        meter.flags(probabilities, values)
        data = encoder.finish()
        assert Decoder(data).flags(probabilities, np.zeros(count)).tolist() == values.tolist()
        assert len(data) <= math.ceil(meter.total_bits / 8) + 1


def test_weights_are_whole_positive_numbers():
    model = Symbols(7, 3)
    model.code(Meter(), np.arange(700) % 5, np.arange(700) % 2)
    assert model.weights().shape == (3, 7)
    assert model.weights().dtype == np.int64
    assert (model.weights() > 0).all()


@pytest.mark.parametrize(("values", "twins"), [(128, 1), (128, 60), (129, 2), (130, 2), (300, 140), (9, 3)])
def test_values_that_become_equal_make_a_codebook_that_can_be_written(values, twins):
    """128 values that are 127 once two of them are equal are written at 8 bits, not 16."""
    generator = torch.Generator().manual_seed(values + twins)
    some = torch.randn(values, generator=generator)
    some[:twins] = some[-twins:]
    codes = torch.cat([torch.arange(values + 1), torch.randint(0, values + 1, (999 - values,), generator=generator)])
    tensor = quantized_tensor(codes.view(25, 40), some)
    assert tensor.values.numel() <= values - twins
    assert_round_trip(CompressedState({"w": tensor}))
    wanted = torch.cat([torch.zeros(1), some])[codes].view(25, 40)
    assert float((tensor.dense() - wanted).abs().max()) <= float(some.abs().max()) / 127


def test_values_off_the_grid_are_refused():
    bad = QuantizedTensor(torch.ones(2, 2, dtype=torch.int16), torch.tensor([0.1, 0.23456]))
    with pytest.raises(InvalidInputError, match="rounded by round_codebook"):
        encode_stream(CompressedState({"w": bad}))
    bad = QuantizedTensor(torch.full((2, 2), 3, dtype=torch.int16), round_codebook(torch.tensor([0.1])))
    with pytest.raises(InvalidInputError, match=r"codes must be in 0\.\.1"):
        encode_stream(CompressedState({"w": bad}))
    with pytest.raises(InvalidInputError, match="bfloat16"):
        encode_stream(CompressedState(grid={"b": GridTensor(torch.zeros(2, dtype=torch.int32), 0.1)}))
    for step in (math.inf, math.nan, 0.0, -1.0, 2.0**-130):
        with pytest.raises(InvalidInputError, match="must be a finite number"):
            encode_stream(CompressedState(grid={"b": GridTensor(torch.zeros(2, dtype=torch.int32), step)}))
    with pytest.raises(InvalidInputError, match="within 32767"):
        encode_stream(CompressedState(grid={"b": GridTensor(torch.full((2,), 40000, dtype=torch.int32), 1.0)}))
    with pytest.raises(InvalidInputError, match="cannot store"):
        encode_stream(CompressedState(raw={"b": torch.zeros(2, dtype=torch.float8_e4m3fn)}))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data):
    state = CompressedState({"a.weight": coded((4, 3, 3, 3)), "b.weight": coded((5, 36))}, {"a.bias": to_grid(torch.zeros(4), 1.0)}, {"x": torch.zeros(9)})  # fmt: skip  # noqa: E501
    try:
        back = decode_stream(data, entries_of(state), {})
    except CorruptArtifactError:
        return
    assert {name: tuple(tensor.shape) for name, tensor in back.dense().items()} == {
        entry.name: entry.shape for entry in entries_of(state)
    }
