"""Export to ONNX: the same answers in onnxruntime, or a clear error and no file."""

import importlib.util
import json
from dataclasses import dataclass

import onnxruntime
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress import shrink
from autocompress.cli import main
from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.network.live_network import tensors_in
from autocompress.network.onnx_export import export_onnx

pytestmark = pytest.mark.any_file


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


def test_onnxruntime_gives_the_same_answers_for_any_batch(network, tmp_path):
    import onnxruntime

    path = tmp_path / "net.onnx"
    assert export_onnx(network, torch.randn(1, 1, 8, 8), path) < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = torch.randn(5, 1, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network.eval()(batch), rtol=1e-4, atol=1e-5)


class Sum(nn.Module):
    def forward(self, left, right):
        return left + 2 * right


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs(tmp_path, named):
    left, right = torch.ones(1, 3), torch.zeros(1, 3)
    example = {"right": right, "left": left} if named else (left, right)
    assert export_onnx(Sum(), example, tmp_path / "net.onnx") == 0.0


@dataclass
class Output:
    logits: torch.Tensor
    hidden: object = None


class Structured(nn.Module):
    """Gives its tensors in a dict, a dataclass or nested tuples."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.form = nn.Linear(3, 4), nn.Linear(4, 2), form

    def forward(self, inputs, unused=None):
        hidden = self.first(inputs).relu()
        return self.form(self.last(hidden), (hidden, [2 * hidden]))


FORMS = [lambda logits, hidden: {"logits": logits, "hidden": hidden}, Output, lambda logits, hidden: (logits, hidden)]


@pytest.mark.parametrize("form", FORMS, ids=["dict", "dataclass", "tuple"])
def test_outputs_in_any_container_become_outputs_in_a_row(form, tmp_path):
    import onnxruntime

    model, inputs = Structured(form), torch.randn(5, 3)
    assert export_onnx(model, {"inputs": inputs[:1], "index": torch.arange(1)}, tmp_path / "net.onnx") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"inputs": inputs.numpy()})
    for ours, theirs in zip(tensors_in(model(inputs)), found, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=["dict", "dataclass", "tuple"])
def test_a_network_with_outputs_in_any_container_shrinks(form):
    model, inputs = Structured(form), torch.randn(5, 3)
    with torch.no_grad():
        model.last.weight[:, 1] = 0
    model.first.requires_grad_(False)
    logits = tensors_in(model(inputs))[0]
    smaller = shrink(Structured(lambda logits, hidden: form(logits, None)).requires_grad_(False), inputs)
    assert smaller.first.out_features == 4  # no column of zeros, nothing to remove
    model.form = lambda logits, hidden: form(logits, None)
    smaller = shrink(model, inputs)
    assert smaller.first.out_features == 3
    assert not smaller.first.weight.requires_grad
    torch.testing.assert_close(tensors_in(smaller(inputs))[0], logits)


def test_a_network_without_any_tensor_in_its_output_is_not_blamed_on_a_layer():
    with pytest.raises(InvalidInputError, match="output holds no tensor to compare"):
        shrink(Structured(lambda logits, hidden: 3.0), torch.randn(5, 3))


def test_inputs_that_the_network_does_not_take(network, tmp_path):
    with pytest.raises(InvalidInputError, match="does not take 2 inputs"):
        export_onnx(network, (torch.zeros(1, 1, 8, 8), torch.zeros(1)), tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 1, 8, 9), "does not take the example given: "),
        (torch.zeros(0, 1, 8, 8), r"inputs \w+ hold no example"),
        (torch.tensor(1.0), r"inputs \w+ hold no example"),
        ("images", r"inputs \w+ of .* are no tensors"),
    ],
)
def test_examples_that_are_none(network, tmp_path, example, message):
    with pytest.raises(InvalidInputError, match=message):
        export_onnx(network, example, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_returns_no_tensor(tmp_path):
    with pytest.raises(InvalidInputError, match="output holds no tensor to export"):
        export_onnx(Structured(lambda logits, hidden: 3.0), torch.randn(5, 3), tmp_path / "net.onnx")
    with pytest.raises(InvalidInputError, match="the model is a str; give a network"):
        export_onnx("net", torch.randn(5, 3), tmp_path / "net.onnx")


def test_missing_packages_are_named(network, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find_spec(name, *rest)
    )
    with pytest.raises(AutocompressError, match=r'needs onnxruntime; .*pip install "autocompress\[onnx\]"'):
        export_onnx(network, torch.randn(1, 1, 8, 8), tmp_path / "net.onnx")


def test_different_answers_leave_no_file(network, tmp_path, monkeypatch):
    monkeypatch.setattr("autocompress.network.onnx_export._difference", lambda *_: float("nan"))
    with pytest.raises(AutocompressError, match="answers differently"):
        export_onnx(network, torch.randn(1, 1, 8, 8), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return 2 * x if x.sum() > 0 else x

    with pytest.raises(AutocompressError, match="could not export"):
        export_onnx(Branching(), torch.randn(1, 2), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist(network, tmp_path):
    with pytest.raises(InvalidInputError, match="cannot write"):
        export_onnx(network, torch.randn(1, 1, 8, 8), tmp_path / "none" / "net.onnx")


def test_keys_of_a_dict_name_inputs_and_outputs(tmp_path):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(30, 8), nn.Linear(8, 4)

        def forward(self, ids, mask):
            hidden = self.embedding(ids) * mask[..., None]
            return {"logits": self.head(hidden), "mask": mask, "pooled": hidden.mean(1)}

    example = {"ids": torch.randint(30, (1, 6)), "mask": torch.ones(1, 6)}
    export_onnx(Tagger(), example, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert {each.name for each in session.get_inputs()} == {"ids", "mask"}
    assert [each.name for each in session.get_outputs()] == ["logits", "mask_out", "pooled"]


def small_convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 36, 64), nn.ReLU(), nn.Linear(64, 5))


def test_int8_is_small_and_answers_alike(tmp_path):
    import onnx

    network, images = small_convolutional(), torch.rand(64, 1, 8, 8)
    network.train()
    network(images)
    export_onnx(network, images[:1], tmp_path / "float.onnx")
    difference = export_onnx(network, images[:1], tmp_path / "int8.onnx", calibration=[images[:32], images[32:]])
    assert 0 < difference < 0.1
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kinds = {onnx.TensorProto.DataType.Name(each.data_type) for each in graph.initializer if len(each.raw_data) > 100}
    assert "INT8" in kinds
    left = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) > 1]
    assert left == []
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)
    sizes = [(tmp_path / name).stat().st_size for name in ("int8.onnx", "float.onnx")]
    assert sizes[0] < 0.4 * sizes[1]
    expected = network.eval()(images).argmax(1)
    found = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, {"input": images.numpy()})[0].argmax(1)
    assert (expected.numpy() == found).mean() > 0.9


def test_int8_without_examples(tmp_path):
    with pytest.raises(InvalidInputError, match="the calibration data hold no example"):
        export_onnx(small_convolutional(), torch.rand(1, 1, 8, 8), tmp_path / "int8.onnx", calibration=[])
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_torch_export_is_refused_by_name(tmp_path):
    program = torch.export.export(small_convolutional().eval(), (torch.rand(2, 1, 8, 8),))
    for use in (
        lambda: export_onnx(program, torch.rand(1, 1, 8, 8), tmp_path / "net.onnx"),
        lambda: ac.compress(program, target="1KB", epochs=0),
    ):
        with pytest.raises(InvalidInputError, match=r"the model is a ExportedProgram, .* that it was exported from"):
            use()


NETS = """
import torch
from torch import nn

