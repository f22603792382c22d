"""Options that several command lines have, and how their values are read."""

from __future__ import annotations

from argparse import ArgumentTypeError

MODEL = (
    "lenet5, alexnet, resnet20/32/44/56, resnet50, torchvision:NAME, or package.module:function, a function without "
    "arguments that returns the network (the current folder is importable)"
)
DATA = (
    "digits, mnist, fashion-mnist, cifar10, folder:PATH, or package.module:function, a function without arguments "
    "that returns the loaders (train, validation[, test])"
)


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """Returns a whole number of at least 0."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def seed(text: str) -> int:
    """Returns a whole number that every random generator takes as its seed."""
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 2**32):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)
