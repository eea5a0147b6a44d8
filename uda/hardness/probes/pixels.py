"""Conversion between a network's normalised inputs and pixels."""

import torch
from torch import Tensor

from uda.data.settings import TransformSettings


class Pixels:
    """The normalisation of a network's inputs, and its inverse. Both are differentiable.

    Args:
        transforms: settings with the mean and standard deviation of each channel.
        device: device of the tensors.
    """

    def __init__(self, transforms: TransformSettings, device: torch.device | str = "cpu"):
        self._mean = torch.tensor(transforms.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(transforms.std, device=device).view(-1, 1, 1)

    def of(self, inputs: Tensor) -> Tensor:
        """Normalised images (B, C, S, S) -> pixels in 0..1."""
        return (inputs * self._std + self._mean).clamp(0, 1)

    def to_inputs(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..1 (B, C, S, S) -> normalised images."""
        return (pixels - self._mean) / self._std
