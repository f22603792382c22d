"""What a network scores on a split, and a part of the training data kept for that where nothing else can decide."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import modes_put_back
from autocompress.training.batches import (
    TensorBatches,
    autocast,
    blaming,
    check_repeatable,
    default_device,
    forward,
    holds_no_example,
    to_device,
    uses_bfloat16,
)
from autocompress.training.layer_statistics import refit_batch_norm as refit_batch_norm
from autocompress.training.losses import carried_loss, classification_loss, correct_predictions
from autocompress.training.random_state import data_order_state, restore_data_order, seeded
from autocompress.training.ranks import Part


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a split.

    Attributes:
        loss: mean over the examples.
        metric: mean of `scores`; with the default metric the accuracy, a fraction of 1.
        scores: float32 [n] on the CPU, one per example in the order of the split.
    """

    loss: float
    metric: float
    scores: Tensor


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Callable[[Any, Tensor], Tensor] = classification_loss,
    metric: Callable[[Any, Tensor], Tensor] = correct_predictions,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> Evaluation:
    """Returns the mean loss and metric of the model over all batches; the mode the model was in is put back.

    Args:
        model: the network; moved to `device`.
        batches: what `training.batches` takes, in a fixed order.
        loss: (output, target) -> mean loss, a scalar.
        metric: (output, target) -> scores [n].
        device: default: CUDA where there is one.
        precision: "fp32", "bf16" or "auto".

    Raises:
        InvalidInputError: no batches, one that does not fit, or a metric that does not give one score per example.
    """
    check_repeatable(batches, "the data to evaluate on")
    where = default_device(device)
    bfloat16 = uses_bfloat16(precision, where)
    model.to(where)
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    with modes_put_back(model), torch.inference_mode():
        model.eval()
        for number, batch in enumerate(batches):
            with blaming(f"batch {number} of the data to evaluate on", batch):
                if holds_no_example(batch):
                    continue
                with autocast(bfloat16, where):
                    output, target = forward(model, to_device(batch, where), with_target=loss is carried_loss)
                score = metric(output, target).detach().float()
                value = loss(output, target).detach().double()
            if score.ndim != 1:
                raise InvalidInputError(
                    f"the metric returned a tensor of shape {list(score.shape)}; it must be one score per example"
                )
            losses.append(value * len(score))
            scores.append(score)
    if not scores:
        raise InvalidInputError("the data to evaluate on gives no batch at all; it must give at least one")
    every = torch.cat(scores).cpu().clone()
    count = max(len(every), 1)
    return Evaluation(float(torch.stack(losses).sum()) / count, float(every.double().sum()) / count, every)


# One example (or, of a list, one batch) in so many is kept from training, ...
ONE_IN = 20
# ... where there are at least so many.
FEWEST = 40
# Training batches that decide where none can be kept from training.
SEEN_BATCHES = 8


@dataclass(frozen=True)
class HeldOut:
    """Training data in two parts.

    Attributes:
        train: batches to train on.
        judge: batches that decide.
        words: what they are, for the report.
    """

    train: Iterable[Any]
    judge: Iterable[Any]
    words: str


def hold_out(train: Iterable[Any], seed: int) -> HeldOut:
    """Returns training data without one in `ONE_IN` examples, and these.

    A list loses its last batches. A stream, and a loader with a sampler of its own, cannot be divided: batches that are
    trained on as well decide then, and `words` says so.
    """
    if isinstance(train, Part):  # all ranks keep the same examples, and each has its part of them
        parts = hold_out(train.batches, seed)
        kept_part, held_part = (Part(each, train.rank, train.size) for each in (parts.train, parts.judge))
        return HeldOut(kept_part, held_part, parts.words)
    if isinstance(train, TensorBatches) and len(train.inputs) >= FEWEST:
        kept, held = _divided(len(train.inputs), seed)
        judge = _examples(train, held)
        judge.shuffle, judge.augment = False, None
        return HeldOut(_examples(train, kept), judge, _words(len(held), "examples"))
    if isinstance(train, DataLoader) and _can_be_divided(train):
        assert isinstance(train.dataset, Sized)
        kept, held = _divided(len(train.dataset), seed)
        shuffled = isinstance(train.sampler, RandomSampler)
        return HeldOut(
            _loader(train, kept, shuffle=shuffled), _loader(train, held, shuffle=False), _words(len(held), "examples")
        )
    if isinstance(train, Sequence) and len(train) >= FEWEST:
        count = max(1, len(train) // ONE_IN)
        return HeldOut(train[:-count], train[-count:], _words(count, "batches"))
    order = data_order_state(train)
    with seeded(seed):
        seen = list(itertools.islice(train, SEEN_BATCHES))
    restore_data_order(train, order)
    return HeldOut(train, seen, f"the loss on {len(seen)} training batches, which are trained on as well")


def _words(count: int, kind: str) -> str:
    return f"the loss on {count} {kind} kept from training"


def _divided(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices of the examples to train on, and of those to judge by, each ascending."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = count // ONE_IN
    return order[held:].sort().values, order[:held].sort().values


def _examples(batches: TensorBatches, index: torch.Tensor) -> TensorBatches:
    """Returns some of the examples, in all else the same."""
    part, where = copy.copy(batches), index.to(batches.inputs.device)
    part.inputs, part.targets = batches.inputs[where], batches.targets[where]
    return part


def _can_be_divided(loader: DataLoader[Any]) -> bool:
    return (
        not isinstance(loader.dataset, IterableDataset)
        and isinstance(loader.dataset, Sized)
        and len(loader.dataset) >= FEWEST
        and loader.batch_size is not None
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and len(loader.sampler) == len(loader.dataset)  # type: ignore[arg-type]
    )


def _loader(loader: DataLoader[Any], index: torch.Tensor, *, shuffle: bool) -> DataLoader[Any]:
    """Returns a loader of some of another's examples, in all else the same."""
    same = ("batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")
    settings: dict[str, Any] = {name: getattr(loader, name) for name in same}
    if loader.num_workers:
        settings |= {name: getattr(loader, name) for name in ("prefetch_factor", "persistent_workers")}
        settings["multiprocessing_context"] = loader.multiprocessing_context
    drop_last = loader.drop_last and shuffle
    return DataLoader(Subset(loader.dataset, index.tolist()), shuffle=shuffle, drop_last=drop_last, **settings)
