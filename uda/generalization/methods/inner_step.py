"""Inner loops: gradients that can be differentiated again, and parameters after an inner step.

In a job of several processes, each process computes its inner steps from its own images. The resulting gradients are
averaged.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from uda.generalization.methods.base import Parameters

#: Gradients by the parameters' names; None if the loss does not depend on a parameter.
Gradients = Mapping[str, Tensor | None]


def gradients(loss: Tensor, parameters: Parameters, *, differentiable: bool = False, keep: bool = False) -> Gradients:
    """The gradient of a scalar with respect to some parameters.

    Args:
        loss: the scalar.
        parameters: the parameters by name.
        differentiable: whether the gradient can be differentiated again (second order).
        keep: whether to keep the loss's graph for another backward pass.
    """
    with torch.autocast(loss.device.type, enabled=False):  # the backward pass uses the types of the forward pass
        found = torch.autograd.grad(
            loss,
            list(parameters.values()),
            create_graph=differentiable,
            retain_graph=keep or differentiable,
            allow_unused=True,
        )
    return dict(zip(parameters, found, strict=True))


def descended(parameters: Parameters, slopes: Gradients, lr: float) -> dict[str, Tensor]:
    """Parameters after a step of plain gradient descent. The result is differentiable if the gradients are."""
    return {name: p if slopes[name] is None else p - lr * slopes[name] for name, p in parameters.items()}


def with_gradient(parameters: Parameters, slopes: Gradients) -> Tensor:
    """A scalar whose gradient is `slopes`. It replaces a loss whose gradient is already known.

    At least one gradient must not be None.
    """
    terms = [(slopes[name].detach() * p).sum() for name, p in parameters.items() if slopes[name] is not None]
    return torch.stack(terms).sum()
