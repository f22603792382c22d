"""LeNet-5 in the Caffe variant that the compression literature uses: 20-50-500-10, 430,500 weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidInputError


class LeNet5(nn.Module):
    """Two convolutions of 5 x 5, each followed by 2 x 2 max-pooling, and two linear layers; one ReLU, after the first.

    LeCun et al. 1998, as changed in Caffe's MNIST example. For images of 28 x 28 pixels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 20, kernel_size=5),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, kernel_size=5),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [n, num_classes] of images [n, in_channels, 28, 28]."""
        if images.shape[-2:] != (28, 28):
            raise InvalidInputError(f"lenet5 takes images of 28 x 28 pixels; these are {list(images.shape)}")
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits
