"""Export to ONNX: the same answers in onnxruntime, or a clear error and no file."""

import importlib.util

import pytest
import torch
from torch import nn

from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.integrations.onnx import export_onnx


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


def test_inputs_that_the_network_does_not_take(network, tmp_path):
    with pytest.raises(InvalidInputError, match="does not take 2 inputs"):
        export_onnx(network, (torch.zeros(1, 1, 8, 8), torch.zeros(1)), tmp_path / "net.onnx")


def test_missing_packages_are_named(network, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find_spec(name, *rest)
    )
    with pytest.raises(AutocompressError, match=r'needs onnxruntime; .*pip install "autocompress\[onnx\]"'):
        export_onnx(network, torch.randn(1, 1, 8, 8), tmp_path / "net.onnx")


def test_different_answers_leave_no_file(network, tmp_path, monkeypatch):
    monkeypatch.setattr("autocompress.integrations.onnx._difference", lambda *_: float("nan"))
    with pytest.raises(AutocompressError, match="answers differently"):
        export_onnx(network, torch.randn(1, 1, 8, 8), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported(tmp_path):
    class Refusing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such thing")

    with pytest.raises(AutocompressError, match="could not export"):
        export_onnx(Refusing(), torch.randn(1, 2), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist(network, tmp_path):
    with pytest.raises(InvalidInputError, match="cannot write"):
        export_onnx(network, torch.randn(1, 1, 8, 8), tmp_path / "none" / "net.onnx")
