"""Networks of images, videos and volumes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from architectures.architecture import architecture

CLASSES = 10


def images(side: int = 32, count: int = 4, channels: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(count, channels, side, side), torch.randint(CLASSES, (count,))


def pictures(side: int = 16, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Returns images and the class of every pixel."""
    return torch.randn(2, channels, side, side), torch.randint(3, (2, side, side))


def pixel_loss(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output["out"] if isinstance(output, dict) else output, target)


def first_of_outputs(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output if isinstance(output, Tensor) else output[0], target)


def same_again(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


cnn = partial(architecture, family="convolutional", batch=images)


@cnn("MobileNetV2", about="depthwise convolutions")
def mobilenet_v2() -> nn.Module:
    return zoo.mobilenet_v2(width_mult=0.25, num_classes=CLASSES)


@cnn("MobileNetV3", about="depthwise convolutions, squeeze and excitation")
def mobilenet_v3() -> nn.Module:
    return zoo.mobilenet_v3_small(width_mult=0.5, num_classes=CLASSES)


@cnn("ShuffleNetV2", about="shuffled channels")
def shufflenet() -> nn.Module:
    return zoo.shufflenet_v2_x0_5(num_classes=CLASSES)


@cnn("MNASNet", about="depthwise convolutions of several sizes")
def mnasnet() -> nn.Module:
    return zoo.MNASNet(0.35, num_classes=CLASSES)


@cnn("ResNeXt", about="grouped convolutions")
def resnext() -> nn.Module:
    return zoo.ResNet(
        zoo.resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=4, width_per_group=4
    )  # 2 million parameters


@cnn("RegNet", about="grouped convolutions, squeeze and excitation")
def regnet() -> nn.Module:
    sizes = zoo.regnet.BlockParams.from_init_params(depth=6, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return zoo.RegNet(sizes, num_classes=CLASSES, stem_width=8)


@cnn("EfficientNet", about="depthwise convolutions, stochastic depth")
def efficientnet() -> nn.Module:
    block = zoo.efficientnet.MBConvConfig
    return zoo.EfficientNet([block(1, 3, 1, 8, 8, 1), block(4, 5, 2, 8, 16, 2)], dropout=0.2, num_classes=CLASSES)


@cnn("SqueezeNet", about="no norms, a convolution as classifier")
def squeezenet() -> nn.Module:
    return zoo.squeezenet1_1(num_classes=CLASSES)


@cnn("DenseNet", about="concatenated features")
def densenet() -> nn.Module:
    return zoo.DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=CLASSES)


@cnn("Inception (GoogLeNet)", about="outputs in a named tuple while it trains", loss=first_of_outputs)
def googlenet() -> nn.Module:
    return zoo.GoogLeNet(num_classes=CLASSES, aux_logits=True, init_weights=False)


@cnn("ConvNeXt", about="7x7 depthwise convolutions, layer norm, a scale per channel")
def convnext() -> nn.Module:
    return zoo.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=CLASSES)


@cnn("ConvMixer", family="convolutional", about="patches, depthwise convolutions")
def convmixer() -> nn.Module:
    def block(module: nn.Module) -> nn.Sequential:
        return nn.Sequential(module, nn.GELU(), nn.BatchNorm2d(24))

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    mixing = [
        nn.Sequential(Residual(block(nn.Conv2d(24, 24, 5, groups=24, padding="same"))), block(nn.Conv2d(24, 24, 1)))
        for _ in range(2)
    ]
    return nn.Sequential(
        block(nn.Conv2d(3, 24, 4, stride=4)), *mixing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, CLASSES)
    )


attention = partial(architecture, family="vision transformer", batch=images)


@attention("ViT", about="a class token and positions as parameters")
def vit() -> nn.Module:
    return zoo.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )


@attention("Swin", about="shifted windows, a table of relative positions")
def swin() -> nn.Module:
    return zoo.SwinTransformer(
        patch_size=[2, 2], embed_dim=16, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=CLASSES
    )


@attention("MaxViT", about="attention in blocks and grids")
def maxvit() -> nn.Module:
    return zoo.MaxVit(
        input_size=(32, 32),
        stem_channels=8,
        partition_size=2,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.1,
        num_classes=CLASSES,
    )


@attention("MLP-Mixer", about="no attention: linear layers over patches")
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, stride=8)
        self.over_patches = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.over_channels = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = x + self.over_patches(x)
        x = x + self.over_channels(x.mT).mT
        return self.head(x.mean(2))


dense = partial(architecture, family="image to image", batch=pictures, loss=pixel_loss)


@dense("U-Net", about="transposed convolutions, group norm, skips")
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.SiLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.head = nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        return self.head(torch.cat([fine, self.up(self.middle(fine))], dim=1))


@dense("LR-ASPP on MobileNetV3", about="outputs in a dict")
def lraspp() -> nn.Module:
    return zoo.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def one_image_twice() -> tuple[Tensor, Tensor]:
    image = torch.rand(4, 3, 16, 16)
    return image, image


@architecture("autoencoder", "image to image", one_image_twice, "the input is the target", loss=same_again)
def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )


@architecture("super-resolution", "image to image", lambda: (torch.rand(2, 1, 8, 8), torch.rand(2, 1, 16, 16)))
def super_resolution() -> nn.Module:
    """Returns an ESPCN: a regressor without a loss of its own."""
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2))


@cnn("discriminator", about="spectral norm by parametrizations")
def discriminator() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 4, stride=2)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(16, 32, 4, stride=2)),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        norm(nn.Linear(32, CLASSES)),
    )


@architecture(
    "3D convolutions",
    "video and volumes",
    lambda: (torch.randn(2, 1, 8, 8, 8), torch.randint(CLASSES, (2,))),
    "instance norm",
)
def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.InstanceNorm3d(8, affine=True),
        nn.ReLU(),
        nn.Conv3d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


@architecture(
    "Siamese", "convolutional", lambda: (torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.randint(2, (4,)))
)
class Siamese(nn.Module):
    """Two inputs, one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16))
        self.head = nn.Bilinear(16, 16, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.trunk(a), self.trunk(b))


@architecture(
    "PointNet", "graphs and sets", lambda: (torch.randn(4, 3, 32), torch.randint(CLASSES, (4,))), "sets of points"
)
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 9)
        )
        self.points = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        turned = (self.turn(x).view(-1, 3, 3) + torch.eye(3)) @ x
        return self.head(self.points(turned).amax(2))
