"""The part of the training data that decides where there is no validation data."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from autocompress.training.batches import CropAndFlip, TensorBatches
from autocompress.training.evaluation import ONE_IN, hold_out

X, Y = torch.arange(100.0)[:, None], torch.arange(100)


def numbers(batches) -> list[int]:
    return sorted(int(y) for _, targets in batches for y in targets)


def test_tensors_are_divided_by_example() -> None:
    images = torch.zeros(100, 1, 4, 4, dtype=torch.uint8)
    whole = TensorBatches(images, Y, batch_size=8, shuffle=True, seed=3, augment=CropAndFlip(1))
    parts = hold_out(whole, 0)
    held = numbers(parts.judge)
    assert len(held) == 100 // ONE_IN
    assert sorted(numbers(parts.train) + held) == Y.tolist()
    assert parts.judge.augment is None
    assert [y.tolist() for _, y in parts.judge] == [y.tolist() for _, y in parts.judge]  # in a fixed order
    assert len(whole.inputs) == 100
    assert parts.words == "the loss on 5 examples kept from training"
    assert numbers(hold_out(whole, 1).judge) != held


def test_a_loader_is_divided_by_example() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, drop_last=True)
    parts = hold_out(loader, 0)
    assert len(numbers(parts.judge)) == 5
    assert len(parts.train) == 95 // 8
    assert not set(numbers(parts.train)) & set(numbers(parts.judge))


def test_a_list_loses_its_last_batches() -> None:
    batches = [(X[i : i + 2], Y[i : i + 2]) for i in range(0, 100, 2)]
    parts = hold_out(batches, 0)
    assert len(parts.train) == 48
    assert numbers(parts.judge) == [96, 97, 98, 99]
    assert parts.words == "the loss on 2 batches kept from training"


def test_what_cannot_be_divided_is_judged_by_what_is_seen_and_says_so() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    sampled = DataLoader(TensorDataset(X, Y), batch_size=8, sampler=WeightedRandomSampler([1.0] * 100, 100))
    for loader in (DataLoader(Stream(), batch_size=8), sampled, [(X[:4], Y[:4])]):
        parts = hold_out(loader, 0)
        assert parts.train is loader
        assert "which are trained on as well" in parts.words
        assert numbers(parts.judge)
