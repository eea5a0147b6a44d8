"""The last changes of training images: by hand, and for a whole batch as image by image."""

from random import Random

import numpy as np
import pytest
import torch

from tests.data.trees import make_folders
from uda.data import last_changes
from uda.data.images import ImageFiles
from uda.data.loaders import Delivery, Part, training_batches
from uda.data.settings import AugmentSettings, TransformSettings
from uda.data.transforms import make_train

FLIP = AugmentSettings(flip=True)
JITTER = AugmentSettings(flip=True, jitter=0.4)


def test_by_hand():
    """Two pixels, (10, 20, 30) and (100, 100, 100); their greys are 18 (18.1) and 99 (99.99), 58.5 on average.

    Mirrored. Contrast at 0.5: half the way to 58.5. Then brightness doubled: 68.5 to 137, and 158.
    """
    image = torch.tensor([[10, 100], [20, 100], [30, 100]], dtype=torch.uint8).view(1, 3, 1, 2)
    changes = [1.0, 1, 0.5, 0, 2.0, 2, 1.0]
    expected = torch.tensor([[79, 34], [79, 39], [79, 44]]).view(1, 3, 1, 2) * 2
    assert torch.equal(last_changes.made(image, last_changes.table([changes])), expected.float())
    assert torch.equal(last_changes.made_on_one(image[0], changes), expected[0].to(torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_changed_as_image_by_image(channels):
    """Up to one grey level in these, where sums that are rounded down differ in their last bit."""
    random, images = Random(0), torch.randint(0, 256, (16, channels, 9, 7), dtype=torch.uint8)
    changes = [last_changes.draw(random, True, 0.4, channels) for _ in images]
    one_by_one = torch.stack([last_changes.made_on_one(*pair) for pair in zip(images, changes, strict=True)]).float()
    together = last_changes.made(images, last_changes.table(changes))
    assert (together - one_by_one).abs().max() <= 1 and (together != one_by_one).float().mean() < 1e-3
    assert (together != images).any() and {row[0] for row in changes} == {0, 1}
    assert len({tuple(row[1::2]) for row in changes}) == (6 if channels == 3 else 2), "orders"


def test_where_nothing_is_adjusted_the_mirror_alone_travels():
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    table = last_changes.table([[1.0, *last_changes.NONE[1:]], last_changes.NONE, last_changes.NONE])
    made = last_changes.made(images, table)
    assert table.tolist() == [[1], [0], [0]] and made.dtype == torch.uint8
    assert torch.equal(made[0], images[0].flip(-1)) and torch.equal(made[1:], images[1:])
    assert last_changes.table([]).shape == (0,)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_out_alike_whoever_makes_the_last_changes(tmp_path, monkeypatch, workers):
    """A loader process, or the device; with a part that has them all made where its images are read (RandAugment)."""
    make_folders(tmp_path, ["a", "b"], per_class=6)
    files = ImageFiles(tmp_path, [f"{c}/{c}_{i}.jpg" for c in "ab" for i in range(6)])
    settings = TransformSettings(size=8, resize=8)
    augments = (JITTER, FLIP, AugmentSettings(flip=True, rand_augment=9))
    parts = [Part(files, np.arange(12), None, make_train(settings, augment), 0, False) for augment in augments]
    batches = training_batches(parts, num_classes=2, batch_size=[4, 2, 2], steps=3, seed=(0,), workers=workers)
    early = [batch.images for batch in batches]
    monkeypatch.setattr(Delivery, "late", True)
    made = []
    monkeypatch.setattr(
        last_changes, "made", lambda *given, original=last_changes.made: made.append(1) or original(*given)
    )
    late = [batch.images for batch in batches]
    level = 1 / (255 * min(settings.std))
    assert len(made) == 3 and all(
        torch.allclose(*pair, rtol=0, atol=1.01 * level) for pair in zip(early, late, strict=True)
    )
    assert all(torch.equal(a[4:], b[4:]) for a, b in zip(early, late, strict=True))
