"""Aggregated learning: one network classifies several inputs at once (Soflaei et al. 2020, AgrLearn).

An ordinary network quantizes each input by itself. By rate-distortion theory several are represented better together,
so n inputs, concatenated in their channels, are encoded jointly and n predictions come out. The loss is that of all n,
and, as an option, alpha * I(X^n; T): the information that the features T keep of the inputs, estimated by a statistics
network M:

    I(X; T) >= E_joint[M(x, t)] - log E_marginals[exp M(x, t')]     (Donsker & Varadhan; Belghazi et al. 2018, MINE)

The bound is tight for the best M, so M climbs it, one step of Adam for each step of the network, which descends. The
mean over a batch is itself an estimate of the bound, and a little above it. An aggregated network is a network like any
other: the same compressor makes a file of it, which serves n inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network
from autocompress.task import Task
from autocompress.training.batches import default_device, split_batch
from autocompress.training.losses import logits_of
from autocompress.training.random_state import seeded, set_epoch
from autocompress.training.trainer import Trainer

HIDDEN = 128  # units of M
LEARNING_RATE = 1e-3  # of M, Adam's usual

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class AggregatedBatches:
    """Batches of b rows of `fold` examples made of batches of b examples: each is once in each place.

    Attributes:
        batches: (inputs [b, channels, ...], targets [b]).
        fold: examples in a row.
        seed: of which stand together, drawn anew in each epoch; None = always an example and its successors.
        epoch: the number of the next pass.
    """

    def __init__(self, batches: Iterable[Any], fold: int, *, seed: int | None = None) -> None:
        self.batches, self.fold, self.seed, self.epoch = batches, fold, seed, 0

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        set_epoch(self.batches, epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Returns (inputs [b, fold * channels, ...], targets [b, fold]) of the next epoch.

        Raises:
            InvalidInputError: a batch is not one tensor of inputs and one of targets.
        """
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(((self.seed or 0) << 31) + epoch & (1 << 63) - 1)
        for batch in self.batches:
            args, kwargs, targets = split_batch(batch)
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
                raise InvalidInputError("aggregated learning takes batches of one tensor of inputs and one of targets")
            rows = torch.arange(len(targets))
            orders = [rows]
            for place in range(1, self.fold):
                fixed = self.seed is None
                orders.append(rows.roll(-place) if fixed else torch.randperm(len(rows), generator=generator))
            places = [order.to(args[0].device) for order in orders]
            yield (
                torch.cat([args[0][p] for p in places], 1),
                torch.stack([targets[p.to(targets.device)] for p in places], 1),
            )


class AggregatedModel(nn.Module):
    """A network with the inputs of its first layer and the outputs of its last one `fold` times as many.

    The base is copied. With `fold` 1 nothing is changed; else the two layers are drawn anew, with the spread of the
    base's weights, so that the network is to be trained from here.

    Attributes:
        fold: inputs that are classified together.
        network: the widened copy.
        head: name of its last layer.
    """

    def __init__(self, base: nn.Module, fold: int = 2) -> None:
        """Widens a copy of the base.

        Args:
            base: a classifier whose first layer, in the order of its modules, takes the images and whose last one is
                linear and gives the logits.
            fold: at least 1.

        Raises:
            InvalidInputError: `fold` is no such number, or the base has no such layers.
        """
        super().__init__()
        if not isinstance(fold, int) or isinstance(fold, bool) or fold < 1:
            raise InvalidInputError(f"fold is {fold!r}; it must be a whole number of at least 1")
        self.fold, self.network = fold, copy_network(base)
        names = [name for name, module in self.named_modules() if isinstance(module, _LAYERS)]
        if not names or not isinstance(self.get_submodule(names[-1]), nn.Linear):
            raise InvalidInputError(f"{type(base).__name__} cannot be aggregated: its last layer must be linear")
        self.head = names[-1]
        if fold > 1:
            self._replace(names[0], _more_inputs(self.get_submodule(names[0]), fold))
            self._replace(names[-1], _more_outputs(cast(nn.Linear, self.get_submodule(names[-1])), fold))

    def _replace(self, name: str, layer: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(parent), leaf, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits [b, fold, classes] of inputs [b, fold * channels, ...]: each row jointly."""
        logits: Tensor = self.network(inputs)
        return logits.view(len(logits), self.fold, -1)


def _more_inputs(layer: nn.Module, fold: int) -> nn.Module:
    """Returns a layer of `fold` times the inputs, whose outputs vary as before."""
    if getattr(layer, "groups", 1) != 1:
        raise InvalidInputError(f"a network that begins with a grouped convolution ({layer}) cannot be aggregated")
    wider = copy_network(layer)
    weight = cast(Tensor, layer.weight).detach()
    for name in ("in_channels", "in_features"):
        if hasattr(layer, name):
            setattr(wider, name, fold * getattr(layer, name))
    wider.weight = _drawn((weight.shape[0], fold * weight.shape[1], *weight.shape[2:]), weight, fold)
    return wider


def _more_outputs(layer: nn.Linear, fold: int) -> nn.Linear:
    wider = cast(nn.Linear, copy_network(layer))
    wider.out_features = fold * layer.out_features
    wider.weight = _drawn((wider.out_features, layer.in_features), layer.weight.detach(), 1)
    if layer.bias is not None:
        wider.bias = nn.Parameter(layer.bias.detach().repeat(fold))
    return wider


def _drawn(shape: tuple[int, ...], like: Tensor, inputs: int) -> nn.Parameter:
    """Returns normal weights with the spread of `like`, for so many times the inputs."""
    scale = float(like.float().square().mean().sqrt()) / math.sqrt(inputs)
    return nn.Parameter(scale * torch.randn(shape, dtype=like.dtype, device=like.device))


class Replicated(nn.Module):
    """Classifies single inputs, each copied into all places; the mean of the predicted probabilities counts."""

    def __init__(self, model: AggregatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns log probabilities [b, classes] of inputs [b, channels, ...]."""
        copies = torch.cat([inputs] * self.model.fold, 1)
        return F.log_softmax(self.model(copies).float(), -1).logsumexp(1) - math.log(self.model.fold)


class Batched(nn.Module):
    """Classifies single inputs, `fold` neighbours of the batch at a time: each is computed once."""

    def __init__(self, model: AggregatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits [b, classes] of inputs [b, channels, ...]; the last row is filled up from the beginning."""
        count, fold = len(inputs), self.model.fold
        index = torch.arange(-(-count // fold) * fold, device=inputs.device) % count
        rows = inputs[index].reshape(-1, fold * inputs.shape[1], *inputs.shape[2:])
        logits: Tensor = self.model(rows)
        return logits.flatten(0, 1)[:count]


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
