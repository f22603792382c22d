"""Training, short or long, of any kind of network, ends no worse than pruning and quantizing it at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_friedman1
from torch import Tensor, nn

import autocompress as ac
from autocompress.task import Task, load_task
from autocompress.training.batches import TensorBatches
from autocompress.training.reference import reference_network

pytestmark = pytest.mark.slow

OWN_LOOP = Path(__file__).resolve().parents[1] / "docs" / "own-loop.md"


def split(x: Tensor, y: Tensor, rows: slice, *, shuffle: bool = False) -> TensorBatches:
    return TensorBatches(x[rows], y[rows], batch_size=64 if shuffle else 1000, shuffle=shuffle)


def friedman() -> tuple[Tensor, Tensor]:
    """Returns inputs [3000, 10] and targets [3000, 1] of unit variance."""
    x, y = make_friedman1(3000, noise=0.5, random_state=0)
    y = (y - y.mean()) / y.std()
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y[:, None], dtype=torch.float32)


def moments() -> tuple[Tensor, Tensor]:
    """Returns images of digits [1797, 1, 8, 8] and where their ink lies [1797, 4]: mean and spread on both axes."""
    images = load_digits().images / 16.0
    mass = images.sum((1, 2))
    places = np.arange(8) / 7
    found = []
    for axis in (1, 2):
        line = images.sum(3 - axis)
        mean = line @ places / mass
        found += [mean, np.sqrt((line * (places - mean[:, None]) ** 2).sum(1) / mass)]
    y = np.stack(found, 1)
    y = (y - y.mean(0)) / y.std(0)
    return torch.tensor(images[:, None], dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def make_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))


def make_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )


def trained(model: nn.Module, batches: TensorBatches, epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for x, y in batches:
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
def explained(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns R^2."""
    return 1 - float((model.eval()(x) - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("data", "make_model", "target", "taught"),
    [(friedman, make_mlp, "4KB", False), (friedman, make_mlp, "2KB", True), (moments, make_convolutions, "2KB", True)],
    ids=["mlp-4KB", "mlp-taught-2KB", "convolutions-taught-2KB"],
)
def test_a_regressor_gains_by_training(
    data: Callable[[], tuple[Tensor, Tensor]], make_model: Callable[[], nn.Module], target: str, taught: bool, seed: int
) -> None:
    x, y = data()
    torch.manual_seed(seed)
    n = len(x)
    train = split(x, y, slice(n // 2), shuffle=True)
    val, rest = split(x, y, slice(n // 2, 3 * n // 4)), slice(3 * n // 4, n)
    model = trained(make_model(), train, 60)
    loss = None if taught else nn.functional.mse_loss
    scores = {}
    for epochs in (0, 20):
        result = ac.compress(
            model, train=train, val=val, loss=loss, target=target, epochs=epochs, seed=seed, progress=False
        )
        scores[epochs] = explained(result.model, x[rest], model(x[rest]) if taught else y[rest])
    print(f"R^2: {explained(model, x[rest], y[rest]):.3f} given, {scores[0]:.3f} at once, {scores[20]:.3f} trained")
    assert scores[20] >= scores[0]


@pytest.fixture(scope="module")
def digits() -> tuple[Task, nn.Module]:
    task = load_task("lenet5", "digits")
    return task, reference_network(task, progress=False)[0]


@pytest.mark.parametrize("target", ["4KB", "8KB"])
def test_a_few_steps_are_no_worse_than_none(digits, target: str) -> None:
    task, reference = digits
    batches = [batch for epoch in range(12) for batch in (task.train.set_epoch(epoch), list(task.train))[1]]
    losses = {}
    for steps in (0, 1, 2, 5, 10, 50, 200):
        model = task.make_model()
        model.load_state_dict(reference.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        compressor = ac.Compressor(model, optimizer, target=target, total_steps=steps)
        for x, y in batches[:steps]:
            task.loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            compressor.step()
            optimizer.zero_grad()
        result = compressor.finish(train=task.train, val=task.validation)
        x, y = (torch.cat(part) for part in zip(*task.test, strict=True))
        with torch.no_grad():
            losses[steps] = float(task.loss(result.model(x), y))
    print(target, {steps: round(loss, 4) for steps, loss in losses.items()})
    # 360 images: what decides is the loss of others
    assert max(losses.values()) <= 1.1 * losses[0]
    assert losses[200] < 0.8 * losses[0]


@pytest.mark.parametrize(("target", "least"), [("5%", 0.99), ("3%", 0.95)])
def test_the_transformer_of_the_docs_in_less(target: str, least: float, tmp_path, monkeypatch) -> None:
    code = re.search(r"<!-- example: transformer -->\n```python\n(.*?)```", OWN_LOOP.read_text("utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    exec(code[1].replace('"10%"', f'"{target}"'), names)
    weights = sum(parameter.numel() for parameter in names["model"].parameters())
    score = names["accuracy"](names["net"])
    print(target, f"{score:.3f}")
    assert (tmp_path / "reverser.safetensors").stat().st_size <= float(target[:-1]) / 100 * 4 * weights
    assert score >= least
