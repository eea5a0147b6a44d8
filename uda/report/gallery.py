"""The images of the galleries, and their thumbnails."""

import base64
import io
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from uda.data.images import Images
from uda.selection.thresholds import PseudoLabels

THUMBNAIL_SIDE = 128


def gallery_entries(
    pseudo: PseudoLabels, reference: PseudoLabels, ids: Sequence[str], limit: int
) -> dict[str, list[dict[str, Any]]]:
    """The images that only the selector or only softmax selected, up to `limit` each.

    The classes take turns with their surest images (largest ratio), so that no class fills a gallery. Target labels are
    not used.

    Returns:
        `only_selector` and `only_softmax`: lists of entries. `index`, `image` (id); `label`, `score` and `ratio` of the
        side that selected the image; `other_label` and `other_ratio` of the other side; `softmax` (its score).
    """
    sides = {"only_selector": (pseudo, reference), "only_softmax": (reference, pseudo)}
    return {
        name: [
            {
                "index": int(index),
                "image": ids[index],
                "label": int(chooser.labels[index]),
                "score": float(chooser.scores[index]),
                "ratio": float(chooser.ratios[index]),
                "other_label": int(other.labels[index]),
                "other_ratio": float(other.ratios[index]),
                "softmax": float(reference.scores[index]),
            }
            for index in surest_by_class(chooser, chooser.selected & ~other.selected, limit)
        ]
        for name, (chooser, other) in sides.items()
    }


def surest_by_class(pseudo: PseudoLabels, among: np.ndarray, limit: int) -> list[int]:
    """Up to `limit` indices with `among` (N,) true: first the surest of each class, then the second of each, etc."""
    indices = np.flatnonzero(among)
    indices = indices[np.argsort(-pseudo.ratios[indices], kind="stable")]
    by_class = [indices[pseudo.labels[indices] == label] for label in np.unique(pseudo.labels[indices])]
    in_turn = chain.from_iterable(zip_longest(*by_class))
    return [int(index) for index in in_turn if index is not None][:limit]


def thumbnail(images: Images, index: int, side: int = THUMBNAIL_SIDE) -> str:
    """Image `index` as the data URI of a JPEG whose longer side has at most `side` pixels."""
    from PIL import Image

    pixels = images.read(index).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
