"""Networks of four kinds and their data, for the command line: run these in the folder of this file.

    autocompress compress any_network:regressor --data any_network:houses --loss mse --target 10% --out r.safetensors
    autocompress compress any_network:segmenter --data any_network:discs --metric iou --target 10% --out s.safetensors
    autocompress compress any_network:detector --data any_network:spam --loss bce_with_logits --target 10% \\
        --out d.safetensors
    autocompress compress any_network:tagger --data any_network:tags --loss bce_with_logits --metric any_network:f1 \\
        --target 10% --out t.safetensors

Without `--weights FILE` a network is trained first.
"""

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]
BATCH = 64


def splits(inputs: Tensor, targets: Tensor) -> tuple[Batches, Batches, Batches]:
    """Returns batches to train on, to choose by and to report on."""
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    held = len(batches) // 5
    return batches[2 * held :], batches[:held], batches[held : 2 * held]


def regressor() -> nn.Module:
    """Returns a network that predicts one number from eight."""
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))


def houses() -> tuple[Batches, Batches, Batches]:
    """Returns rows of eight numbers and a smooth function of them, with noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(960, 8, generator=generator)
    targets = torch.sin(inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]
    return splits(inputs, targets + 0.1 * torch.randn(960, 1, generator=generator))


def segmenter() -> nn.Module:
    """Returns a network that gives each pixel of an image one of two classes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def discs() -> tuple[Batches, Batches, Batches]:
    """Returns noisy images of a disc, and which pixels lie in it."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(480, 2, 1, 1, generator=generator) * 16
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    inside = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 16).long()
    images = inside[:, None].float() + 0.5 * torch.randn(480, 1, 16, 16, generator=generator)
    return splits(images, inside)


def detector() -> nn.Module:
    """Returns a network with one logit: whether it is."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))


def spam() -> tuple[Batches, Batches, Batches]:
    """Returns rows of twenty numbers, and 0 or 1 for each."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(960, 20, generator=generator)
    return splits(inputs, (inputs[:, :5].sum(1) > 0).long())


def tagger() -> nn.Module:
    """Returns a network with five logits, of which any may be true."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))


def tags() -> tuple[Batches, Batches, Batches]:
    """Returns rows of twenty numbers, and five times 0 or 1 for each."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(960, 20, generator=generator)
    return splits(inputs, (inputs[:, :5] > 0.5).float())


def f1(output: Tensor, target: Tensor) -> Tensor:
    """Returns, per example, the F1 score of its tags; of an example without any, found or wanted, 1."""
    found, wanted = output > 0, target > 0.5
    hits, both = (found & wanted).sum(1), found.sum(1) + wanted.sum(1)
    return torch.where(both == 0, 1.0, 2 * hits / both.clamp(min=1))
