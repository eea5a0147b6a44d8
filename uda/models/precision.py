"""Computes losses in full precision under autocast."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute a loss outside of autocast, with bf16 and fp16 arguments as fp32. Sums and differences need that."""

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        args = [_widened(arg) for arg in args]
        kwargs = {name: _widened(arg) for name, arg in kwargs.items()}
        device = next(arg.device.type for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return computed


def _widened(value: object) -> object:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value
