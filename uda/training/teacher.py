"""The teacher: an exponential moving average (EMA) of a network's weights (mean teacher)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from uda.models.network import Network
from uda.training.settings import EmaSettings


class Teacher:
    """The moving average of a network's weights (Tarvainen and Valpola, NeurIPS 2017, equation 1).

    After training step t, counted from 1: teacher = d * teacher + (1 - d) * network, with d = `decay`. In the warm-up
    d = min(decay, 1 - 1 / t), so that the teacher is the mean of the networks of all steps so far.

    BatchNorm's running means and variances are averaged like the weights. Counters are copied.

    Args:
        network: the network that is averaged. The teacher begins as a copy of it.
        settings: decay and warm-up. `decay` is not None.
    """

    def __init__(self, network: Network, settings: EmaSettings):
        self.settings = settings
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.steps = 0
        """Number of training steps that it has followed."""

    @torch.no_grad()
    def follow(self, network: Network) -> None:
        """Move towards `network`, after a training step of it."""
        self.steps += 1
        decay = self.settings.decay
        if self.settings.warm_up:
            decay = min(decay, 1 - 1 / self.steps)
        averaged, sources = [], []
        for mine, new in zip(_tensors(self.network), _tensors(network), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                sources.append(new.detach())
            else:
                mine.copy_(new)
        torch._foreach_lerp_(averaged, sources, 1 - decay)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"network": self.network.state_dict(), "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.network.load_state_dict(state["network"])
        self.steps = state["steps"]


def _tensors(network: Network) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
