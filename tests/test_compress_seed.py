"""compress() is repeatable with an ordinary shuffling loader: its seed reaches the refitting of batch norm, too."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.training.recipe import Recipe

pytestmark = pytest.mark.any_file


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_the_same_seed_gives_the_same_file_whatever_the_global_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(150, 6, generator=generator)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=16, shuffle=True)
    files = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        result = ac.compress(
            make_net(), train=loader, target="400B", epochs=2, recipe=Recipe("sgd", 0.05), device="cpu", progress=False
        )
        files.append(result.data)
    assert files[0] == files[1]


def test_a_result_prints_as_one_line() -> None:
    inputs = torch.randn(40, 6)
    loader = [(inputs, inputs[:, :3].argmax(1))]
    result = ac.compress(make_net(), train=loader, target="400B", epochs=2, recipe=Recipe("sgd", 0.05), progress=False)
    assert repr(result).startswith("Result(target='400B', file_bytes=")
    assert "\n" not in repr(result)
