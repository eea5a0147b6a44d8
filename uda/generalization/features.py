"""Features of a frozen backbone. They are computed once for each image and stored on disk for all later runs."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from uda.core.distributed import Ranks
from uda.core.files import write_bytes
from uda.data.images import ImageFiles, Images
from uda.data.store import default_folder, take_inventory
from uda.data.transforms import Transform, make_predict
from uda.generalization.config import GeneralizationConfig
from uda.models.backbones import create_backbone
from uda.models.network import Network
from uda.training.engine import Engine


class FeatureArray(Images):
    """Feature vectors in place of images: (N, D) float32, read as (D, 1, 1)."""

    in_memory = True

    def __init__(self, features: np.ndarray, ids: Sequence[str]):
        self.ids = list(ids)
        self._features = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))

    def read(self, i: int) -> torch.Tensor:
        return self._features[i, :, None, None]

    def together(self, indices: np.ndarray) -> torch.Tensor:
        return self._features[torch.from_numpy(indices), :, None, None]

    def take(self, indices: np.ndarray) -> "FeatureArray":
        return FeatureArray(self._features.numpy()[indices], [self.ids[i] for i in indices])


class AsTheyAre(Transform):
    """A transform that does not change features."""

    def __init__(self, width: int):
        self.size, self.channels = 1, width
        self.normalisation = ((), ())

    def pixels(
        self, images: Iterable[torch.Tensor], seeds: Sequence[int], memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        return images if isinstance(images, torch.Tensor) else torch.stack(list(images))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


def extract(
    config: GeneralizationConfig, domains: Sequence[Images], log: Callable[[str], None] | None, ranks: Ranks
) -> tuple[list[Images], int]:
    """The backbone's features of all images of the domains, and their width D.

    The features of each domain are stored in one file in the folder of the decoded stores (`data.store`). If the file
    exists, it is read. Its name has a digest of the backbone's weights, the transform and the images. The digest covers
    the modification times of image files, and the pixels of generated images. Raises UserError, as `create_backbone`
    does.
    """
    backbone, width = create_backbone(config.model.backbone, config.model.weights, len(config.transforms.mean))
    extractor = Engine(Network(backbone, width, 1), config.runtime, log, ranks)
    weights = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    found: list[Images] = []
    for images in domains:
        path = _file_of(config, weights.hexdigest(), images)
        content = ranks.broadcast(path.read_bytes() if ranks.is_main and path.is_file() else None)
        if content is None:
            features = _computed(extractor, make_predict(config.transforms), images, ranks)
            if ranks.is_main:
                write_bytes(path, features.tobytes())
        else:
            features = np.frombuffer(content, np.float32).reshape(len(images), width).copy()
        found.append(FeatureArray(features, images.ids))
    return found, width


def _file_of(config: GeneralizationConfig, weights: str, images: Images) -> Path:
    transform = config.transforms.model_dump(mode="json", include={"kind", "size", "resize", "squash", "mean", "std"})
    if isinstance(images, ImageFiles):
        content = take_inventory(images.root, images.ids, images.reading).fingerprint
    else:  # generated images: another seed or version can give other pixels under the same names
        content = hashlib.sha256(images.together(np.arange(len(images))).numpy().tobytes()).hexdigest()
    key = json.dumps([transform, config.runtime.predict_precision, weights, content, list(images.ids)])
    folder = Path(config.data.store) if config.data.store else default_folder()
    return folder / f"features-{config.model.backbone}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.f32"


def _computed(extractor: Engine, transform: Transform, images: Images, ranks: Ranks) -> np.ndarray:
    rows = ranks.rows(len(images))
    mine = extractor.predict_images(images, transform, rows=rows, label="features")
    return ranks.gather_rows(mine.features, len(images))
