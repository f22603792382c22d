"""An aggregated task, for the trainer and the compressor, and the training of its network from scratch.

The information that features keep of inputs, estimated by a statistics network, as a penalty on a training.

    I(X; T) >= E_joint[M(x, t)] - log E_marginals[exp M(x, t')]     (Donsker & Varadhan; Belghazi et al. 2018, MINE)

The bound is tight for the best M, so M climbs it, one step of Adam for each step of the network, which descends. The
mean over a batch is itself an estimate of the bound, and a little above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from autocompress.aggregated.model import AggregatedBatches, AggregatedModel
from autocompress.errors import InvalidInputError
from autocompress.task import Task
from autocompress.training.batches import default_device
from autocompress.training.losses import logits_of
from autocompress.training.random_state import seeded
from autocompress.training.trainer import Trainer

HIDDEN = 128  # units of M
LEARNING_RATE = 1e-3  # of M, Adam's usual


class StatisticsNetwork(nn.Module):
    """M: a network of one hidden layer on an input and a feature vector."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs + features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Returns M [b] of inputs [b, ...] and features [b, ...]."""
        joined = torch.cat([inputs.flatten(1), features.flatten(1)], 1)
        value: Tensor = self.layers(joined)
        return value.squeeze(1)


def information(statistics: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, features: Tensor) -> Tensor:
    """Returns the estimate in nats, a scalar: the marginals are the inputs with the features of the row before.

    Args:
        statistics: M.
        inputs: [b, ...], rows in a random order.
        features: [b, ...].
    """
    joint = statistics(inputs, features).mean()
    marginal = statistics(inputs, features.roll(1, 0)).logsumexp(0) - math.log(len(inputs))
    return joint - marginal


class FeatureTap(nn.Module):
    """In training, returns beside a network's output what went in and what came to one of its layers.

    Attributes:
        model: the network; in evaluation mode its output is returned alone.
        layer: name of the layer.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, inputs: Tensor) -> Any:
        """Returns {logits, inputs, features} in training, else the output."""
        if not self.training:
            return self.model(inputs)
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self.layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            output = self.model(inputs)
        finally:
            hook.remove()
        return {"logits": output, "inputs": inputs, "features": seen[0]}


class InformationPenalty:
    """A loss plus alpha times the information; each call in training is a step of the statistics network, too.

    Attributes:
        estimate: of the last batch, in nats, after that step.
    """

    def __init__(self, statistics: StatisticsNetwork, alpha: float, loss: Callable[[Any, Tensor], Tensor]) -> None:
        self.statistics, self.alpha, self.loss = statistics, alpha, loss
        self.optimizer = torch.optim.Adam(statistics.parameters(), LEARNING_RATE)
        self.estimate = torch.zeros(())

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        """Returns the loss, a scalar, of what a `FeatureTap` returned."""
        value = self.loss(logits_of(output), target)
        if not isinstance(output, dict):
            return value
        inputs, features = output["inputs"].float(), output["features"].float()
        self.optimizer.zero_grad()
        (-information(self.statistics, inputs, features.detach())).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        penalty = information(self.statistics, inputs, features)
        self.estimate = penalty.detach()
        return value + self.alpha * penalty


def aggregated_task(task: Task, fold: int, *, seed: int = 0) -> Task:
    """Returns a task's aggregated form, for the trainer and the compressor: same data, recipe, loss and metric.

    Its metric is the mean over all places. `Replicated` and `Batched` score a network on the task's own splits.

    Args:
        task: of single inputs.
        fold: inputs that are classified together.
        seed: of the new weights and of which inputs stand together in training.

    Raises:
        InvalidInputError: the network cannot be aggregated, or takes more than one tensor.
    """
    make = partial(_seeded_model, task.make_model, fold, seed)
    make()
    if not isinstance(task.input_example, Tensor):
        raise InvalidInputError(f"{task.name} cannot be aggregated: its network does not take one tensor")
    return replace(
        task,
        name=f"{task.name}-fold{fold}",
        make_model=make,
        train=AggregatedBatches(task.train, fold, seed=seed),
        validation=AggregatedBatches(task.validation, fold),
        test=None if task.test is None else AggregatedBatches(task.test, fold),
        input_example=torch.cat([task.input_example] * fold, 1),
    )


def _seeded_model(make_model: Callable[[], nn.Module], fold: int, seed: int) -> AggregatedModel:
    with seeded(seed):
        return AggregatedModel(make_model(), fold)


def train_aggregated(
    task: Task,
    fold: int = 2,
    *,
    alpha: float = 0.0,
    epochs: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> AggregatedModel:
    """Returns an aggregated network, trained from scratch by the task's recipe.

    Args:
        task: of single inputs.
        fold: inputs that are classified together; a batch has as many rows as it has examples.
        alpha: weight of the information that the features keep of the inputs; the paper has 0.3 on CIFAR-10.
        epochs: default: those of the recipe's reference.
        seed: of everything random.
        device: default: CUDA where there is one.
        progress: a bar on stderr, where that is a terminal.

    Raises:
        InvalidInputError: the network cannot be aggregated, or `alpha` is no number of at least 0.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    if not 0 <= alpha < math.inf:
        raise InvalidInputError(f"alpha is {alpha}; it must be a number of at least 0")
    joint = aggregated_task(task, fold, seed=seed)
    model = cast(AggregatedModel, joint.make_model())
    trained: nn.Module = model
    loss = task.loss
    if alpha:
        trained = FeatureTap(model, model.head)
        features = cast(nn.Linear, model.get_submodule(model.head)).in_features
        with seeded(seed):
            statistics = StatisticsNetwork(joint.input_example.numel(), features).to(default_device(device))
        loss = InformationPenalty(statistics, alpha, task.loss)
    Trainer(
        trained,
        joint.train,
        recipe=task.recipe,
        epochs=epochs or task.recipe.reference_epochs,
        loss=loss,
        device=device,
        seed=seed,
        progress=progress,
    ).fit()
    return model
