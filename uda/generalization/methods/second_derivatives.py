"""Convolution and BatchNorm with fast second derivatives, and attention that has second derivatives.

torch's second derivatives are exact but slow. Those of a grouped convolution loop over the groups, and those of
BatchNorm make a dozen intermediate tensors. Together they take half of a second-order step. This module computes them
with the kernels of the forward and backward passes. torch's fused attention has no second derivatives. The unfused
attention (SDPBackend.MATH) has them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


class QuickSecondDerivatives(TorchFunctionMode):
    """A context for forward passes whose gradients are differentiated again. It makes second derivatives fast.

    It replaces 2d convolutions, and BatchNorm with batch statistics. Values and gradients are the same except for
    rounding. Under autocast neither is replaced. Attention is unfused.
    """

    def __enter__(self):
        self._attention = sdpa_kernel(SDPBackend.MATH)
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *failure):
        super().__exit__(*failure)
        self._attention.__exit__(*failure)

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        return _QUICK.get(func, func)(*args, **(kwargs or {}))


def _plain(images: Tensor) -> bool:
    return images.ndim == 4 and torch.is_grad_enabled() and not torch.is_autocast_enabled(images.device.type)


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if not _plain(input) or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    pairs = [[value] * 2 if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    found = Convolution.apply(input, weight, (*pairs, False, [0, 0], groups))
    return found if bias is None else found + bias[:, None, None]


def _batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if not _plain(input) or not training or weight is None or bias is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


_QUICK = {torch.conv2d: _conv2d, F.batch_norm: _batch_norm}


class Convolution(Function):
    """Convolution of x (B, C, S, S) with w. `settings` are torch.convolution's arguments from `stride` to `groups`."""

    @staticmethod
    def forward(ctx, x, w, settings):
        ctx.save_for_backward(x, w)
        ctx.settings = settings
        return torch.convolution(x, w, None, *settings)

    @staticmethod
    def backward(ctx, g):
        return *ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.settings, ctx.needs_input_grad[:2]), None


class ConvolutionBackward(Function):
    """The gradients of a convolution's x and w from the output's gradient g; None if not `wanted`."""

    @staticmethod
    def forward(ctx, g, x, w, settings, wanted):
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        return _convolution_gradients(g, x, w, settings, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx, u, a):
        """The gradients of g, x and w from u and a, the gradients of x's gradient and w's gradient.

        Both gradients are bilinear, so each term is again a convolution or a gradient of a convolution.
        """
        g, x, w = ctx.saved_tensors
        wants_g, wants_x, wants_w = ctx.needs_input_grad[:3]
        by_g = by_x = by_w = None
        if wants_g:
            pairs = [pair for pair in ((u, w), (x, a)) if pair[0] is not None and pair[1] is not None]
            by_g = sum(torch.convolution(*pair, None, *ctx.settings) for pair in pairs) if pairs else None
        if wants_x and a is not None:
            by_x = _convolution_gradients(g, x, a, ctx.settings, (True, False))[0]
        if wants_w and u is not None:
            by_w = _convolution_gradients(g, u, w, ctx.settings, (False, True))[1]
        return by_g, by_x, by_w, None, None


def _convolution_gradients(g, x, w, settings, wanted):
    return torch.ops.aten.convolution_backward(g, x, w, None, *settings, [*wanted, False])[:2]


class BatchNorm(Function):
    """BatchNorm with batch statistics: x (B, C, S, S), weight and bias (C,). Updates the running statistics, if any."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        return y

    @staticmethod
    def backward(ctx, g):
        return *BatchNormBackward.apply(g, *ctx.saved_tensors), None, None, None, None


class BatchNormBackward(Function):
    """The gradients of BatchNorm's x, weight and bias from the output's gradient g.

    `inverse` is 1 / standard deviation.
    """

    @staticmethod
    def forward(ctx, g, x, weight, mean, inverse):
        by_x, by_weight, by_bias = _batch_norm_gradients(g, x, weight, mean, inverse)
        ctx.save_for_backward(g, x, weight, mean, inverse, by_weight, by_bias)
        return by_x, by_weight, by_bias

    @staticmethod
    @once_differentiable
    def backward(ctx, u, a, b):
        """The gradients of g, x and weight from u, a and b, the gradients of x's, weight's and bias's gradients.

        With n values per channel, z = inverse (x - mean), and m the mean over a channel:
            grad_x = weight inverse (g - m(g) - z m(g z)) is linear in g and equals its transpose, so
            by_g = grad_x of u + a z + b.
            sum(u grad_x) = weight inverse n (C - A B),  A = m(g z), B = m(u z), C = m(u (g - m(g))).
        The other gradients are the derivatives of sum(u grad_x) and of a sum(g z), with
        dinverse = -inverse^2 z / n and dA = inverse (g - m(g) - z A) / n.
        """
        g, x, weight, mean, inverse, sum_gz, sum_g = ctx.saved_tensors
        n = x.numel() // len(mean)
        by_g, sum_uz, sum_u = _batch_norm_gradients(u, x, weight, mean, inverse)
        # The same kernel returns sum(u (g - m(g))) as the weight's gradient of a BatchNorm of g.
        one = torch.ones_like(inverse)
        _, sum_ug, _ = _batch_norm_gradients(u, g, one, sum_g / n, one, (False, True, False))
        A, B, C = sum_gz / n, sum_uz / n, sum_ug / n

        by_z = -weight * inverse**2 * (C - 3 * A * B) - a * inverse * A
        of_g, of_u, of_x = a * inverse - weight * inverse**2 * B, -weight * inverse**2 * A, by_z * inverse
        constant = -(of_g * sum_g + of_u * sum_u) / n - of_x * mean
        by_x = torch.addcmul(_channels(constant), g, _channels(of_g))
        by_x.addcmul_(u, _channels(of_u)).addcmul_(x, _channels(of_x))

        of_z = a * inverse
        by_g = by_g.addcmul_(x, _channels(of_z)).add_(_channels(b - of_z * mean))
        return by_g, by_x, inverse * n * (C - A * B), None, None


def _batch_norm_gradients(g, x, weight, mean, inverse, wanted=(True, True, True)):
    # The kernel requires eps, but `inverse` already includes it.
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, inverse, True, 0.0, list(wanted))


def _channels(values: Tensor) -> Tensor:
    """(C,) to (C, 1, 1)."""
    return values[:, None, None]
