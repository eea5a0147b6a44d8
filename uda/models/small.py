"""Networks for 32-pixel images (CIFAR), from four families, small enough for a CPU.

Each network keeps the idea of its family at a smaller size. A forward pass takes 10 to 60 million multiplications.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(
    in_channels: int, width: int, stride: int = 1, kernel: int = 3, dilation: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Convolution and BatchNorm. The maps keep their size, divided by the stride and rounded up."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, width, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(width)


class Pooled(nn.Module):
    """Layers, then a global average.

    Args:
        layers: module that maps images (B, C, S, S) to maps (B, D, s, s).
        width: D.
    """

    def __init__(self, layers: nn.Module, width: int):
        super().__init__()
        self.layers = layers
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D)."""
        return self.layers(images).mean(dim=(2, 3))


class Flat(Pooled):
    """Layers whose last maps are flattened, so that features keep their positions."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D * s * s)."""
        return self.layers(images).flatten(1)


def vgg_small(in_channels: int, widths: tuple[int, ...] = (16, 32, 64)) -> nn.Module:
    """VGG with BatchNorm: pairs of 3x3 convolutions, a max-pool after each pair (Simonyan and Zisserman, ICLR 2015)."""
    layers: list[nn.Module] = []
    for width in widths:
        for _ in range(2):
            layers += [*convolution(in_channels, width), nn.ReLU()]
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return Pooled(nn.Sequential(*layers), in_channels)


class Residual(nn.Module):
    """relu(x + F(x)), where F is two 3x3 convolutions. If the shape changes, x goes through a 1x1 convolution."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*convolution(in_channels, width, stride), nn.ReLU(), *convolution(width, width))
        same = stride == 1 and in_channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(in_channels, width, stride, kernel=1))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, width, S / stride, S / stride)."""
        return F.relu(self.shortcut(maps) + self.body(maps))


def resnet_small(in_channels: int, blocks: int = 2, widths: tuple[int, ...] = (16, 32, 64)) -> nn.Module:
    """ResNet for small images (He et al., CVPR 2016, section 4.2), a ResNet-14 with two blocks in each stage."""
    layers: list[nn.Module] = [*convolution(in_channels, widths[0]), nn.ReLU()]
    channels = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Residual(channels, width, stride=2 if stage and not block else 1))
            channels = width
    return Pooled(nn.Sequential(*layers), channels)


class Dense(nn.Module):
    """[x, F(x)], where F is BatchNorm, ReLU and a 3x3 convolution to `growth` maps."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C + growth, S, S)."""
        return torch.cat([maps, self.body(maps)], dim=1)


def densenet_small(in_channels: int, growth: int = 12, blocks: int = 3) -> nn.Module:
    """DenseNet of three stages, with a 1x1 convolution to half the maps and a pool between (Huang et al., 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=False)]
    channels = 2 * growth
    for stage in range(3):
        if stage:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
        for _ in range(blocks):
            layers.append(Dense(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return Pooled(nn.Sequential(*layers), channels)


def wide_fast(in_channels: int, widths: tuple[int, int, int] = (48, 128, 192)) -> nn.Module:
    """A few wide layers that pool early, for high accuracy after a short training.

    It follows the networks of DAWNBench and Jordan's airbench (2024). A stage is a convolution, a max-pool and another
    convolution, with GELU. The last maps are pooled by their maximum.
    """
    layers: list[nn.Module] = [*convolution(in_channels, 24), nn.GELU()]
    channels = 24
    for width in widths:
        first, second = convolution(channels, width), convolution(width, width)
        layers += [first[0], nn.MaxPool2d(2), first[1], nn.GELU(), *second, nn.GELU()]
        channels = width
    layers.append(nn.AdaptiveMaxPool2d(1))
    return Flat(nn.Sequential(*layers), channels)
