"""Folders of images, one sub-folder per class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

from autocompress.errors import InvalidInputError
from autocompress.task.arrays import VALIDATION_FRACTION, stratified
from autocompress.task.user_code import call_function

_SIDE = 224  # pixels, the usual size of ImageNet networks; smaller images keep theirs
_NORMALIZE = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_AUGMENT = ("crop-flip", "crop", "flip", "none")
_FEW_IMAGES = 2000  # so few are read faster than worker processes start
_WORKERS = 8

Loaders = tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any], int]


@dataclass(frozen=True)
class ImageOptions:
    """How the images of a folder become tensors: what stands after `?` in `folder:PATH?size=64&augment=flip`.

    Attributes:
        size: side of the square, in pixels; default: 224, or that of the first image where it is smaller.
        augment: of training images: "crop-flip" (a random part of 35 to 100 %, mirrored every other time), "crop",
            "flip" or "none".
        normalize: "imagenet" (its mean and deviation), "half" (to -1 .. 1) or "none" (0 .. 1).
        transforms: `package.module:function` of one's own instead of all that, which returns (transform of training
            images, transform of the others).
    """

    size: int | None = None
    augment: str = "crop-flip"
    normalize: str = "imagenet"
    transforms: str | None = None


def parse_options(text: str) -> ImageOptions:
    """Returns the options that a string means.

    Raises:
        InvalidInputError: an unknown name or value.
    """
    given = dict(part.partition("=")[::2] for part in text.split("&") if part)
    known = [each.name for each in fields(ImageOptions)]
    other = [name for name in given if name not in known]
    if other:
        raise InvalidInputError(f"folder: has no option {other[0]!r}; they are {', '.join(known)}")
    for name, values in (("augment", _AUGMENT), ("normalize", tuple(_NORMALIZE))):
        if given.get(name, values[0]) not in values:
            raise InvalidInputError(f"{name} is {given[name]!r}; it may be {', '.join(values)}")
    size = given.pop("size", None)
    if size is not None and not (size.isascii() and size.isdigit() and 0 < int(size) < 1 << 14):
        raise InvalidInputError(f"size is {size!r}; it must be a number of pixels, such as 64")
    return ImageOptions(None if size is None else int(size), **given)


def load_folder(path: str, batch_size: int, seed: int) -> Loaders:
    """Returns (train, validation, test, number of classes) of a folder of images, and of `PATH?OPTIONS`.

    The folder holds `train/`, `val/` and `test/`, each with one sub-folder per class. Without `val/` the validation
    split is cut from `train/`; without `test/`, `val/` is the test split (as in ImageNet) and the validation split is
    cut from `train/`; a folder without `train/` is split 80 / 10 / 10. Cuts are fixed and stratified.

    Raises:
        InvalidInputError: no such folder, no images, sub-folders that differ between the splits, or options that are
            not those of `ImageOptions`.
    """
    path, _, options = path.partition("?") if not Path(path).expanduser().is_dir() else (path, "", "")
    chosen = parse_options(options)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InvalidInputError(f"there is no folder {root}; folder:PATH takes a folder of images by class")
    sources, cut = _sources(root)
    training, others = _transforms(chosen, sources["train"])
    trees = {
        split: (_image_folder(source, training), _image_folder(source, others)) for split, source in sources.items()
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


def _transforms(options: ImageOptions, root: Path) -> tuple[Any, Any]:
    """Returns the transforms of training images and of the others."""
    if options.transforms is not None:
        found = call_function(options.transforms)
        if not isinstance(found, tuple) or len(found) != 2 or not all(map(callable, found)):
            raise InvalidInputError(
                f"{options.transforms!r} returned a {type(found).__name__}; it must return two functions: the "
                "transforms of training images and of the others"
            )
        return found
    side = options.size or _side(root)
    end = [transforms.ToTensor(), transforms.Normalize(*_NORMALIZE[options.normalize])]
    # 256 to 224, the usual margin, at any size
    centre = [transforms.Resize(round(side * 8 / 7)), transforms.CenterCrop(side)]
    start: list[Any] = [transforms.RandomResizedCrop(side, scale=(0.35, 1.0))] if "crop" in options.augment else centre
    flip = [transforms.RandomHorizontalFlip()] if "flip" in options.augment else []
    return transforms.Compose([*start, *flip, *end]), transforms.Compose([*centre, *end])


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
