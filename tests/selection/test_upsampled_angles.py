"""Angles of upsampled features against those of features that are formed."""

import math

import pytest
import torch
from torch.nn import functional as F

from uda.selection.angular import angles
from uda.selection.upsampled_angles import upsampled_angles


def drawn(dtype=torch.float64, size=(3, 5), d=6):
    return torch.randn(2, d, *size, dtype=dtype), torch.randn(4, d, dtype=dtype)


def of_rows(features, weight):
    """The angles of each pixel's feature, (B, D, H, W) -> (B, K, H, W)."""
    found = angles(features.permute(0, 2, 3, 1).flatten(0, 2), weight)
    return found.view(len(features), *features.shape[2:], -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(3, 5), (12, 20), (7, 13), (2, 4), (1, 1), (30, 5)])
@pytest.mark.parametrize("relu", [False, True])
def test_as_if_the_features_were_formed(size, relu):
    """To 1e-12 in double precision, for multiples of the size of the grid, other sizes and smaller ones."""
    features, weight = drawn()
    features = features.relu() if relu else features
    direct = of_rows(F.interpolate(features, size=size, mode="bilinear", align_corners=False), weight)
    found = upsampled_angles(features, weight, size)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.cos(), direct.cos(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, direct, rtol=1e-12, atol=0)


def test_a_grid_of_one_row_or_one_cell():
    for grid in ((1, 4), (4, 1), (1, 1)):
        features, weight = drawn(size=grid)
        direct = of_rows(F.interpolate(features, size=(6, 6), mode="bilinear", align_corners=False), weight)
        torch.testing.assert_close(upsampled_angles(features, weight, (6, 6)), direct, rtol=1e-12, atol=0)


def test_by_hand():
    """Between (1, 0) and (0, 1) lie 3/4 and 1/4 of each: angles arctan(1/3) and arctan(3) to the first axis."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.view(1, 2, 1, 2)
    found = upsampled_angles(features, torch.tensor([[3.0, 0.0]]), (1, 4))[0, 0, 0]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([0, math.atan(1 / 3), math.atan(3), math.pi / 2], abs=1e-6)


def test_zero_vectors_have_a_right_angle_and_single_precision_loses_nothing():
    features, weight = drawn(torch.float32)
    features[0], weight[1] = 0, 0
    found = upsampled_angles(features, weight, (6, 10))
    assert (found[0] == math.pi / 2).all() and (found[:, 1] == math.pi / 2).all()
    assert torch.equal(found, upsampled_angles(features.double(), weight.double(), (6, 10)).float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampled_angles(features, weight, (6, 10)), found)


def test_arguments_are_left_alone_and_shapes_are_checked():
    features, weight = drawn()
    before = features.clone(), weight.clone()
    upsampled_angles(features, weight, (6, 10))
    assert torch.equal(features, before[0]) and torch.equal(weight, before[1])
    with pytest.raises(ValueError, match=r"need the same D, got \(2, 6, 3, 5\) and \(4, 5\)"):
        upsampled_angles(features, weight[:, :5], (6, 10))
