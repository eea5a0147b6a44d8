"""Features in place of images: a network that begins after its backbone is trained on them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from uda.data.images import Images, JoinedImages
from uda.data.settings import ReadingSettings
from uda.data.transforms import Transform

#: Settings that a run on features does not read: they change images, or say how image files are kept.
UNREAD = (
    *("transforms.source", "transforms.target", "adaptation.strong"),
    *("data.cache", "data.store", "data.store_gb", "data.max_unreadable", "data.rendered_per_class"),
)
#: Settings that tell how images became features. A run on a user's own arrays does not read them either. Other banks
#: compare the network and the transform, and `uda predict` reads images by them.
OF_MAKING = (
    "model.backbone",
    "model.weights",
    "transforms",
    *(f"data.{name}" for name in ReadingSettings.model_fields),
)


class FeatureArray(Images):
    """Feature vectors in place of images.

    `together` gives features (B, 1 + V, D): first the one of the plain image, then those of its V augmented views.

    Args:
        features: (N, D) float32. It may be memory-mapped: only the rows that are asked for are read.
        ids: N names.
        views: (N, V, D) float32, features of augmented views of each image. None: there are none.
        made_by: the network and the transform that made the features, as the bank says. Empty: unknown.
        checksum: digest of the features.
        rows: (n,) numbers of the images to take, in order. None: all.
    """

    in_memory = True
    visible = False

    def __init__(
        self,
        features: torch.Tensor,
        ids: Sequence[str],
        views: torch.Tensor | None = None,
        made_by: Mapping[str, Any] | None = None,
        checksum: str = "",
        rows: np.ndarray | None = None,
    ):
        self.ids = ids
        self.made_by = made_by or {}
        self.checksum = checksum
        self._features, self._views = features, views
        self._rows = rows

    @property
    def width(self) -> int:
        """D."""
        return self._features.shape[1]

    @property
    def num_views(self) -> int:
        """V, the number of augmented views of each image."""
        return 0 if self._views is None else self._views.shape[1]

    @property
    def without_views(self) -> "FeatureArray":
        """The same features without the augmented views, which are then not read."""
        return FeatureArray(self._features, self.ids, None, self.made_by, self.checksum, self._rows)

    def read(self, i: int) -> torch.Tensor:
        return self.together(np.array([i]))[0]

    def together(self, indices: np.ndarray) -> torch.Tensor:
        plain = self.plain(indices).unsqueeze(1)
        return plain if self._views is None else torch.cat([plain, self._views[self._numbers(indices)]], 1)

    def plain(self, indices: np.ndarray, memory: torch.Tensor | None = None) -> torch.Tensor:
        """Features of the plain images, (b, D). `memory`, float32 (b, D), is used for them if it is given."""
        return torch.index_select(self._features, 0, self._numbers(indices), out=memory)

    def of_view(self, indices: np.ndarray, seeds: Sequence[int], memory: torch.Tensor | None = None) -> torch.Tensor:
        """Features of one augmented view of each image, drawn by the image's seed, (b, D). `memory`: as in `plain`."""
        every = self._views.flatten(0, 1)
        views = torch.tensor([seed % self.num_views for seed in seeds])
        return torch.index_select(every, 0, self._numbers(indices) * self.num_views + views, out=memory)

    def _numbers(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices if self._rows is None else self._rows[indices])

    def take(self, indices: np.ndarray) -> "FeatureArray":
        rows = indices if self._rows is None else self._rows[indices]
        ids = [self.ids[i] for i in indices.tolist()]
        return FeatureArray(self._features, ids, self._views, self.made_by, self.checksum, rows)


def features_of(images: Images) -> list[FeatureArray]:
    """The features that stand in place of images, one array per domain. Empty: they are images."""
    if isinstance(images, JoinedImages):
        return [features for part in images.parts for features in features_of(part)]
    return [images] if isinstance(images, FeatureArray) else []


def without_views(images: Images) -> Images:
    """The same images, without the features of augmented views, which are then not read."""
    if isinstance(images, JoinedImages):
        return images.of_parts([without_views(part) for part in images.parts])
    return images.without_views if isinstance(images, FeatureArray) else images


class PlainFeatures(Transform):
    """The features of the plain images, as a batch (B, D, 1, 1).

    Args:
        width: D.
    """

    draws, in_place = False, True

    def __init__(self, width: int):
        self.size, self.channels = 1, width
        self.normalisation = ((), ())

    def read(
        self,
        images: Images,
        indices: np.ndarray,
        seeds: Sequence[int],
        memory: torch.Tensor | None = None,
        changes: list | None = None,
    ) -> torch.Tensor:
        """Rows of one array are written to their place in the batch, because another copy of them costs as much."""
        if not isinstance(images, FeatureArray) or memory is None or memory.dtype != torch.float32:
            return super().read(images, indices, seeds, memory, changes)
        self._write(images, indices, seeds, memory.flatten(1))
        return memory

    def memory(self, count: int) -> torch.Tensor:
        return torch.empty(count, self.channels, 1, 1)

    def pixels(
        self,
        images: Iterable[torch.Tensor],
        seeds: Sequence[int],
        memory: torch.Tensor | None = None,
        changes: list | None = None,
    ) -> torch.Tensor:
        features = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
        return self._chosen(features, seeds)[..., None, None]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def _write(self, images: FeatureArray, indices: np.ndarray, seeds: Sequence[int], memory: torch.Tensor) -> None:
        images.plain(indices, memory)

    def _chosen(self, features: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 1 + V, D) -> (B, D)."""
        return features[:, 0]


class AugmentedFeatures(PlainFeatures):
    """The features of one augmented view of each image, drawn by the image's seed, as a batch (B, D, 1, 1)."""

    draws = True

    def _write(self, images: FeatureArray, indices: np.ndarray, seeds: Sequence[int], memory: torch.Tensor) -> None:
        images.of_view(indices, seeds, memory)

    def _chosen(self, features: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        views = torch.tensor([1 + seed % (features.shape[1] - 1) for seed in seeds])
        return features[torch.arange(len(views)), views]
