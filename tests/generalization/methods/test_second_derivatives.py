"""Quick second derivatives against torch's own, and against finite differences."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from uda.generalization.methods.second_derivatives import BatchNorm, QuickSecondDerivatives


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, (3, 1), padding=(1, 0), groups=4, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 3, 1, padding="same", dilation=2),
    ).double()


def second_order(net, x, quick):
    """Output, gradients of a loss, and gradients of their squares' sum."""
    parameters = [x, *net.parameters()]
    if quick:
        with QuickSecondDerivatives():
            y = net(x)
    else:
        y = net(x)
    first = torch.autograd.grad(y.exp().mean(), parameters, create_graph=True)
    return y, first, torch.autograd.grad(sum(gradient.square().sum() for gradient in first), parameters)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_first_and_second_derivatives_and_running_statistics_are_torchs_own(memory_format):
    net = network()
    x = torch.randn(5, 2, 7, 7, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    found = second_order(net, x, quick=True)
    after = [buffer.clone() for buffer in net.buffers()]
    for layer in (net[1], net[4]):
        layer.reset_running_stats()
    expected = second_order(net, x, quick=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after, list(net.buffers()))


def test_images_that_need_no_gradient():
    net, x = network(), torch.randn(5, 2, 7, 7, dtype=torch.float64)
    parameters, seconds = list(net.parameters()), []
    for context in (QuickSecondDerivatives(), torch.enable_grad()):
        with context:
            y = net(x)
        first = torch.autograd.grad(y.exp().mean(), parameters, create_graph=True)
        seconds.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), parameters))
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-12)


def test_convolution_and_batch_norm_by_finite_differences():
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def convolution(x, w):
        with QuickSecondDerivatives():
            return F.conv2d(x, w, groups=2)

    def batch_norm(x, weight, bias):
        return BatchNorm.apply(x, weight, bias, None, None, 0.1, 1e-5)

    for function, inputs in ((convolution, (x, w)), (batch_norm, (x, weight, bias))):
        assert gradcheck(function, inputs) and gradgradcheck(function, inputs)
        assert type(function(*inputs).grad_fn).__name__ in ("ConvolutionBackward", "BatchNormBackward")


def test_attention_by_finite_differences():
    """torch's fused kernels, which a processor takes too, have no second derivatives."""
    q = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    heads = nn.MultiheadAttention(4, 2).double()

    def attention(q):
        with QuickSecondDerivatives():
            return F.scaled_dot_product_attention(q, q.flip(2), q)

    def within_a_module(q):
        with QuickSecondDerivatives():
            return heads(q[0], q[0], q[0], need_weights=False)[0]

    assert gradgradcheck(attention, q) and gradgradcheck(within_a_module, q)
    with pytest.raises(RuntimeError, match="kept"), QuickSecondDerivatives():
        raise RuntimeError("errors within are kept")
    assert torch.backends.cuda.flash_sdp_enabled(), "and what was set before is set again"


def test_under_autocast_and_without_gradients_torchs_own_are_taken():
    net, x = network().float(), torch.randn(5, 2, 7, 7)
    with QuickSecondDerivatives(), torch.autocast("cpu", torch.bfloat16):
        assert type(net[0](x).grad_fn).__name__ == "ConvolutionBackward0" and net(x).dtype == torch.bfloat16
    with QuickSecondDerivatives(), torch.no_grad():
        assert net(x).grad_fn is None
