"""The information that features keep of inputs, estimated by a statistics network, as a penalty on a training.

    I(X; T) >= E_joint[M(x, t)] - log E_marginals[exp M(x, t')]     (Donsker & Varadhan; Belghazi et al. 2018, MINE)

The bound is tight for the best M, so M climbs it, one step of Adam for each step of the network, which descends. The
mean over a batch is itself an estimate of the bound, and a little above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.training.losses import logits_of

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
