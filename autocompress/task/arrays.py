"""The named data sets as arrays: scikit-learn's digits, `NAME.npz`, torchvision's files or its download."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InvalidInputError

logger = logging.getLogger(__name__)

_DOWNLOAD_TIMEOUT_SECONDS = 30
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# name -> (class in torchvision.datasets, the files that it reads)
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw/train-images-idx3-ubyte and its three companions"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw/train-images-idx3-ubyte and companions"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/data_batch_1 and its companions"),
}


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [n, c, h, w] and their classes int64 [n], for training (validation included) and for test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def data_root() -> Path:
    """Returns the folder of data sets and cached references: AUTOCOMPRESS_DATA, else ~/.cache/autocompress."""
    return Path(os.environ.get("AUTOCOMPRESS_DATA") or Path.home() / ".cache" / "autocompress").expanduser()


# module -> (package, extra that it comes with)
_PACKAGES = {
    "sklearn": ("scikit-learn", "data"),
    "torchvision": ("torchvision", "data"),
    "timm": ("timm", "timm"),
    "transformers": ("transformers", "transformers"),
}


@contextlib.contextmanager
def extra(what: str) -> Iterator[None]:
    """Says how to install what is imported inside, where it is missing.

    Raises:
        InvalidInputError: a package of an extra is not installed; `what` needs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        found = _PACKAGES.get((error.name or "").partition(".")[0])
        if found is None:
            raise
        raise InvalidInputError(f'{what} needs {found[0]}: pip install "autocompress[{found[1]}]"') from error


def load_arrays(name: str) -> Arrays:
    """Returns a data set: from `NAME.npz` in `data_root()`, else from torchvision's files there, else downloaded there.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10".

    Raises:
        InvalidInputError: not at hand and not to be downloaded, or the file holds something else.
    """
    path = data_root() / f"{name}.npz"
    return _from_npz(path) if path.is_file() else _from_torchvision(name)


def load_digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's 1,797 digits, enlarged from 8 x 8: uint8 [1797, 1, 28, 28] and classes int64 [1797]."""
    with extra("the data set digits"):
        from sklearn import datasets  # here because it takes a second to import

    bunch: Any = datasets.load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    enlarged = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    return enlarged.round().clamp(0, 255).to(torch.uint8), torch.from_numpy(bunch.target).long()


def _from_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InvalidInputError(
            f"{path} cannot be used ({error}); it must hold the uint8 arrays {', '.join(_ARRAYS)}"
        ) from error
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        fits = images.dtype == np.uint8 and images.ndim in (3, 4) and len(images) == labels.size > 0
        if not fits or not np.issubdtype(labels.dtype, np.integer):
            raise InvalidInputError(
                f"x_{part} in {path} is {images.dtype} {list(images.shape)} with {labels.size} labels of type "
                f"{labels.dtype}; it must be uint8 [n, h, w] or [n, h, w, channels] with n whole numbers"
            )
    return _as_tensors(*(arrays[name] for name in _ARRAYS))


def _from_torchvision(name: str) -> Arrays:
    with extra(f"reading or downloading {name} without {name}.npz in {data_root()}"):
        from torchvision import datasets  # here because it takes a second to import

    root = data_root()
    class_name, files = _TORCHVISION[name]
    dataset: type[Any] = getattr(datasets, class_name)
    try:
        splits = [dataset(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError:  # "not found or corrupted"
        logger.info("downloading %s to %s", name, root)
        splits = _download(dataset, root, name, files)
    (train_images, train_labels), (test_images, test_labels) = (
        (np.asarray(split.data), np.asarray(split.targets)) for split in splits
    )
    return _as_tensors(train_images, train_labels, test_images, test_labels)


def _download(dataset: type[Any], root: Path, name: str, files: str) -> list[Any]:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return [dataset(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # URLError and timeouts are OSErrors
        raise InvalidInputError(
            f"{name} is not in {root} and cannot be downloaded ({error}). Without a network, put "
            f"{name}.npz (uint8 arrays {', '.join(_ARRAYS)}) or torchvision's files ({files}) into {root}, or set "
            "AUTOCOMPRESS_DATA to the folder that has them"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _as_tensors(
    train_images: NDArray[Any], train_labels: NDArray[Any], test_images: NDArray[Any], test_labels: NDArray[Any]
) -> Arrays:
    def images(array: NDArray[Any]) -> Tensor:
        array = array[..., None] if array.ndim == 3 else array
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    def labels(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.reshape(-1).astype(np.int64))

    return Arrays(images(train_images), labels(train_labels), images(test_images), labels(test_labels))


SPLIT_SEED = 20200616  # any number, never to be changed: results on other splits could not be compared
VALIDATION_FRACTION = 0.1


def hold_out(count: int, fraction: float = VALIDATION_FRACTION) -> tuple[Tensor, Tensor]:
    """Returns the indices (kept, held out) of `count` examples, each int64 and ascending; at least one is held out."""
    # numpy promises that the stream of RandomState never changes, across versions and machines
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    held = max(1, round(fraction * count))
    return _sorted(order[held:]), _sorted(order[:held])


def stratified(labels: Tensor, fractions: tuple[float, ...]) -> list[Tensor]:
    """Returns one ascending int64 index per fraction, disjoint, together all; each class in these proportions.

    Args:
        labels: classes [n].
        fractions: of each part, summing to 1; rounding goes to the first part.
    """
    random = np.random.RandomState(SPLIT_SEED)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in fractions]
    for label in np.unique(labels.numpy()):
        members = random.permutation(np.flatnonzero(labels.numpy() == label))
        start = len(members)
        for part, fraction in reversed(list(zip(parts[1:], fractions[1:], strict=True))):
            size = round(fraction * len(members))
            part.append(members[max(0, start - size) : start])
            start = max(0, start - size)
        parts[0].append(members[:start])
    return [_sorted(np.concatenate(part)) for part in parts]


def _sorted(index: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.sort(index).astype(np.int64))
