"""What half precision owes a step in which the weights move."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: One of these steps changes a weight by more than bf16 rounds.
LARGE_STEPS = tuple(
    f"{stage}.optim={{name: sgd, lr: 1.0, momentum: 0, nesterov: false, weight_decay: 0, schedule: constant}}"
    for stage in ("adaptation", "self_training")
)


@contextmanager
def fresh_weights(*networks: nn.Module) -> Iterator[list[nn.Module]]:
    """Within this context each layer's output is that of the weights that it has at this moment.

    Autocast casts a weight for each layer; here each is computed once more from a new cast. Gives the layers that have
    computed under autocast, in their order.
    """
    passes = []

    def check(layer, inputs, output):
        if not torch.is_autocast_enabled("cpu"):
            return
        passes.append(layer)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            assert torch.equal(layer.forward(*inputs), output), f"pass {len(passes)}: {layer}"

    kinds = (nn.Conv2d, nn.Linear)
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(check) for layer in layers]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
