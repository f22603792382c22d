"""A network for handwritten digits, trained, and compressed by several workers of a Ray cluster.

ray start --head
python examples/ray_train.py --ray-address auto --workers 2 --out digits.safetensors

Each worker takes its part of every batch, so that the run has the steps of one process; all end with one file.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac


def make_network() -> nn.Module:
    """Returns a small convolutional network for images of 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def main() -> None:
    """Trains here, compresses there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--ray-address", help="HOST:PORT or auto; without it the workers run on this machine")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--target", default="2KB")
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()

    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float()[:, None] / 16, torch.from_numpy(digits.target)
    train = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True)
    val = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=200)

    model = make_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(10):
        for inputs, targets in train:
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    result = ac.compress(
        model,
        train=train,
        val=val,
        target=asked.target,
        epochs=asked.epochs,
        workers=asked.workers,
        ray_address=asked.ray_address,
    )
    result.save(asked.out)
    print(f"{asked.out}: {result.file_bytes} bytes, accuracy {result.validation_accuracy:.4f}")


if __name__ == "__main__":
    main()
