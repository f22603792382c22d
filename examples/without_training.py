"""A trained network, compressed in seconds without training it, by a few batches of its inputs.

python examples/without_training.py --out digits.safetensors
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from own_loop import loaders, make_network

import autocompress as ac


def main() -> None:
    """Trains a network, as its user did long ago, and compresses it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--target", default="3KB")
    parser.add_argument("--epochs", type=int, default=10, help="of the training that is long done")
    asked = parser.parse_args()
    torch.manual_seed(0)
    train, val = loaders()
    model = make_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(asked.epochs):
        for images, labels in train:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    calibration = [images for images, _ in train][:8]  # no labels
    result = ac.compress(model, calibration=calibration, val=val, target=asked.target)
    result.save(asked.out)
    print(result.report())
    before, after = result.reference_accuracy, result.validation_accuracy
    print(f"{asked.out}: {result.file_bytes} bytes, accuracy {before:.3f} before and {after:.3f} after")


if __name__ == "__main__":
    main()