def make():
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))

def data():
    x = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (3 * x.mean((1, 2, 3))).long()
    return [[(x[:32], y[:32]), (x[32:64], y[32:64])], [(x[64:], y[64:])]]

def make_regressor():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))

def measured():
    return [[(x.flatten(1), x.mean((1, 2, 3))[:, None]) for x, _ in part] for part in data()]
"""


def test_the_command_writes_smaller_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_for_onnx.py").write_text(NETS)
    import nets_for_onnx

    torch.manual_seed(0)
    network = nets_for_onnx.make()
    ac.compress(network, target="energy-channels:40%", calibration=nets_for_onnx.data()[0]).save("net.safetensors")
    command = ["export", "net.safetensors", "--model", "nets_for_onnx:make", "--json"]
    data = ["--data", "nets_for_onnx:data"]
    for out, more in (("dense", data), ("small", [*data, "--shrink"]), ("int8", [*data, "--shrink", "--int8"])):
        assert main([*command, "--to", "onnx", "--out", f"{out}.onnx", *more]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["bytes"] == (tmp_path / f"{out}.onnx").stat().st_size
    images = nets_for_onnx.data()[1][0][0].numpy()
    outputs = [
        onnxruntime.InferenceSession(f"{name}.onnx").run(None, {"input": images})[0]
        for name in ("dense", "small", "int8")
    ]
    ac.compress(nets_for_onnx.make_regressor(), target="1KB").save("numbers.safetensors")
    numbers = ["export", "numbers.safetensors", "--model", "nets_for_onnx:make_regressor", "--to", "onnx", "--int8"]
    assert main([*numbers, "--data", "nets_for_onnx:measured", "--out", "numbers.onnx"]) == 0  # no loss is asked for
    assert abs(outputs[0] - outputs[1]).max() < 1e-4
    assert abs(outputs[0] - outputs[2]).max() < 0.1 * max(1, abs(outputs[0]).max())
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.onnx")}
    assert sizes["small"] < sizes["dense"]
    for wrong, message in (
        (["--to", "pt", "--shrink", "--out", "x.pt"], "--shrink is for --to onnx"),
        (["--to", "onnx", "--int8", "--out", "x.onnx", "--input-shape", "1,8,8"], "--int8 needs --data"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
