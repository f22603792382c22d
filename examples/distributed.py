"""A network for handwritten digits, trained and compressed by several processes, each with its part of the data.

torchrun --nproc-per-node 2 examples/distributed.py --out digits.safetensors
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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


def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Returns the fraction of right answers."""
    network.eval()
    with torch.no_grad():
        return float((network(inputs).argmax(-1) == labels).float().mean())


def main() -> None:
    """Trains for half of the epochs, compresses in the other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--target", default="2KB")
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    if asked.epochs < 2:
        parser.error(f"--epochs is {asked.epochs}; give at least 2, one to train and one to compress in")
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()

    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float()[:, None] / 16, torch.from_numpy(digits.target)
    train = TensorDataset(images[:1400], labels[:1400])
    sampler = DistributedSampler(train, shuffle=True)  # another part of the data for each rank, in every epoch
    loader = DataLoader(train, batch_size=32, sampler=sampler, drop_last=True)
    held_images, held_labels = images[1400 + rank :: ranks], labels[1400 + rank :: ranks]

    model = nn.parallel.DistributedDataParallel(make_network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    compressor = None
    for epoch in range(asked.epochs):
        if epoch == asked.epochs // 2:
            total_steps = (asked.epochs - epoch) * len(loader)
            compressor = ac.Compressor(model, optimizer, target=asked.target, total_steps=total_steps)
        sampler.set_epoch(epoch)
        for images, labels in loader:
            model.train()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if compressor is not None:
                compressor.step()
            optimizer.zero_grad()

    # Every rank calls it: scores on the ranks' parts of the validation data are averaged, and all get the same network.
    result = compressor.finish(train=loader, evaluate=lambda network: accuracy(network, held_images, held_labels))
    if rank == 0:
        result.save(asked.out)
        print(f"{asked.out}: {result.file_bytes} bytes, scores {result.outcome.scores}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
