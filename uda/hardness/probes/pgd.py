"""Targeted projected gradient descent on an image's pixels (Madry et al., ICLR 2018), with all steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda.core.errors import UserError
from uda.hardness.probes.pixels import Pixels
from uda.models.network import Output

NORMS = ("l2", "linf")
#: Default radius of an image with n values: this value for linf, sqrt(n) times this value for l2.
DEFAULT_RADIUS = 0.02


@dataclass(frozen=True)
class Attack:
    """The radius and the steps of an attack. Pixels are from 0 to 1."""

    norm: str = "l2"
    """l2: Euclidean length of the change over all values of the image; linf: the largest change of one value."""
    steps: int = 50
    """Number of steps."""
    step_size: float | None = None
    """Length of a step in this norm; None: eps / steps, the smallest size that can reach eps."""
    eps: float | None = None
    """Radius of the ball around the image; None: DEFAULT_RADIUS for linf, sqrt(n) times DEFAULT_RADIUS for l2."""

    def settled(self, entries: int) -> "Attack":
        """The attack with all values set, for images with `entries` values. Raises UserError for invalid values."""
        if self.norm not in NORMS:
            raise UserError(f"`norm`: unknown '{self.norm}' (known: {', '.join(NORMS)})")
        if self.steps < 1:
            raise UserError(f"`steps`: {self.steps}: must be at least 1")
        for option, value in (("`eps`", self.eps), ("`step_size`", self.step_size)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{option}: {value}: must be above 0 (pixels are from 0 to 1)")
        if self.norm == "linf" and self.eps is not None and self.eps > 1:
            raise UserError(f"`eps`: {self.eps:g}: must be at most 1 (pixels are from 0 to 1; 8/255 is .031)")
        default = DEFAULT_RADIUS * (math.sqrt(entries) if self.norm == "l2" else 1)
        eps = default if self.eps is None else self.eps
        return replace(self, eps=eps, step_size=eps / self.steps if self.step_size is None else self.step_size)


def pgd(
    network: nn.Module, pixels: Pixels, images: Tensor, target: int, attack: Attack
) -> Iterator[tuple[Tensor, Output]]:
    """Move images so that the cross-entropy with `target` falls.

    The network is set to eval mode. The gradients of its parameters are not used and not changed.

    Args:
        network: a differentiable network that returns `Output`.
        pixels: the network's normalisation. The gradient passes through it.
        images: (B, C, S, S) in 0..1; they are not changed.
        target: number of the class to move to.
        attack: an attack with all values set (`settled`).

    Yields:
        attack.steps + 1 pairs: the images, (B, C, S, S) in 0..1 and within eps of the first images, and the network's
        output for them.
    """
    network.eval()
    moved = images
    for step in range(attack.steps + 1):
        with torch.enable_grad():
            leaf = moved.detach().requires_grad_()
            output = network(pixels.to_inputs(leaf))
            if step < attack.steps:
                towards = torch.full((len(leaf),), target, device=leaf.device)
                loss = F.cross_entropy(output.logits, towards, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, leaf)
        yield moved, Output(output.features.detach(), output.logits.detach())
        if step < attack.steps:
            moved = _within(moved - attack.step_size * _direction(gradient, attack.norm), images, attack)


def lengths(changes: Tensor, norm: str) -> Tensor:
    """Length of each image's change: (B, C, S, S) -> (B,)."""
    flat = changes.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    length = lengths(gradient, "l2").view(-1, 1, 1, 1)
    return gradient / torch.where(length > 0, length, 1.0)


def _within(moved: Tensor, images: Tensor, attack: Attack) -> Tensor:
    """Project images onto the ball, then clip them to 0..1. Clipping only brings them nearer to the first images."""
    change = moved - images
    if attack.norm == "linf":
        change = change.clamp(-attack.eps, attack.eps)
    else:
        length = lengths(change, "l2").view(-1, 1, 1, 1)
        change = change * torch.where(length > attack.eps, attack.eps / length, 1.0)
    return (images + change).clamp(0, 1)
