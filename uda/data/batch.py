"""The batch of a training step: images, labels, domains, and which rows are of which kind."""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from uda.core.errors import UserError
from uda.data.label_coding import VOID


class Rows:
    """Some rows of a batch. The host knows them, so taking them does not wait for the device.

    Args:
        mask: which rows, bool (B,).
    """

    def __init__(self, mask: np.ndarray):
        edges = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)]
        self.mask = mask
        self.slices = tuple(slice(a, b) for a, b in itertools.pairwise(edges) if a < b and mask[a])
        """The rows as slices of neighbouring rows, in order."""

    def __len__(self) -> int:
        return sum(run.stop - run.start for run in self.slices)

    @cached_property
    def others(self) -> "Rows":
        """All other rows of the batch."""
        return Rows(~self.mask)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """These n rows of a tensor, (B, ...) -> (n, ...): a view if the rows are neighbours, else a copy."""
        if len(self.slices) > 1:
            return torch.cat([tensor[run] for run in self.slices])
        return tensor[self.slices[0] if self.slices else slice(0)]

    def joined(self, these: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """A tensor (B, ...). Its rows are `these` (n, ...) where the mask is true, else `others` (B - n, ...)."""
        runs = []
        for rows, tensor in ((self, these), (self.others, others)):
            pieces = tensor.split([run.stop - run.start for run in rows.slices])
            runs += [(run.start, piece) for run, piece in zip(rows.slices, pieces, strict=True)]
        return torch.cat([piece for _, piece in sorted(runs, key=lambda run: run[0])])


def _labelled(labels: torch.Tensor) -> torch.Tensor:
    """Which rows of labels have any label, bool (B,)."""
    return (labels != VOID).flatten(1).any(1) if labels.ndim == 3 else labels.sum(1) > 0


class _Kinds:
    """Which rows of a batch are of which kind. Computed from columns on the host at the first use, then kept."""

    def __init__(self, *columns: torch.Tensor):
        self.columns = columns
        self._labels, self._domain, self._is_target, self._view, self._annotated = columns
        self._domains: dict[int, Rows] = {}

    @cached_property
    def target(self) -> Rows:
        return Rows(self._is_target.cpu().numpy())

    @cached_property
    def annotated(self) -> Rows:
        return Rows(self._annotated.cpu().numpy())

    @cached_property
    def labelled(self) -> Rows:
        return Rows(_labelled(self._labels.cpu()).numpy())

    @cached_property
    def strong(self) -> Rows:
        return Rows(self._view.cpu().numpy() == 1)

    @cached_property
    def plain(self) -> Rows:
        return Rows(self.annotated.others.mask & self.strong.others.mask)

    def of_domain(self, domain: int) -> Rows:
        if domain not in self._domains:
            self._domains[domain] = Rows(self._domain.cpu().numpy() == domain)
        return self._domains[domain]


@dataclass
class Batch:
    """Images for one training step.

    - `images`: float32 (B, C, S, S).
    - `labels`: float32 (B, K). Each row is a distribution over the classes, or all zeros if the image has no label. In
      segmentation uint8 (B, h, w): the class of each pixel, or VOID.
    - `domain`: int64 (B,). The source domains are numbered first.
    - `is_target`: bool (B,). Whether the image is of a target domain.
    - `view`: int64 (B,). 1 for the strong view of an image whose plain view is in the batch too, else 0. Both views
      are in the same order.
    - `annotated`: bool (B,). Whether the label is a true label. Source images and the images of
      `data.target_labelled` have true labels. All other labels are pseudo-labels. A true label that is kept for
      measuring is never in a batch.

    The host knows the rows of each kind, as `source_rows` and the like. They are computed at the first use and stay
    with the batch on every device. Use them and not masks: with a mask, the host waits for the GPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    domain: torch.Tensor
    is_target: torch.Tensor
    view: torch.Tensor
    annotated: torch.Tensor | None = None
    """None: the source images have true labels, and no others."""
    weight: float = 1.0
    """Weight of this batch's mean if it is a part of a larger batch: its images / the mean number per part."""

    def __post_init__(self):
        if self.annotated is None:
            self.annotated = ~self.is_target

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> torch.Tensor:
        """Which rows have a true label or a pseudo-label, bool (B,)."""
        return _labelled(self.labels)

    @property
    def source_rows(self) -> Rows:
        """Images of the source."""
        return self.target_rows.others

    @property
    def target_rows(self) -> Rows:
        """Images of the target, with or without a label."""
        return self._kinds.target

    @property
    def annotated_rows(self) -> Rows:
        """Images with a true label."""
        return self._kinds.annotated

    @property
    def unannotated_rows(self) -> Rows:
        """Images without a true label. All of them are target images."""
        return self.annotated_rows.others

    @property
    def labelled_rows(self) -> Rows:
        """Images with a true label or a pseudo-label."""
        return self._kinds.labelled

    @property
    def unlabelled_rows(self) -> Rows:
        """Images without any label."""
        return self.labelled_rows.others

    @property
    def strong_rows(self) -> Rows:
        """Strong views of images whose plain view is in the batch too."""
        return self._kinds.strong

    @property
    def plain_rows(self) -> Rows:
        """Plain views of the images without a true label."""
        return self._kinds.plain

    def domain_rows(self, domain: int) -> Rows:
        """Images of a domain by its number."""
        return self._kinds.of_domain(domain)

    @cached_property
    def _kinds(self) -> _Kinds:
        return _Kinds(*self._rest)

    @property
    def _rest(self) -> tuple[torch.Tensor, ...]:
        return self.labels, self.domain, self.is_target, self.view, self.annotated

    def to(
        self, device: torch.device | str, memory_format: torch.memory_format | None = None, non_blocking: bool = False
    ) -> "Batch":
        """The batch on another device. `memory_format` is that of the images. If nothing changes, it is this batch."""
        images = self.images.to(device, non_blocking=non_blocking, memory_format=memory_format or torch.preserve_format)
        if images is self.images and all(tensor.device == images.device for tensor in self._rest):
            return self
        moved = Batch(images, *(tensor.to(device, non_blocking=non_blocking) for tensor in self._rest), self.weight)
        moved._kinds = self._kinds
        return moved

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, which copies to a GPU in the background."""
        return Batch(*(tensor.pin_memory() for tensor in (self.images, *self._rest)), self.weight)

    def dealt(self, parts: int) -> list["Batch"]:
        """The batch, divided image by image among `parts` parts, as among the processes of a job.

        Raises UserError if a part would have fewer than two images, because BatchNorm cannot take one image, or without
        any if they have label maps. Raises it too if the two views of an image would be in different parts.
        """
        if parts == 1:
            return [self]
        if len(self) < parts * (1 if self.labels.ndim == 3 else 2):
            least = "an image" if self.labels.ndim == 3 else "at least two images"
            raise UserError(f"a batch of {len(self)} images cannot be divided among {parts} parts: each needs {least}")
        if (strong := len(self.strong_rows)) % parts:
            raise UserError(f"{strong} images in two views cannot be divided evenly among {parts} parts")
        return [self._dealt(slice(part, None, parts), parts) for part in range(parts)]

    def _dealt(self, rows: slice, parts: int) -> "Batch":
        images, *rest = (tensor[rows].contiguous() for tensor in (self.images, *self._rest))
        part = Batch(images, *rest, self.weight * len(images) * parts / len(self))
        part._kinds = _Kinds(*(column[rows] for column in self._kinds.columns))
        return part
