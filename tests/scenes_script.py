"""What each of two processes does in tests/data/test_scenes.py: load scenes and read its share of some batches."""

import sys
from pathlib import Path

import torch

from uda.core.distributed import start
from uda.data.scene_batches import ScenePart, scene_batches
from uda.data.scene_settings import SceneAugmentSettings, SceneDataSettings, SceneTransformSettings
from uda.data.scene_transforms import SceneTrain
from uda.data.scenes import load_scenes


def read(folder, ranks):
    """Names of the source's images, their pixels of each class, and what the process reads."""
    settings = SceneDataSettings(
        source=str(folder / "drawn"), target=str(folder / "photo"), classes=["a", "b", "c"], max_unreadable=0.3
    )
    found = load_scenes(settings, 0, lambda line: None, ranks)
    transform = SceneTrain(SceneTransformSettings(crop=(16, 24)), SceneAugmentSettings(scale=(0.5, 1.5), flip=True))
    parts = [
        ScenePart(found.source.images, found.source.maps, transform, 0, False),
        ScenePart(found.target.images, None, transform, 1, True),
    ]
    options = {"rank": ranks.rank, "world": ranks.world} if ranks is not None else {}
    batches = list(scene_batches(parts, batch_size=[3, 3], steps=4, seed=[5], workers=0, **options))
    return {
        "pixels": torch.from_numpy(found.source.pixels),
        "images": torch.stack([batch.images for batch in batches]),
        "labels": torch.stack([batch.labels for batch in batches]),
        "checksum": torch.tensor(int(found.target_maps.checksum, 16)),
    }


if __name__ == "__main__":
    with start() as started:
        torch.save(read(Path(sys.argv[1]), started), Path(sys.argv[1]) / f"{started.rank}.pt")
