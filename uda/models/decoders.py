"""Decoders of segmentation networks: they turn a body's maps into one map of features x.

The features (B, D, h, w) are the input of the linear classifier. Their resolution h x w is called the grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from uda.core.registry import Registry
from uda.core.settings import Settings
from uda.models.small import convolution

Activation = Literal["relu", "none"]


class Decoder(Settings, ABC):
    """Base of all decoders. Its fields are the options of the decoder."""

    @abstractmethod
    def stride(self, strides: Sequence[int]) -> int:
        """Stride of the grid, for a body with maps of `strides`, the finest first."""

    @abstractmethod
    def layers(self, channels: Sequence[int], width: int, activation: Activation) -> nn.Module:
        """The layers: list of maps -> features (B, `width`, h, w).

        Args:
            channels: channels of each of the body's maps.
            width: D.
            activation: activation of the last layer. With `none`, the features have both signs.
        """


DECODERS: Registry[type[Decoder]] = Registry("decoder")


@DECODERS.register("fpn")
class Fpn(Decoder):
    """1x1 convolutions of all maps, added from coarse to fine, then one 3x3 (FPN, Lin et al., CVPR 2017)."""

    def stride(self, strides: Sequence[int]) -> int:
        return strides[0]

    def layers(self, channels: Sequence[int], width: int, activation: Activation) -> nn.Module:
        return _Pyramid(channels, width, activation)


@DECODERS.register("joined")
class Joined(Decoder):
    """All maps, upsampled to the finest and joined, then one 3x3 convolution."""

    def stride(self, strides: Sequence[int]) -> int:
        return strides[0]

    def layers(self, channels: Sequence[int], width: int, activation: Activation) -> nn.Module:
        return _Joined(channels, width, activation)


@DECODERS.register("aspp")
class Aspp(Decoder):
    """Dilated 3x3 convolutions of the last map, side by side, joined by a 1x1 (DeepLabv3, Chen et al., 2017)."""

    rates: list[Annotated[int, Field(ge=1)]] = Field([6, 12, 18, 24], min_length=1)
    """Dilation of each convolution. The default is DeepLabv2's, for a stride of 8."""
    pooling: bool = False
    """Whether the mean of the whole map is a branch too. It depends on the size of the image, so that crops and whole
    images give different features."""

    def stride(self, strides: Sequence[int]) -> int:
        return strides[-1]

    def layers(self, channels: Sequence[int], width: int, activation: Activation) -> nn.Module:
        return _Dilated(channels[-1], width, activation, self.rates, self.pooling)


class _Pyramid(nn.Module):
    def __init__(self, channels: Sequence[int], width: int, activation: Activation):
        super().__init__()
        # The maps differ in scale, so each is normalised before the sum.
        self.laterals = nn.ModuleList(nn.Sequential(*convolution(count, width, kernel=1)) for count in channels)
        self.last = _block(width, width, activation)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total = None
        for lateral, found in zip(reversed(self.laterals), reversed(maps), strict=True):
            own = lateral(found)
            total = own if total is None else own + resized(total, own)
        return self.last(total)


class _Joined(nn.Module):
    def __init__(self, channels: Sequence[int], width: int, activation: Activation):
        super().__init__()
        self.last = _block(sum(channels), width, activation)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.last(torch.cat([resized(found, maps[0]) for found in maps], dim=1))


class _Dilated(nn.Module):
    def __init__(self, channels: int, width: int, activation: Activation, rates: Sequence[int], pooling: bool):
        super().__init__()
        self.branches = nn.ModuleList(_block(channels, width, "relu", dilation=rate) for rate in rates)
        # Without BatchNorm, because a batch may have one image, and so one value of each channel.
        self.pooled = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU()) if pooling else None
        self.last = _block((len(rates) + pooling) * width, width, activation, kernel=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        last = maps[-1]
        found = [branch(last) for branch in self.branches]
        if self.pooled is not None:
            found.append(self.pooled(last.mean(dim=(2, 3), keepdim=True)).expand_as(found[0]))
        return self.last(torch.cat(found, dim=1))


def _block(in_channels: int, width: int, activation: Activation, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    layers = convolution(in_channels, width, kernel=kernel, dilation=dilation)
    return nn.Sequential(*layers, *([nn.ReLU()] if activation == "relu" else []))


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (B, C, h, w), bilinearly resized to the resolution of `like`."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)
