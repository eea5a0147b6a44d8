"""GPU memory of a training step and of a predict batch, counted on meta tensors. Nothing is computed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uda.adaptation.config import AdaptationConfig
from uda.models.network import create_network

#: Permanent bytes per parameter: the weight and its momentum in fp32.
BYTES_A_PARAMETER = 8
#: GiB of the CUDA context, cuDNN's workspaces and gaps between blocks: a guess.
BESIDES_GIB = 1.0


@dataclass(frozen=True)
class Memory:
    """Peak memory in GiB, without CUDA's own memory."""

    train: float
    """The peak in a training step."""
    predict: float
    """The peak in a predict pass."""


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that were created and not yet freed."""

    def __init__(self):
        super().__init__()
        self.bytes, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        number = storage._cdata
        if number in self._known:
            return
        self._known.add(number)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, number, storage.nbytes())

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.bytes -= size


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak bytes of the tensors that a call creates. Tensors that existed before are not counted."""
    with Held() as held:
        work()
    return held.peak


def memory_of(
    config: AdaptationConfig, num_classes: int, train_batch: int, predict_batch: int, precision: str
) -> Memory:
    """Memory of a config's network.

    Args:
        config: a config with the network and the size of images.
        num_classes: K.
        train_batch, predict_batch: number of images in a batch.
        precision: precision of training, `fp32`, `bf16` or `fp16`. Predicting is in fp32.
    """
    size, channels = config.transforms.size, len(config.transforms.mean)
    with torch.device("meta"):
        network = create_network(config.model.model_copy(update={"weights": "none"}), num_classes, channels)
    parameters = sum(parameter.numel() for parameter in network.parameters())

    def forward(batch: int) -> torch.Tensor:
        images = torch.empty(batch, channels, size, size, device="meta", dtype=network.weight.dtype)
        return nn.functional.linear(network.features(images), network.weight.float())

    def predict() -> None:
        with torch.inference_mode():
            forward(predict_batch)

    network.eval()
    predicting = 4 * parameters + peak_bytes(predict)
    kept = BYTES_A_PARAMETER * parameters
    if precision != "fp32":
        # Autocast keeps a copy of the weights for the backward pass, and the gradients are still in fp32.
        kept += (2 + 2) * parameters
        network.bfloat16()
    network.train()
    training = kept + peak_bytes(lambda: forward(train_batch).sum().backward())
    return Memory(training / 2**30, predicting / 2**30)
