"""A data set by its name, split in three."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.task.arrays import extra, hold_out, load_arrays, load_digits, stratified
from autocompress.task.user_code import call_function
from autocompress.training.batches import CropAndFlip, Normalize, TensorBatches

DATA_NAMES = ("digits", "mnist", "fashion-mnist", "cifar10")
_FOLDER = "folder:"
_EVALUATION_BATCH = 500  # examples; no gradients, so larger than in training

# Mean and standard deviation of the pixels, over 255: the figures that published weights were trained with.
_NORMALIZE = {
    "digits": Normalize((0.3053,), (0.3247,)),
    "mnist": Normalize((0.1307,), (0.3081,)),
    "fashion-mnist": Normalize((0.2860,), (0.3530,)),
    "cifar10": Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

_AUGMENT = {"digits": CropAndFlip(padding=2, flip=False), "cifar10": CropAndFlip(padding=4)}


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set, each a re-iterable of batches.

    Attributes:
        train: shuffled and, where that is usual, augmented.
        validation: what choices are made on; in a fixed order. None if a function of the user gave none.
        test: what is reported; in a fixed order. None if a function of the user gave none.
        num_classes: number of classes; None if unknown.
    """

    train: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any] | None
    num_classes: int | None


def load_data(name: str, *, batch_size: int, device: torch.device | str = "cpu", seed: int = 0) -> Splits:
    """Returns a data set in three splits that are the same for every seed.

    Args:
        name: one of `DATA_NAMES`, `folder:PATH`, or `package.module:function` (which returns the loaders train,
            validation and, if there is one, test).
        batch_size: examples in a training batch; a function of your own decides itself.
        device: where small data sets lie.
        seed: of the order and augmentation of the training data.

    Raises:
        InvalidInputError: the name is unknown (close ones are given), or the data cannot be had.
    """
    if name.startswith(_FOLDER):
        with extra(f"the data {name}"):
            from autocompress.task.folders import load_folder  # here because torchvision takes a second to import

        train, validation, test, num_classes = load_folder(name.removeprefix(_FOLDER), batch_size, seed)
        return Splits(train, validation, test, num_classes)
    if name in DATA_NAMES:
        return _load_named(name, batch_size, device, seed)
    if ":" in name:
        return _load_own(name)
    close = difflib.get_close_matches(name, DATA_NAMES, n=2, cutoff=0.5)
    hint = f" did you mean {' or '.join(close)}?" if close else ""
    raise InvalidInputError(
        f"data {name!r} is unknown;{hint} the names are {', '.join(DATA_NAMES)}, folder:PATH and "
        "package.module:function"
    )


def _load_named(name: str, batch_size: int, device: torch.device | str, seed: int) -> Splits:
    if name == "digits":
        images, labels = load_digits()
        parts = [(images[index], labels[index]) for index in stratified(labels, (0.6, 0.2, 0.2))]
    else:
        arrays = load_arrays(name)
        kept, held = hold_out(len(arrays.train_labels))
        parts = [(arrays.train_images[index], arrays.train_labels[index]) for index in (kept, held)]
        parts.append((arrays.test_images, arrays.test_labels))
    num_classes = int(max(labels.max() for _, labels in parts)) + 1
    train, validation, test = (
        TensorBatches(
            images.to(device),
            labels.to(device),
            batch_size=batch_size if number == 0 else _EVALUATION_BATCH,
            shuffle=number == 0,
            seed=seed,
            augment=_AUGMENT.get(name) if number == 0 else None,
            transform=_NORMALIZE[name],
        )
        for number, (images, labels) in enumerate(parts)
    )
    return Splits(train, validation, test, num_classes)


def _load_own(name: str) -> Splits:
    loaders = call_function(name)
    if not isinstance(loaders, (tuple, list)) or len(loaders) not in (2, 3):
        raise InvalidInputError(f"{name!r} must return the loaders (train, validation) or (train, validation, test)")
    train, validation, test = (*loaders, None)[:3]
    return Splits(train, validation, test, _count_classes(validation))


def _count_classes(batches: Iterable[Any]) -> int | None:
    """Returns the largest class among the targets plus one, or None where the targets are no whole numbers."""
    largest = -1
    for batch in batches:
        target = batch.get("labels") if isinstance(batch, Mapping) else batch[-1]
        if not isinstance(target, Tensor) or target.is_floating_point() or target.numel() == 0:
            return None
        largest = max(largest, int(target.max()))
    return largest + 1 if largest >= 0 else None
