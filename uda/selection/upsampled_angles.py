"""Angles of upsampled features, without forming these features.

A pixel's upsampled feature is the mixture x = sum_i a_i h_i of up to four neighbouring features. <w, x> is the
upsampled <w, h>, and |x|^2 = sum_ij a_i a_j <h_i, h_j> follows from the products of neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from uda.selection.angular import LARGEST_COSINE, to_double


@torch.no_grad()
def upsampled_angles(features: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Angles of bilinearly upsampled features: (B, D, h, w), (K, D), `size` (H, W) -> (B, K, H, W) in [0, pi].

    The corners are not aligned (`align_corners=False`). A zero feature has the angle pi/2 to every vector. There are no
    gradients. Returns float64 if an input is float64, else float32. Raises ValueError if the shapes do not match.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features (B, D, h, w) and weight (K, D) need the same D, got {tuple(features.shape)} and "
            f"{tuple(weight.shape)}"
        )
    dtype = torch.float64 if torch.float64 in (features.dtype, weight.dtype) else torch.float32
    with torch.autocast(features.device.type, enabled=False):
        x, directions = to_double(features), F.normalize(to_double(weight), dim=1, eps=0)
        products = F.conv2d(x, directions.nan_to_num()[:, :, None, None])
        products = F.interpolate(products, size=size, mode="bilinear", align_corners=False)
        lengths = _upsampled_squares(x, size).clamp_(min=0).sqrt_()[:, None]
        cosines = products.div_(lengths.masked_fill_(lengths == 0, 1)).clamp_(-LARGEST_COSINE, LARGEST_COSINE)
        return cosines.arccos_().to(dtype).to(features.device)


def _upsampled_squares(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Squared lengths of upsampled vectors: (B, D, h, w) -> (B, H, W)."""
    rows, down = _neighbours(x.shape[2], size[0], x.device)
    columns, right = _neighbours(x.shape[3], size[1], x.device)
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    square = (x * x).sum(1)
    beside = (x[..., :-1] * x[..., 1:]).sum(1)
    below = (x[:, :, :-1] * x[:, :, 1:]).sum(1)
    diagonal = (x[:, :, :-1, :-1] * x[:, :, 1:, 1:]).sum(1) + (x[:, :, :-1, 1:] * x[:, :, 1:, :-1]).sum(1)
    left, up, down = 1 - right, (1 - down)[:, None], down[:, None]
    # Each row's own product, and its product with the next row.
    own = left**2 * square[..., columns] + 2 * left * right * beside[..., columns] + right**2 * square[..., columns + 1]
    next_ = left**2 * below[..., columns] + left * right * diagonal[..., columns] + right**2 * below[..., columns + 1]
    return up**2 * own[:, rows] + 2 * up * down * next_[:, rows] + down**2 * own[:, rows + 1]


def _neighbours(cells: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each pixel the first of its two cells, and the share of the second."""
    place = (torch.arange(pixels, dtype=torch.float64, device=device) + 0.5) * (cells / pixels) - 0.5
    first = place.clamp_(min=0).long()
    return first, place - first
