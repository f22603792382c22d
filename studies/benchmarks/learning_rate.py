"""How to find a learning rate for a network that comes without one: a range test or a parameter-free optimizer.

Trains LeNet-5 (MNIST), ResNet-20 (CIFAR-10) and a small transformer (sorting sequences) for a few hundred steps, each
with rates from a range test read by three rules and with Prodigy (Mishchenko & Defazio 2023), and asks what becomes of
a pruned network that is retrained at fractions of the rate found. One seed, validation data only.

    python -m studies.benchmarks.learning_rate OUT.json    (needs `pip install prodigyopt`, and the data)
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from prodigyopt import Prodigy
from torch import Tensor, nn

from autocompress.task.named_data import load_data
from autocompress.task.named_models import make_model
from autocompress.training.batches import uses_bfloat16
from autocompress.training.checkpoint import Callback
from autocompress.training.evaluation import evaluate
from autocompress.training.learning_rate import range_test
from autocompress.training.losses import classification_loss
from autocompress.training.random_state import seeded
from autocompress.training.recipe import Recipe, make_scheduler
from autocompress.training.tensor_batches import TensorBatches
from autocompress.training.trainer import Trainer

logger = logging.getLogger("learning_rate")
CPU = torch.device("cpu")
KEPT = 0.05  # share of the weights that is left for retraining
Problem = tuple[nn.Module, TensorBatches, TensorBatches, int]


class Sorter(nn.Module):
    """A transformer of two layers that writes 12 tokens of 16 in ascending order."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 64)
        self.places = nn.Parameter(0.02 * torch.randn(12, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits [n, 12, 16] of tokens [n, 12]."""
        logits: Tensor = self.head(self.encoder(self.tokens(tokens) + self.places))
        return logits


def images(model: str, data: str, train: int, batch_size: int, epochs: int) -> Problem:
    """Returns a network on the first `train` images of a data set; 1,000 validation images."""
    splits = load_data(data, batch_size=batch_size)
    assert isinstance(splits.train, TensorBatches)
    assert isinstance(splits.validation, TensorBatches)
    for split, count in ((splits.train, train), (splits.validation, 1000)):
        split.inputs, split.targets = split.inputs[:count], split.targets[:count]
    return make_model(model), splits.train, splits.validation, epochs


def sorting() -> Problem:
    """Returns the transformer on 4,000 sequences."""
    tokens = torch.randint(0, 16, (5000, 12))
    ordered = tokens.sort(1).values
    train = TensorBatches(tokens[:4000], ordered[:4000], batch_size=64, shuffle=True)
    return Sorter(), train, TensorBatches(tokens[4000:], ordered[4000:], batch_size=500), 4


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "lenet5": lambda: images("lenet5", "mnist", 8000, 128, 3),
    "transformer": sorting,
    "resnet20": lambda: images("resnet20", "cifar10", 4000, 32, 1),
}
RULES = {"steepest descent": 0.0, "lowest loss / 4": 4.0, "lowest loss / 10": 10.0}


class Masked(Callback):
    """Keeps the smallest weights of each tensor at zero."""

    def __init__(self, model: nn.Module) -> None:
        self.masks = {}
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                smallest = parameter.detach().abs().flatten().kthvalue(int((1 - KEPT) * parameter.numel())).values
                self.masks[parameter] = parameter.detach().abs() > smallest
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the masked weights to zero."""
        for parameter, mask in self.masks.items():
            parameter.mul_(mask)

    def on_step(self, trainer: Trainer) -> None:
        """Sets the masked weights to zero again."""
        self.apply()


def run(problem: Problem, optimizer: str, rate: float, *, prune: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (the network trained from the problem's, its scores on the validation data)."""
    model, train, validation, epochs = problem
    model = copy.deepcopy(model)
    started = time.perf_counter()
    recipe = Recipe("adamw" if optimizer == "prodigy" else optimizer, rate)
    trainer = Trainer(model, train, recipe=recipe, epochs=epochs, callbacks=[Masked(model)] if prune else [])
    if optimizer == "prodigy":
        trainer.optimizer = Prodigy(
            model.parameters(), lr=1.0, weight_decay=0.01, safeguard_warmup=True, use_bias_correction=True
        )
        trainer.scheduler = make_scheduler(trainer.optimizer, trainer.total_steps, recipe.warmup_fraction)
    trainer.fit()
    scores = evaluate(model, validation)
    record = {
        "optimizer": optimizer,
        "rate": trainer.optimizer.param_groups[0]["d"] if optimizer == "prodigy" else rate,
        "steps": trainer.total_steps,
        "loss": round(scores.loss, 4),
        "accuracy": round(scores.metric, 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return model, record


def measure(name: str) -> list[dict[str, Any]]:
    """Returns the records of one network."""
    with seeded(0):
        problem = PROBLEMS[name]()
    records = []
    best: tuple[float, nn.Module, float] = (float("inf"), problem[0], 0.0)
    for optimizer in ("adamw", "sgd"):
        rates, losses = range_test(
            copy.deepcopy(problem[0]),
            problem[1],
            recipe=Recipe(optimizer),
            loss=classification_loss,
            device=CPU,
            bfloat16=uses_bfloat16("auto", CPU),
        )
        steepest = rates[int(torch.gradient(torch.tensor(losses))[0].argmin())]
        lowest = rates[losses.index(min(losses))]
        for rule, margin in RULES.items():
            model, record = run(problem, optimizer, lowest / margin if margin else steepest)
            records.append({"network": name, "rule": rule, **record})
            logger.info("%s", records[-1])
            if optimizer == "adamw" and rule == "lowest loss / 4":
                best = (record["loss"], model, record["rate"])
    records.append({"network": name, "rule": "prodigy", **run(problem, "prodigy", 1.0)[1]})
    logger.info("%s", records[-1])
    if name != "resnet20":
        for fraction in (1.0, 0.25, 0.05):
            _, record = run((best[1], *problem[1:3], 1), "adamw", fraction * best[2], prune=True)
            records.append({"network": name, "rule": f"retrained pruned at {fraction} of lowest loss / 4", **record})
            logger.info("%s", records[-1])
    return records


def main() -> None:
    """Measures every network and writes the records."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("autocompress").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    records = [record for name in PROBLEMS for record in measure(name)]
    Path(sys.argv[1]).write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
