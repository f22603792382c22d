"""The file: round trips, damage, saving and loading, sizes."""

from __future__ import annotations

import itertools
import os
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from autocompress.codec.file import (
    Payload,
    decode_state,
    encode_state,
    load,
    pack,
    read_compressed,
    save_artifact,
    unpack,
)
from autocompress.codec.layout import fingerprint, layout_of, shared_names
from autocompress.codec.size_report import size_report
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import CompressedState, QuantizedTensor, round_codebook, to_grid
from autocompress.network.network_state import fill
from autocompress.network.selection import original_bytes

GOLDEN = Path(__file__).parent / "golden"


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
            state.quantized[name] = QuantizedTensor(codes.to(torch.int16), values)
        else:
            state.grid[name] = to_grid(torch.randn(tensor.shape, generator=generator), 2**-6)
    return state


def assert_same(a: CompressedState, b: CompressedState) -> None:
    """Asserts that two states hold the same bits."""
    assert list(a.quantized) == list(b.quantized)
    assert list(a.grid) == list(b.grid)
    assert list(a.raw) == list(b.raw)
    assert a.aliases == b.aliases
    for name, coded in a.quantized.items():
        assert torch.equal(coded.codes, b.quantized[name].codes)
        assert torch.equal(coded.values, b.quantized[name].values)
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


def small_file(names: bool = False) -> tuple[nn.Module, bytes]:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, encode_state(random_state(model), names=names)


def test_the_container_is_safetensors_and_small(tmp_path):
    _, data = small_file()
    (tmp_path / "net.safetensors").write_bytes(data)
    with safe_open(tmp_path / "net.safetensors", "np") as file:
        assert list(file.keys()) == ["w"]
        tensor = file.get_tensor("w")
    assert tensor.dtype == np.uint8
    assert data.endswith(tensor.tobytes())
    assert len(data) - len(unpack(data).stream) <= 76


def test_names_go_along_where_they_are_cheap():
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 30))
    big = random_state(model)
    assert_same(decode_state(encode_state(big)), big)
    _, small = small_file()
    assert unpack(encode_state(random_state(nn.Linear(6, 4)))).table is None
    with pytest.raises(InvalidInputError, match="give the model"):
        decode_state(small)


@pytest.mark.parametrize("names", [False, True])
def test_every_flipped_bit_is_found(names):
    model, data = small_file(names)
    layout = layout_of(model)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptArtifactError):
            decode_state(bytes(flipped), layout)


def test_every_truncation_and_extension_is_found():
    model, data = small_file()
    for length in range(len(data)):
        with pytest.raises(CorruptArtifactError):
            decode_state(data[:length], layout_of(model))
    with pytest.raises(CorruptArtifactError):
        decode_state(data + b"\0", layout_of(model))


def test_random_bytes_are_refused():
    model, _ = small_file()
    rng = np.random.default_rng(0)
    for length in itertools.chain(range(100), [10_000]):
        with pytest.raises(CorruptArtifactError):
            decode_state(rng.bytes(length), layout_of(model))


def test_sound_checksums_do_not_make_a_hostile_stream_sound():
    model = conv_net()
    state = random_state(model)
    mark = unpack(encode_state(state, names=False)).fingerprint
    rng = np.random.default_rng(0)
    for length in [*range(20), 1000] * 3:
        data = pack(Payload(mark, None, rng.bytes(length)))
        try:
            back = decode_state(data, layout_of(model))
        except (CorruptArtifactError, InvalidInputError):
            continue
        fill(conv_net(), back)


def deflated(text: str) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(text.encode()) + compressor.flush()


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"not deflated",
        deflated("[]"),
        deflated("[1,2]"),
        deflated('[{"a":[1000000,1000000]},{}]'),
        deflated('[{"a":[268435456],"b":[268435456]},{}]'),
        deflated('[{"a":[0,1e9]},{}]'),
        deflated('[{"a":[-1]},{}]'),
        deflated('[{"a":[true]},{}]'),
        deflated('[{"a":[' + "0," * 99 + "0]},{}]"),
        deflated('[{"a":[0,' + "9" * 5000 + "]},{}]"),
        deflated('[{"a":[2]},{"b":"c"}]'),
        deflated('[{"a":[2]},{"b":["a"]}]'),
        deflated("[" * 100_000),
        deflated(" " * (1 << 25)),
        deflated('[{"a":[2]},{}]')[:-1],
        deflated('[{"a":[2]},{}]') + b"more",
    ],
    ids=range(17),
)
def test_hostile_name_tables_are_refused_quickly(table):
    start = time.perf_counter()
    with pytest.raises(CorruptArtifactError):
        decode_state(pack(Payload(b"abcd", table, b"")))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 8 + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (0).to_bytes(8, "little") + bytes(20),
    ],
)
def test_hostile_containers_are_refused(data):
    with pytest.raises(CorruptArtifactError, match=r"truncated|not a file"):
        unpack(data)


def test_a_later_version_is_named():
    _, data = small_file()
    later = pack(replace(unpack(data), version=3))
    with pytest.raises(CorruptArtifactError, match="format version 3, but this release reads versions up to 2"):
        unpack(later)


def test_a_file_for_another_network_is_refused():
    _, data = small_file()
    with pytest.raises(InvalidInputError, match="written for another network"):
        decode_state(data, layout_of(nn.Linear(6, 4)))
    _, named = small_file(names=True)
    with pytest.raises(InvalidInputError, match=r"no '2.weight' of shape \[2, 4\]"):
        decode_state(named, layout_of(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))))
    other = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(InvalidInputError, match=r"'0.weight' has shape \[4, 7\] in the model and \[4, 6\]"):
        decode_state(named, layout_of(other))


def test_the_fingerprint_tells_names_shapes_order_and_ties_apart():
    a = layout_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))).entries
    marks = {
        fingerprint(a, {}),
        fingerprint(a[::-1], {}),
        fingerprint(a[:-1], {}),
        fingerprint(a, {"x": "0.weight"}),
        fingerprint(layout_of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))).entries, {}),
    }
    assert len(marks) == 5


def test_load_keeps_dtype_and_leaves_the_module_alone_when_it_fails(tmp_path):
    model, data = small_file()
    save_artifact(tmp_path / "net.safetensors", data)
    half = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(torch.bfloat16)
    load(tmp_path / "net.safetensors", half)
    assert half[0].weight.dtype == torch.bfloat16
    state = read_compressed(tmp_path / "net.safetensors", model)
    assert torch.equal(half[0].weight, state.quantized["0.weight"].dense().to(torch.bfloat16))
    before = model[0].weight.clone()
    (tmp_path / "bad.safetensors").write_bytes(data[:-1])
    with pytest.raises(CorruptArtifactError):
        load(tmp_path / "bad.safetensors", model)
    assert torch.equal(model[0].weight, before)
    with pytest.raises(InvalidInputError, match=r"cannot read .*none\.safetensors"):
        load(tmp_path / "none.safetensors", model)


def test_what_can_hold_no_weights_is_refused(tmp_path):
    model, data = small_file()
    save_artifact(tmp_path / "net.safetensors", data)
    with torch.device("meta"):
        absent = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for into, message in [
        (absent, r"0\.weight of the network is on the meta device and holds no values"),
        (model.state_dict(), r"into is a OrderedDict; it must be a torch\.nn\.Module"),
        (nn.Linear, "into is the class Linear; it must"),
        (None, "into is a NoneType; it must"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            load(tmp_path / "net.safetensors", into)
    assert load(tmp_path / "net.safetensors", absent.to_empty(device="cpu"))[0].weight.isfinite().all()


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_artifact(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidInputError, match="No space left"):
        save_artifact(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidInputError, match="there is no folder"):
        save_artifact(tmp_path / "none" / "net.safetensors", b"new")


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_tied_weights_are_stored_once():
    model = Tied()
    assert shared_names(model) == {"head.weight": "embedding.weight"}
    assert original_bytes(model) == 4 * (13 * 8 + 8 + 8)
    loaded = fill(Tied(), decode_state(encode_state(random_state(model)), layout_of(model)))
    assert loaded.head.weight is loaded.embedding.weight


def test_the_report_adds_up():
    model = conv_net()
    state = random_state(model)
    data = encode_state(state)
    report = size_report(state, data, model)
    assert report.file_bytes == len(data)
    assert sum(report.parts.values()) == pytest.approx(report.entropy_bytes)
    assert report.original_bytes == original_bytes(model) == size_report(state, data).original_bytes
    layers = sum(layer.bytes for layer in report.layers) + sum(size for _, _, size in report.others)
    assert layers + report.parts["header"] + report.overhead_bytes == pytest.approx(report.file_bytes)
    assert report.weight_data_bytes == sum(layer.bits * layer.kept for layer in report.layers) / 8
    assert report.compressible_weights == 6 * 9 + 8 * 6 * 9 + 320
    assert [layer["name"] for layer in report.to_json()["layers"]] == list(state.quantized)
    text = str(report)
    assert all(name in text for name in [*state.quantized, "container and header", "weight data", "entropy", "file"])


def test_the_golden_file_of_version_1_stays_readable():
    expected = np.load(GOLDEN / "version1.npz")
    dense = read_compressed(GOLDEN / "version1.safetensors").dense()
    assert sorted(dense) == sorted(expected.files)
    for name, tensor in dense.items():
        assert tensor.numpy().dtype == expected[name].dtype
        assert tensor.numpy().tobytes() == expected[name].tobytes()


def test_what_is_read_without_a_model_is_bounded_by_the_files_size():
    model = nn.Linear(8192, 8192, bias=False)
    codes = QuantizedTensor(torch.zeros(8192, 8192, dtype=torch.int16), torch.zeros(0))
    data = encode_state(CompressedState({"weight": codes}, {}, {}, {}), names=True)
    assert len(data) < 200
    with pytest.raises(CorruptArtifactError, match=r"announces 67,108,864 elements; without a model at most 65,536"):
        decode_state(data)
    assert decode_state(data, layout_of(model)).quantized["weight"].shape == (8192, 8192)
