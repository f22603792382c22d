"""Folders of images, one sub-folder per class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

from autocompress.errors import InvalidInputError
from autocompress.task.arrays import VALIDATION_FRACTION, stratified

_SIDE = 224  # pixels, the usual size of ImageNet networks; smaller images keep theirs
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FEW_IMAGES = 2000  # so few are read faster than worker processes start
_WORKERS = 8

Loaders = tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any], int]


def load_folder(path: str, batch_size: int, seed: int) -> Loaders:
    """Returns (train, validation, test, number of classes) of a folder of images.

    The folder holds `train/`, `val/` and `test/`, each with one sub-folder per class. Without `val/` the validation
    split is cut from `train/`; without `test/`, `val/` is the test split (as in ImageNet) and the validation split is
    cut from `train/`; a folder without `train/` is split 80 / 10 / 10. Cuts are fixed and stratified.

    Raises:
        InvalidInputError: no such folder, no images, or sub-folders that differ between the splits.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InvalidInputError(f"there is no folder {root}; folder:PATH takes a folder of images by class")
    sources, cut = _sources(root)
    side = _side(sources["train"])
    trees = {
        split: (_image_folder(source, _training(side)), _image_folder(source, _plain(side)))
        for split, source in sources.items()
    }
    classes = trees["train"][1].classes
    for split, (_, plain) in trees.items():
        if plain.classes != classes:
            raise InvalidInputError(f"{root}/{split} has the classes {plain.classes}, the training data has {classes}")
    parts: dict[str, Dataset[Any]] = {split: plain for split, (_, plain) in trees.items()}
    augmented, plain = trees["train"]
    parts["train"] = augmented
    if cut:
        indices = stratified(torch.tensor(plain.targets), cut)
        parts["train"] = Subset(augmented, indices[0].tolist())
        for split, index in zip(("validation", "test"), indices[1:], strict=False):
            parts[split] = Subset(plain, index.tolist())
    return (
        _loader(parts["train"], batch_size, seed, shuffle=True),
        _loader(parts["validation"], batch_size, seed, shuffle=False),
        _loader(parts["test"], batch_size, seed, shuffle=False),
        len(classes),
    )


def _sources(root: Path) -> tuple[dict[str, Path], tuple[float, ...]]:
    """Returns (the folder of each split that has one, the fractions in which the training folder is to be cut)."""
    train = root / "train"
    if not train.is_dir():
        return {"train": root}, (1 - 2 * VALIDATION_FRACTION, VALIDATION_FRACTION, VALIDATION_FRACTION)
    validation = next((root / name for name in ("val", "valid", "validation") if (root / name).is_dir()), None)
    test = root / "test" if (root / "test").is_dir() else None
    if validation is not None and test is not None:
        return {"train": train, "validation": validation, "test": test}, ()
    held = test or validation
    if held is not None:
        return {"train": train, "test": held}, (1 - VALIDATION_FRACTION, VALIDATION_FRACTION)
    return {"train": train}, (1 - 2 * VALIDATION_FRACTION, VALIDATION_FRACTION, VALIDATION_FRACTION)


def _image_folder(root: Path, transform: Any) -> Any:
    try:
        return datasets.ImageFolder(str(root), transform)
    except (FileNotFoundError, RuntimeError) as error:
        raise InvalidInputError(f"{root} is not a folder of images by class: {error}") from error


def _side(root: Path) -> int:
    """Returns the side of the square that images are brought to: 224, or less where the first image is smaller."""
    image, _ = _image_folder(root, None)[0]
    return int(min(_SIDE, *image.size))


def _training(side: int) -> Any:
    crop = transforms.RandomResizedCrop(side, scale=(0.35, 1.0))
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *_as_tensor()])


def _plain(side: int) -> Any:
    # 256 to 224, the usual margin, at any size
    return transforms.Compose([transforms.Resize(round(side * 8 / 7)), transforms.CenterCrop(side), *_as_tensor()])


def _as_tensor() -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION)]


def _loader(dataset: Dataset[Any], batch_size: int, seed: int, shuffle: bool) -> DataLoader[Any]:
    count = len(dataset)  # type: ignore[arg-type]
    workers = 0 if count < _FEW_IMAGES else min(_WORKERS, os.cpu_count() or 1)
    generator = torch.Generator().manual_seed(seed) if shuffle else None
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )
