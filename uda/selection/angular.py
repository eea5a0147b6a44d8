"""Angles between features and class weights, and the scores computed from them: AVH and AVC.

Source: Angular Visual Hardness (Chen et al., ICML 2020, PMLR 119:1637-1648).

    A(u, v)  = arccos( <u, v> / (|u| |v|) )
    AVH(x)   = A(x, w_y) / sum_i A(x, w_i)
    AVC(c|x) = (pi - A(x, w_c)) / sum_k (pi - A(x, w_k))

The feature x is the input of the last linear layer. w_1..w_K are the rows of that layer's weight. The bias is not
used. The weight is signed, so angles above 90 degrees are common even for features after a ReLU.

All angles are computed in double precision, for any input and under autocast too. arccos of a float32 cosine has an
error of 3e-4 near 0 and pi, and double precision costs little. Every value depends only on its own row.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Keeps the slope of arccos finite. Every angle is at least 1.4e-7 away from 0 and pi, so that no sum of angles is 0.
LARGEST_COSINE = 1.0 - 1e-14
# Number of entries that are converted to double precision at a time if no gradient is needed: 32 MB.
_CHUNK_ENTRIES = 1 << 22

#: Whether torch.export traces the code. Older versions of torch cannot tell.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def angles(features: Tensor, weight: Tensor) -> Tensor:
    """Angle between each feature and each class weight: (N, D), (K, D) -> (N, K), radians in [0, pi].

    A zero feature or a zero weight row has the angle pi/2 to every vector. The function is twice differentiable in both
    arguments, with finite gradients everywhere. The gradients are 0 at the angles 0 and pi, and for vectors whose
    largest entry is below 1/sqrt(largest number of their dtype) (5e-20 in float32). Returns float64 if an input is
    float64, else float32. Raises ValueError if the shapes do not match.
    """
    return _score_rows(lambda theta: theta, features, weight)


def avh(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Angular visual hardness: (N, D), (K, D), (N,) class indices -> (N,), in [0, 1], high = hard.

    Raises ValueError if the shapes do not match or a label is not a class.
    """
    _check_shapes(features, weight)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must have shape ({len(features)},), one for each feature, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integer class indices, got {labels.dtype}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(weight):
        raise ValueError(f"labels must lie in 0..{len(weight) - 1}, got {int(labels.min())}..{int(labels.max())}")

    def hardness(theta: Tensor, own: Tensor) -> Tensor:
        return theta.gather(1, own.to(theta.device, torch.int64)[:, None])[:, 0] / theta.sum(dim=1)

    return _score_rows(hardness, features, weight, labels)


def avc(features: Tensor, weight: Tensor) -> Tensor:
    """Angular visual confidence: (N, D), (K, D) -> (N, K), positive, each row sums to 1.

    The scores lie in a narrow band around 1/K. With 12 classes, a confident image reaches about 0.15. So a threshold
    for softmax never fits them. Raises ValueError if the shapes do not match.
    """

    def confidence(theta: Tensor) -> Tensor:
        opening = math.pi - theta
        return opening.div_(opening.sum(dim=1, keepdim=True))

    return _score_rows(confidence, features, weight)


def avh_logits(features: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Logits of the AVH loss, -scale * angle: (N, D), (K, D) -> (N, K). Their softmax is its probability.

    The paper writes scale * (pi - angle). The constant does not change the softmax. `scale` > 0 is the inverse
    temperature. With 7 classes it must be at least 4 to allow a probability of 0.99. Raises ValueError if the scale is
    not above 0 or the shapes do not match.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    return -scale * angles(features, weight)


def avh_loss(features: Tensor, weight: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Cross-entropy on the angles, mean over the batch: (N, D), (K, D), labels -> scalar.

    `labels` are class indices (N,) or distributions (N, K). The features and the class weights get gradients. Raises
    ValueError if the shapes do not match or the scale is not above 0.
    """
    logits = avh_logits(features, weight, scale)
    wanted = tuple(logits.shape) if labels.is_floating_point() else (len(logits),)
    if tuple(labels.shape) != wanted:
        raise ValueError(f"labels of {labels.dtype} must have shape {wanted}, got {tuple(labels.shape)}")
    return F.cross_entropy(logits, labels.to(logits.dtype) if labels.is_floating_point() else labels.long())


def to_double(values: Tensor) -> Tensor:
    """The values in double precision, on their own device. MPS has no double precision, so its values go to the CPU."""
    # First to the CPU, because MPS cannot hold double precision.
    return values.cpu().double() if values.device.type == "mps" else values.double()


def _check_shapes(features: Tensor, weight: Tensor) -> None:
    shapes = f"got features {tuple(features.shape)} and weight {tuple(weight.shape)}"
    if features.ndim != 2 or weight.ndim != 2:
        raise ValueError(f"features must be (N, D) and weight (K, D), {shapes}")
    if features.shape[1] != weight.shape[1] or 0 in weight.shape:
        raise ValueError(f"features (N, D) and weight (K, D) need the same D > 0 and K > 0, {shapes}")


def _score_rows(score: Callable[..., Tensor], features: Tensor, weight: Tensor, *per_row: Tensor) -> Tensor:
    """`score(angles, *per_row)` of all rows. It is computed in chunks if no gradient is needed."""
    _check_shapes(features, weight)
    dtype = torch.float64 if torch.float64 in (features.dtype, weight.dtype) else torch.float32
    if _is_exporting():  # a graph for any number of rows has no chunks
        directions, lengths = _rows_and_lengths(weight)
        return score(_angles_to(directions / lengths, features, None), *per_row).to(dtype)
    wants_gradient = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    # Long chunks, because each multi-threaded call may have to wait for other processes on the same cores.
    rows = len(features) if wants_gradient else _CHUNK_ENTRIES // max(weight.shape)
    rows = max(1, min(rows, len(features)))
    with torch.autocast(features.device.type, enabled=False):
        directions, lengths = _rows_and_lengths(weight)
        directions = directions / lengths
        # One buffer for all chunks: new memory pages for each chunk would cost more than the arithmetic.
        buffer = None if wants_gradient else directions.new_empty(rows, features.shape[1])
        scores = None
        for start in range(0, max(1, len(features)), rows):
            part = slice(start, start + rows)
            chunk = score(_angles_to(directions, features[part], buffer), *(values[part] for values in per_row))
            chunk = chunk.to(dtype).to(features.device)
            if len(chunk) == len(features):
                return chunk
            if scores is None:
                scores = chunk.new_empty(len(features), *chunk.shape[1:])
            scores[part] = chunk
    return scores


def _angles_to(directions: Tensor, features: Tensor, buffer: Tensor | None) -> Tensor:
    rows, lengths = _rows_and_lengths(features, buffer)
    cosines = rows @ directions.T
    if buffer is None:
        return (cosines / lengths).clamp(-LARGEST_COSINE, LARGEST_COSINE).arccos()
    return cosines.div_(lengths).clamp_(-LARGEST_COSINE, LARGEST_COSINE).arccos_()


def _rows_and_lengths(vectors: Tensor, buffer: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows in double precision, each up to a positive factor, and their lengths (N, 1). A zero row has length 1.

    If `buffer` (at least N rows) is given, it holds the rows, which then have no gradient.
    """
    rows = to_double(vectors) if buffer is None else buffer[: len(vectors)].copy_(vectors.detach().to(buffer.device))
    # Squares of float32 numbers fit into a double. Squares of doubles may not.
    if rows.requires_grad or vectors.dtype == torch.float64:
        largest = rows.detach().abs().amax(dim=1, keepdim=True)
        # The gradient is of the order of 1/length. For lengths below this floor it would overflow the input's dtype.
        floor = torch.finfo(vectors.dtype).max ** -0.5
        rows = torch.where(largest > floor, rows, rows.detach()) / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows, torch.where(lengths > 0, lengths, 1.0)
