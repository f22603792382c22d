"""At equal weight-data bits the priced mode is never worse than the paper's alternation, random layers or trained."""

import pytest
import torch
from sklearn.datasets import load_digits

from autocompress.constraints.weight_bits import improve_weight_data, project_weight_bits, squared_error
from autocompress.task.named_models import make_model


def trained_like_layers(seed: int) -> list[torch.Tensor]:
    """LeNet-5's layers after a few steps on the digits: heavier tails than any initialization has."""
    torch.manual_seed(seed)
    digits = load_digits()
    images = torch.nn.functional.interpolate(torch.tensor(digits.images[:600, None]).float() / 16, 28, mode="bilinear")
    labels = torch.tensor(digits.target[:600])
    model = make_model("lenet5")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for start in range(0, 600, 60):
        loss = torch.nn.functional.cross_entropy(model(images[start : start + 60]), labels[start : start + 60])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach() for p in model.parameters() if p.dim() > 1]


def check(layers: list[torch.Tensor], budget_bits: int) -> float:
    alternating = project_weight_bits(layers, layers, budget_bits)
    used = sum(c.weight_data_bits for c in alternating.quantized)
    priced = improve_weight_data(layers, alternating.quantized, used)
    assert sum(c.weight_data_bits for c in priced) <= used
    assert all(c.nonzeros >= 1 for c in priced)
    before, after = squared_error(alternating.quantized, layers), squared_error(priced, layers)
    assert after <= before
    return after / before


@pytest.mark.parametrize("seed", range(10))
def test_never_worse_on_random_layers(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.randn(shape, generator=generator) * s for shape, s in (((8, 9), 1.0), ((20, 30), 0.3), ((5, 40), 2.0))
    ]
    check(layers, 200 * (1 + seed))


@pytest.mark.parametrize("factor", [20, 200, 1975])
def test_better_on_trained_layers(factor: int) -> None:
    layers = trained_like_layers(0)
    budget = 32 * sum(x.numel() for x in layers) // factor
    assert check(layers, budget) < 1.0
