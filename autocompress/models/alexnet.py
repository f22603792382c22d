"""AlexNet for images of 32 x 32 pixels: five convolutions and a single linear layer, 2,471,104 weights.

Krizhevsky et al. 2012, in the small form that is trained on CIFAR; the one of Condensa's CIFAR-10 figures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidInputError


class AlexNet(nn.Module):
    """Convolutions of 64, 192, 384, 256 and 256 channels, each with a ReLU; pooling after the 1st, 2nd and 5th."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [n, num_classes] of images [n, in_channels, 32, 32]."""
        if images.shape[-2:] != (32, 32):
            raise InvalidInputError(f"alexnet takes images of 32 x 32 pixels; these are {list(images.shape)}")
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits
