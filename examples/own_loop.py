"""A network for handwritten digits, trained and then compressed in a loop of one's own.

python examples/own_loop.py --out digits.safetensors
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
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )


def loaders() -> tuple[DataLoader, DataLoader]:
    """Returns batches to train on and to choose by."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)
    train, val = TensorDataset(inputs[:1400], targets[:1400]), TensorDataset(inputs[1400:], targets[1400:])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=256)


def main() -> None:
    """Trains for half of the epochs, compresses in the other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--target", default="2KB")
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    torch.manual_seed(0)
    train, val = loaders()
    model, half = make_network(), max(1, asked.epochs // 2)
    compressor = None
    for epoch in range(2 * half):
        if epoch % half == 0:
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        if epoch == half:
            compressor = ac.Compressor(model, optimizer, target=asked.target, total_steps=half * len(train))
        model.train()
        for images, labels in train:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if compressor is not None:
                compressor.step()  # after each optimizer step, before the gradients are cleared
            optimizer.zero_grad()

    result = compressor.finish(train=train, val=val)
    result.save(asked.out)
    network = ac.load(asked.out, into=make_network())  # a plain torch module
    images, labels = val.dataset.tensors
    accuracy = float((network(images).argmax(1) == labels).float().mean())
    print(f"{asked.out}: {result.file_bytes} bytes, {accuracy:.3f} on the digits kept from training")


if __name__ == "__main__":
    main()
