"""The residual networks of CIFAR: ResNet-20/32/44/56 with option-A shortcuts, and ResNet-50 with a 3 x 3 stem.

He et al. 2016 ("Deep residual learning for image recognition"), section 4.2 for the former, table 1 for the latter.

AlexNet for images of 32 x 32 pixels: five convolutions and a single linear layer, 2,471,104 weights.

Krizhevsky et al. 2012, in the small form that is trained on CIFAR; the one of Condensa's CIFAR-10 figures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


class PaddedShortcut(nn.Module):
    """Option A: every second pixel of the input, its channels padded with zeros on both sides; no parameters."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.padding = extra_channels // 2

    def forward(self, images: Tensor) -> Tensor:
        """Returns [n, c + extra, h / 2, w / 2] of [n, c, h, w]."""
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else PaddedShortcut(channels - in_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Returns [n, channels, h / stride, w / stride]."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(inner + self.shortcut(images))


class CifarResNet(nn.Module):
    """A stem, three stages of `blocks` basic blocks with 16, 32, 64 channels, a linear layer: 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        _initialize(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [n, num_classes] of images [n, in_channels, h, w]."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean((2, 3)))
        return logits


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions, four times as many channels out; a 1 x 1 convolution as shortcut if needed."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != 4 * channels:
            convolution = nn.Conv2d(in_channels, 4 * channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(4 * channels))

    def forward(self, images: Tensor) -> Tensor:
        """Returns [n, 4 * channels, h / stride, w / stride]."""
        inner = F.relu(self.bn1(self.conv1(images)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.shortcut(images))


class ResNet50(nn.Module):
    """ResNet-50 for 32 x 32 images: a 3 x 3 stem without pooling; 23,467,712 convolution and linear weights."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        _initialize(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [Bottleneck(4 * channels, channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Bottleneck(in_channels, channels, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [n, num_classes] of images [n, in_channels, h, w]."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return logits
