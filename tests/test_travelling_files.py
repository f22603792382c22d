"""Files that travel: into a part of a module, under other names, without a network, with texts of their own."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from small_task import make_model, make_shallow_model
from torch import nn

import autocompress as ac
from autocompress.cli import main
from autocompress.codec.file import read_bytes, read_metadata, with_metadata
from autocompress.errors import CorruptArtifactError, InvalidInputError

pytestmark = pytest.mark.any_file


class Module(nn.Module):
    """A network in an attribute, beside something that is no part of it."""

    def __init__(self, network: nn.Module, name: str = "net") -> None:
        super().__init__()
        self.add_module(name, network)
        self.loss = nn.Linear(2, 2)


@pytest.fixture(scope="module")
def result():
    return ac.compress(make_shallow_model(), target="1KB")


@pytest.fixture
def path(result, tmp_path):
    result.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def same(network: nn.Module, result) -> bool:
    mine, theirs = network.state_dict(), result.model.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def zeroed(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network


@pytest.mark.parametrize("prefix", ["net", "net.", {"": "net."}])
def test_into_the_network_within_a_module(path, result, prefix):
    module = Module(zeroed(make_shallow_model()))
    before = module.loss.weight.clone()
    assert ac.load(path, into=module, prefix=prefix) is module
    assert same(module.net, result)
    assert torch.equal(module.loss.weight, before)
    assert not module.training


def test_from_a_module_into_its_network_and_under_another_name(tmp_path):
    wrapped = nn.Sequential()
    wrapped.add_module("model", make_shallow_model())
    result = ac.compress(wrapped, target="1KB")
    result.save(tmp_path / "wrapped.safetensors")
    network = ac.load(tmp_path / "wrapped.safetensors", into=zeroed(make_shallow_model()), prefix="model")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), result.model.parameters(), strict=True))
    module = Module(zeroed(make_shallow_model()))
    ac.load(tmp_path / "wrapped.safetensors", into=module, prefix={"model.": "net."})
    assert all(torch.equal(a, b) for a, b in zip(module.net.parameters(), result.model.parameters(), strict=True))
    with pytest.raises(InvalidInputError, match=r"written for another network.*; it fits with prefix='model'"):
        ac.load(tmp_path / "wrapped.safetensors", into=make_shallow_model())


def test_what_does_not_fit_is_named(path, tmp_path, result):
    with pytest.raises(InvalidInputError, match="it fits with prefix='net'"):
        ac.load(path, into=Module(make_shallow_model()))
    with pytest.raises(InvalidInputError, match=r"with prefix='nett'; it fits with prefix='net'"):
        ac.load(path, into=Module(make_shallow_model()), prefix="nett")
    with pytest.raises(InvalidInputError, match=r"with prefix='head'; it fits without a prefix"):
        ac.load(path, into=make_shallow_model(), prefix="head")
    with pytest.raises(InvalidInputError, match=r"no name in the module begins so: they are 0\.weight"):
        ac.load(path, into=make_shallow_model(), prefix={"": "head."})
    named = tmp_path / "named.safetensors"
    ac.compress(make_shallow_model(), target="2KB").save(named, names=True)
    with pytest.raises(InvalidInputError, match=r"'2\.weight' has shape \[32, 32\] in the model and \[3"):
        ac.load(named, into=Module(make_model()), prefix="net")


def test_tied_weights_within_a_module(tmp_path):
    def tied() -> nn.Module:
        network = nn.ModuleDict({"embedding": nn.Embedding(20, 8), "head": nn.Linear(8, 20, bias=False)})
        network["head"].weight = network["embedding"].weight
        return network

    result = ac.compress(tied(), target="400B")
    result.save(tmp_path / "tied.safetensors")
    module = ac.load(tmp_path / "tied.safetensors", into=Module(tied()), prefix="net")
    assert torch.equal(module.net["head"].weight, result.model["embedding"].weight)
    assert module.net["head"].weight is module.net["embedding"].weight


def test_a_state_without_a_network(path, tmp_path, result):
    with pytest.raises(InvalidInputError, match=r"holds no tensor names.*save\(path, names=True\)"):
        ac.read_state(path)
    loose = ac.compress(make_shallow_model(), target="2KB")
    loose.save(tmp_path / "named.safetensors", names=True)
    state = ac.read_state(tmp_path / "named.safetensors")
    assert type(state) is dict
    network = make_shallow_model()
    network.load_state_dict(state)
    assert same(network.eval(), loose)


def test_texts_travel_with_a_file(tmp_path, capsys):
    texts = {"source": "ours, übersetzt", "accuracy": "0.98"}
    path = tmp_path / "net.safetensors"
    tight = ac.compress(make_shallow_model(), target="600B")
    with pytest.raises(InvalidInputError, match=r"\d+ with the metadata; the target is 600: .* save without") as raised:
        tight.save(path, metadata=texts)
    with pytest.raises(InvalidInputError, match="with the names and the metadata; the target is 600"):
        tight.save(path, names=True, metadata=texts)
    smaller = int(re.search(r"compress to a target of (\d+) bytes and save with limit=600", str(raised.value))[1])
    again = ac.compress(make_shallow_model(), target=f"{smaller}B")
    again.save(tmp_path / "again.safetensors", metadata=texts, limit=600)
    assert smaller < (tmp_path / "again.safetensors").stat().st_size <= 600
    with pytest.raises(InvalidInputError, match="the limit is 520"):
        again.save(path, metadata=texts, limit=520)
    assert not path.exists()
    loose = ac.compress(make_shallow_model(), target="weights:30x")
    loose.save(path, metadata=texts)
    assert ac.read_metadata(path) == texts
    with safe_open(path, "pt") as file:
        assert {key: value for key, value in file.metadata().items() if key != "crc32"} == texts
    assert same(ac.load(path, into=make_shallow_model()), loose)
    (tmp_path / "plain.safetensors").write_bytes(with_metadata(read_bytes(path), {}))
    assert (tmp_path / "plain.safetensors").read_bytes() == loose.data
    assert ac.read_metadata(tmp_path / "plain.safetensors") == {}
    assert main(["inspect", str(path), "--model", "small_task:make_shallow_model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"] == texts
    path.write_bytes(with_metadata(read_bytes(path), {"evil": "\x1b[2J\nfile 1 byte"}))
    assert main(["inspect", str(path), "--model", "small_task:make_shallow_model"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "evil: \\x1b[2J\\nfile 1 byte"


def test_what_is_no_path_prefix_or_text(result, tmp_path):
    result.save(tmp_path / "net.safetensors")
    for wrong in (5, None, b"net.safetensors"):
        with pytest.raises(InvalidInputError, match="it must be a str or a Path"):
            ac.read_state(wrong)
    for wrong in (5, ["net"], b"net", {"": 5}, {5: ""}):
        with pytest.raises(InvalidInputError, match="it must be a str, or a dict of prefixes"):
            ac.load(tmp_path / "net.safetensors", into=make_shallow_model(), prefix=wrong)
    for wrong in ("text", [("a", "b")], 5):
        with pytest.raises(InvalidInputError, match="it must be a dict of texts"):
            result.save(tmp_path / "other.safetensors", metadata=wrong)
    assert not (tmp_path / "other.safetensors").exists()


def test_every_altered_byte_of_the_texts_is_found(result, tmp_path):
    data = with_metadata(result.data, {"source": "a"})
    path = tmp_path / "altered.safetensors"
    header = 8 + int.from_bytes(data[:8], "little")
    for place in range(header):
        for bit in range(8):
            altered = bytearray(data)
            altered[place] ^= 1 << bit
            path.write_bytes(altered)
            with pytest.raises(CorruptArtifactError):
                read_metadata(path)


@pytest.mark.parametrize("metadata", [{"epochs": 3}, {3: "epochs"}, {"crc32": "1"}, {"long": "x" * (1 << 17)}])
def test_texts_that_cannot_be(result, metadata):
    with pytest.raises(InvalidInputError, match="metadata"):
        with_metadata(result.data, metadata)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.embedding(ids).mean(1))


def test_a_network_of_tokens_is_exported(tmp_path, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    result = ac.compress(Tokens(), target="350B")
    result.save(tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    command = ["export", "net.safetensors", "--model", "test_travelling_files:Tokens", "--to", "onnx"]
    command += ["--input-shape", "5", "--out", "net.onnx"]
    assert main([*command, "--input-dtype", "int64"]) == 0, capsys.readouterr().err
    ids = torch.randint(6, (3, 5))
    (found,) = onnxruntime.InferenceSession("net.onnx").run(None, {"ids": ids.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), result.model(ids))
    assert main(command) == 2
    assert "does not take the example" in capsys.readouterr().err
    assert ac.export_onnx(result.model, ids, tmp_path / "again.onnx") < 1e-4
