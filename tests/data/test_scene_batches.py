"""Batches of scenes are the same for any number of workers, and the shares of processes make up the whole."""

from random import Random

import numpy as np
import pytest
import torch

from tests.data.scene_trees import RED, make_scenes, scene
from uda.core.errors import UserError
from uda.data.images import ImageArray, ImageFiles
from uda.data.label_coding import VOID, LabelCoding
from uda.data.label_maps import MapArray, MapFiles
from uda.data.scene_batches import (
    RareClassCentre,
    ScenePart,
    rare_class_weights,
    scene_batches,
    scene_predict_batches,
)
from uda.data.scene_settings import SceneAugmentSettings, SceneTransformSettings
from uda.data.scene_transforms import ScenePredict, SceneTrain

SETTINGS = SceneTransformSettings(crop=(16, 24), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
AUGMENT = SceneAugmentSettings(scale=(0.5, 1.5), flip=True, jitter=0.3, blur=0.3)


def files(tmp_path, count=6, first=0, **options):
    root = make_scenes(tmp_path / f"from{first}", count, first, **options)
    names = [f"{i:03d}.png" for i in range(first, first + count)]
    maps = MapFiles([root / "labels" / name for name in names], LabelCoding.plain(5))
    return ImageFiles(root / "images", names), maps


@pytest.fixture
def parts(tmp_path):
    """A source with labels, and a target without."""
    source, maps = files(tmp_path)
    target, _ = files(tmp_path, 5, first=50)
    transform = SceneTrain(SETTINGS, AUGMENT)
    return [ScenePart(source, maps, transform, 0, False), ScenePart(target, None, transform, 1, True)]


def batches(parts, batch_size=(3, 2), steps=5, workers=0, **options):
    return scene_batches(parts, batch_size=batch_size, steps=steps, seed=[1, 2], workers=workers, **options)


COLUMNS = ("images", "labels", "domain", "is_target", "view", "annotated")


def assert_same(one, other):
    for column in COLUMNS:
        assert torch.equal(getattr(one, column), getattr(other, column)), column
    assert one.weight == other.weight


def test_a_batch_of_scenes(parts):
    found = list(batches(parts))
    assert len(found) == len(batches(parts)) == 5
    for batch in found:
        assert batch.images.shape == (5, 3, 16, 24) and batch.images.dtype == torch.float32
        assert batch.labels.shape == (5, 16, 24) and batch.labels.dtype == torch.uint8
        assert batch.domain.tolist() == [0, 0, 0, 1, 1] and batch.is_target.tolist() == [False] * 3 + [True] * 2
        assert batch.labelled.tolist() == batch.annotated.tolist() == [True] * 3 + [False] * 2
        assert (batch.labels[3:] == VOID).all()
        assert len(batch.labelled_rows) == 3 and len(batch.unlabelled_rows) == 2 and len(batch.source_rows) == 3


@pytest.mark.parametrize(("batch_size", "ring"), [((3, 2), True), (4, True), ((3, 2), False)])
def test_any_number_of_workers_gives_the_same_batches(parts, batch_size, ring, monkeypatch):
    """Labels of an earlier batch stay as they are while later ones come through the same memory."""
    if not ring:  # as where loader processes share no memory
        monkeypatch.setattr("uda.data.loaders.Ring.possible", lambda: False)
    plain, loaded = list(batches(parts, batch_size, 9)), list(batches(parts, batch_size, 9, workers=2))
    assert len(plain) == len(loaded) == 9
    for one, other in zip(plain, loaded, strict=True):
        assert_same(one, other)


def test_two_processes_get_the_batch_of_one(parts):
    whole = list(batches(parts))
    shares = [list(batches(parts, rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert (len(first), len(second)) == (3, 2) and first.weight + second.weight == 2
        for rank, share in enumerate((first, second)):
            for column in COLUMNS:
                assert torch.equal(getattr(share, column), getattr(batch, column)[rank::2])


def test_later_steps_do_not_depend_on_earlier_ones(parts):
    whole = list(batches(parts))
    for one, other in zip(whole[3:], batches(parts).starting_at(3), strict=True):
        assert_same(one, other)
    assert batches(parts).ids(2)[3:] == batches(parts).window(2, 1).ids(0)[3:]
    assert all(name.startswith("05") for name in batches(parts).ids(2)[3:])


def test_a_process_needs_a_scene_and_no_more(parts):
    one_each = [list(batches(parts, (1, 1), rank=rank, world=2)) for rank in (0, 1)]
    assert [batch.is_target.tolist() for batch in (one_each[0][0], one_each[1][0])] == [[False], [True]]
    with pytest.raises(UserError, match="a batch of 2 images cannot be divided among 3 processes: each needs an image"):
        list(batches(parts, (1, 1), world=3))
    with pytest.raises(UserError, match="each needs at least 3 images"):
        list(batches(parts, (2, 2), world=2, accumulate=3))
    (batch,) = batches(parts, (1, 1), steps=1)
    halves = batch.dealt(2)
    assert [len(half) for half in halves] == [1, 1] and torch.equal(halves[1].labels, batch.labels[1:])
    with pytest.raises(UserError, match="among 3 parts: each needs an image"):
        batch.dealt(3)


def test_weights_decide_how_often_a_scene_is_drawn(parts):
    source, target = parts
    weights = np.array([0, 3, 0, 1, 0, 0], dtype=np.float64)
    weighted = [ScenePart(source.images, source.maps, source.transform, 0, False, weights), target]
    drawn = batches(weighted, (10, 1), steps=60)
    names = [name for step in range(60) for name in drawn.ids(step)[:10]]
    assert set(names) == {"001.png", "003.png"} and 0.68 < names.count("001.png") / 600 < 0.82
    assert batches(weighted, (10, 1), 60).ids(7) == drawn.ids(7)
    plain = batches(parts, (3, 1), steps=2)
    assert sorted(plain.ids(0)[:3] + plain.ids(1)[:3]) == source.images.ids, "without weights, each once in a pass"
    for wrong, message in ((weights[:3], "shape"), (0 * weights, "must be positive"), (-weights, "not negative")):
        with pytest.raises(ValueError, match=message):
            ScenePart(source.images, source.maps, source.transform, 0, False, wrong)
    with pytest.raises(ValueError, match="one batch size for each part"):
        batches(weighted, 4)


def test_rare_classes_are_looked_for():
    """One pixel of class 4 in the corner of each map. A crop of a sixteenth of the scene seldom holds it by chance."""
    images = ImageArray(np.zeros((8, 3, 64, 64), np.uint8), [str(i) for i in range(8)])
    array = np.zeros((8, 64, 64), np.uint8)
    array[:, 62, 3] = 4
    settings = SceneTransformSettings(crop=(16, 16))
    transform = SceneTrain(settings, SceneAugmentSettings())

    def share(centre):
        part = ScenePart(images, MapArray(array), transform, 1, True, centre=centre)
        found = torch.cat([batch.labels for batch in batches([part], (8,), steps=20)])
        return (found == 4).flatten(1).any(1).float().mean().item()

    assert share(None) < 0.05
    assert share(RareClassCentre((3, 4), chance=1.0)) == 1
    assert 0.35 < share(RareClassCentre((4,), chance=0.5)) < 0.65
    assert share(RareClassCentre((3,), chance=1.0)) < 0.05, "a class that no map has changes nothing"
    assert RareClassCentre((4,), 1.0)(torch.from_numpy(array[0]), Random(0)) == (62, 3)


def test_rare_class_weights_by_hand():
    """Shares .6, .4 and 0 of 100 pixels. At temperature .1, the odds of the classes are exp(-6) : exp(-4).

    Only scene 0 has more than 40 pixels of class 0. No scene has so many of class 1, so each that has any may be drawn.
    """
    pixels = np.array([[50, 10, 0], [10, 0, 0], [0, 30, 0]])
    chances = np.exp([-6.0, -4.0]) / np.exp([-6.0, -4.0]).sum()
    few = rare_class_weights(pixels, 0.1, least=40)
    assert np.allclose(few, [chances[0] + chances[1] / 2, 0, chances[1] / 2]) and np.isclose(few.sum(), 1)
    assert np.allclose(rare_class_weights(pixels, 0.1, least=20), [chances[0], 0, chances[1]])
    assert np.allclose(rare_class_weights(pixels, 1e-4, least=20), [0, 0, 1]), "no overflow at a small temperature"


def test_pseudo_labels_on_a_coarser_grid(parts):
    target = parts[1]
    grid = np.stack([scene(50 + i)[1][2::4, 2::4] for i in range(5)])
    plain = SceneTrain(SETTINGS, SceneAugmentSettings(flip=True))
    part = ScenePart(target.images, MapArray(grid), plain, 1, True)
    for batch in batches([part], (3,)):
        assert batch.labelled.all() and not batch.annotated.any()
        red = ((batch.images[:, 0] + 1) * 127.5).round()
        assert (red == torch.from_numpy(RED)[batch.labels.long()]).all()


def test_an_unreadable_scene_ends_the_batches(parts, tmp_path):
    (tmp_path / "from0" / "labels" / "003.png").write_bytes(b"nothing")
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"labels/003\.png: cannot be read as a label map"):
            list(batches(parts, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_predicting_gives_each_image_once_in_order(tmp_path, workers):
    """Images of one size share a batch: sizes a a a b a, batches of at most two."""
    root = make_scenes(tmp_path / "own", 5)
    make_scenes(root, 1, first=3, size=(20, 40))
    images = ImageFiles(root / "images", [f"{i:03d}.png" for i in range(5)])
    predict = ScenePredict(SETTINGS)
    found = list(scene_predict_batches(images, predict, batch_size=2, workers=workers))
    assert [tuple(batch.shape) for batch in found] == [
        (2, 3, 24, 32), (1, 3, 24, 32), (1, 3, 20, 40), (1, 3, 24, 32),
    ]  # fmt: skip
    flat = [image for batch in found for image in batch]
    for i, image in enumerate(flat):
        assert torch.allclose((image + 1) * 127.5, images.read(i).float(), atol=1e-3)
    some = list(scene_predict_batches(images, predict, batch_size=2, workers=workers, rows=np.array([4, 0, 3])))
    assert torch.equal(torch.cat(some[:1]), torch.stack([flat[4], flat[0]])) and torch.equal(some[1][0], flat[3])
    even = scene_predict_batches(images, ScenePredict(SETTINGS, (12, 16)), batch_size=4, workers=workers)
    assert len(even) == 2 and [tuple(batch.shape) for batch in even] == [(4, 3, 12, 16), (1, 3, 12, 16)]


def test_sizes_of_images(tmp_path):
    images, _ = files(tmp_path, 2, size=(48, 64))
    assert images.size(1) == (48, 64)
    from uda.data.settings import ReadingSettings

    smaller = ImageFiles(images.root, images.ids, reading=ReadingSettings(load_size=24))
    assert smaller.size(0) == tuple(smaller.read(0).shape[1:]) == (24, 32)
    (images.root / "000.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"000\.png: cannot be read as an image"):
        images.size(0)


def test_parts_that_do_not_fit():
    images = ImageArray(np.zeros((2, 3, 8, 8), np.uint8), ["a", "b"])
    transform = SceneTrain(SETTINGS, AUGMENT)
    with pytest.raises(ValueError, match="1 label maps for 2 images"):
        ScenePart(images, MapArray(np.zeros((1, 8, 8), np.uint8)), transform, 0, False)
    other = SceneTrain(SETTINGS.model_copy(update={"crop": (8, 8)}), AUGMENT)
    with pytest.raises(ValueError, match="the same crop"):
        batches([ScenePart(images, None, transform, 0, False), ScenePart(images, None, other, 1, True)], (1, 1))
    with pytest.raises(UserError, match="a batch should hold 2 target images"):
        batches([ScenePart(images.take(np.array([], int)), None, transform, 1, True)], (2,))
