"""Inner loops: gradients that may be differentiated again, and parameters a step further on.

In a job of several processes every process takes its inner steps by its own images; what comes out of them is averaged.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from uda.generalization.methods.base import Parameters

#: Gradients by the parameters' names; None where the loss does not see a parameter.
Gradients = Mapping[str, Tensor | None]


def gradients(loss: Tensor, parameters: Parameters, *, differentiable: bool = False, keep: bool = False) -> Gradients:
    """The gradient of a scalar by some parameters.

    Args:
        loss: the scalar.
        parameters: by name.
        differentiable: whether the gradient is to be differentiated again (second order).
        keep: whether the loss's graph will be gone through once more.
    """
    with torch.autocast(loss.device.type, enabled=False):  # gradients run in the types of their forward
        found = torch.autograd.grad(
            loss,
            list(parameters.values()),
            create_graph=differentiable,
            retain_graph=keep or differentiable,
            allow_unused=True,
        )
    return dict(zip(parameters, found, strict=True))


def descended(parameters: Parameters, slopes: Gradients, lr: float) -> dict[str, Tensor]:
    """Parameters after a step of plain gradient descent, differentiable by whatever the gradients came from."""
    return {name: p if slopes[name] is None else p - lr * slopes[name] for name, p in parameters.items()}


def with_gradient(parameters: Parameters, slopes: Gradients) -> Tensor:
    """A scalar whose gradient is `slopes`: for one that is known already, in the place of its loss.

    One parameter at least must have a gradient that is not None.
    """
    terms = [(slopes[name].detach() * p).sum() for name, p in parameters.items() if slopes[name] is not None]
    return torch.stack(terms).sum()
