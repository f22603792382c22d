"""The state of every random number generator, and of the order of the data, as values that a checkpoint may hold."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seeds python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """Returns the states of python, numpy, torch and CUDA; loadable under `torch.load(weights_only=True)`."""
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts back what `random_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every generator within the block and puts the caller's states back after it."""
    before = random_states()
    seed_all(seed)
    try:
        yield
    finally:
        restore_random_states(before)


def _generators(batches: Any) -> list[torch.Generator]:
    """Returns the generators that a DataLoader draws its order from, beside torch's own."""
    sampler = getattr(batches, "sampler", None)
    inner = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    found = [getattr(holder, "generator", None) for holder in (batches, sampler, inner)]
    unique = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(unique.values())


def data_order_state(batches: Any) -> list[torch.Tensor]:
    """Returns the states of the loader's own generators (empty where it has none)."""
    return [generator.get_state() for generator in _generators(batches)]


def restore_data_order(batches: Any, states: list[torch.Tensor]) -> None:
    """Puts back what `data_order_state` returned."""
    for generator, state in zip(_generators(batches), states, strict=False):
        generator.set_state(state)


def seed_data_order(batches: Any, seed: int) -> None:
    """Seeds the loader's own generators, so that the order does not depend on what was drawn from them before."""
    for generator in _generators(batches):
        generator.manual_seed(seed)


def set_epoch(batches: Any, epoch: int) -> None:
    """Tells the loader, or its sampler, which epoch comes next, where it wants to know."""
    for holder in (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)):
        if holder is not None and hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
