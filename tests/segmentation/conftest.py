"""Tiny scenes: bright squares and dark stripes on a grey ground, in two domains of other colours."""

import numpy as np
import pytest
from PIL import Image

from uda.data.label_coding import VOID

CLASSES = ("ground", "square", "stripe")

TINY = """
data:
  source: {root}/drawn
  target: {root}/photos
  held_out: {root}/later
  classes: [ground, square, stripe]
transforms: {{crop: [24, 32], source: {{flip: true}}, target: {{flip: true}}}}
model: {{backbone: scenes_cnn, weights: none, decoder: joined, width: 8}}
source: {{steps: 4, batch_size: 2, optim: {{lr: 0.1}}}}
self_training:
  rounds: 2
  steps: 2
  portion: {{start: 0.5, step: 0.1, max: 0.8}}
  source_share: {{start: 1.0, max: 1.0, step: 0}}
  optim: {{lr: 0.05}}
runtime: {{device: cpu, workers: 0, predict_batch_size: 2}}
report: {{page: false, loggers: []}}
"""


def draw(folder, count, seed, colours, size=(24, 32)):
    """Write scenes: images, and label maps with a void border."""
    random = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        numbers = np.zeros(size, np.uint8)
        top, left = random.integers(2, 12, 2)
        numbers[top : top + 8, left : left + 8] = 1
        numbers[:, 24:28] = 2
        pixels = np.array(colours)[numbers] + random.normal(0, 12, (*size, 3))
        numbers[-1] = VOID
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"scene {number}.png")
        Image.fromarray(numbers).save(folder / "labels" / f"scene {number}.png")


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory):
    """Path of a config whose runs take seconds."""
    root = tmp_path_factory.mktemp("scenes")
    draw(root / "drawn", 6, 0, [(120, 120, 120), (220, 60, 60), (40, 40, 160)])
    draw(root / "photos", 5, 1, [(150, 140, 110), (200, 90, 90), (60, 70, 130)])
    draw(root / "later", 3, 2, [(150, 140, 110), (200, 90, 90), (60, 70, 130)])
    path = root / "tiny.yaml"
    path.write_text(TINY.format(root=root))
    return path
