import hashlib

import numpy as np
import pytest

from uda.core.errors import UserError
from uda.data import streets
from uda.data.cards import load_card
from uda.data.streets import BICYCLIST, CAR, CLASSES, COLORS, HEIGHT, SKY, WIDTH, street_scene, street_scenes

#: What the first version of the renderer drew: SHA-256 of the label map, and the image's means over 3 x 4 blocks of
#: 64 x 64 pixels, in grey levels. Releases of Pillow and NumPy may differ in single pixels of an image.
FIRST_VERSION = {
    (0, 0): (
        "c13de82a497cea34a1b232d28fbdbaabe702e7fafb59e387b1a0c11ff4063c93",
        [
            [158.9, 175.1, 182.7, 173.0, 122.2, 117.4, 134.2, 87.9, 99.3, 102.2, 100.9, 87.4],
            [167.7, 186.8, 194.7, 183.2, 129.2, 123.4, 140.6, 87.4, 102.6, 105.6, 104.3, 90.2],
            [176.7, 198.7, 207.2, 194.8, 131.6, 128.5, 147.2, 90.2, 108.0, 111.0, 109.6, 95.0],
        ],
    ),
    (0, 1): (
        "0b37ed605f4c7665b9838dbdb355eb87a81574d9b196611c152b192507b8068e",
        [
            [161.4, 187.4, 185.9, 96.6, 142.6, 140.0, 152.1, 127.5, 127.8, 116.1, 122.9, 143.4],
            [109.6, 172.6, 176.5, 93.5, 101.5, 132.3, 143.5, 119.1, 114.3, 106.1, 111.9, 128.1],
            [84.7, 153.2, 164.3, 78.0, 79.4, 105.9, 124.4, 94.6, 101.4, 96.8, 101.7, 112.1],
        ],
    ),
    (5, 2): (
        "e84709b8a8f7e5a39faf3c36f27326b9c109de49ebab0f2afd4ca68c99be53d2",
        [
            [142.0, 143.7, 147.7, 137.1, 84.4, 86.7, 111.9, 98.9, 104.8, 93.4, 98.4, 98.5],
            [153.1, 156.3, 161.0, 148.3, 100.4, 93.9, 121.2, 103.5, 109.2, 98.0, 103.5, 103.6],
            [142.1, 147.3, 152.5, 138.8, 71.6, 84.3, 112.5, 89.5, 98.3, 91.1, 96.4, 96.3],
        ],
    ),
}


@pytest.mark.parametrize("seed", FIRST_VERSION)
def test_a_seed_gives_the_scene_that_it_always_gave(seed):
    digest, blocks = FIRST_VERSION[seed]
    image, label_map = street_scene(seed)
    assert image.shape == (3, HEIGHT, WIDTH) and label_map.shape == (HEIGHT, WIDTH)
    assert image.dtype == label_map.dtype == np.uint8
    assert hashlib.sha256(label_map.tobytes()).hexdigest() == digest
    means = image.reshape(3, 3, HEIGHT // 3, 4, WIDTH // 4).mean((2, 4)).reshape(3, 12)
    np.testing.assert_allclose(means, blocks, atol=0.15)


def test_scenes_do_not_depend_on_how_many_are_drawn():
    images, maps = street_scenes(2, seed=5)
    assert images.shape == (2, 3, HEIGHT, WIDTH) and maps.shape == (2, HEIGHT, WIDTH)
    more_images, more_maps = street_scenes(3, seed=5)
    np.testing.assert_array_equal(more_images[:2], images)
    np.testing.assert_array_equal(more_maps[:2], maps)
    image, label_map = street_scene((5, 1))
    np.testing.assert_array_equal(images[1], image)
    np.testing.assert_array_equal(maps[1], label_map)
    assert (images[0] != images[1]).any() and (street_scenes(1, seed=6)[0] != images[:1]).any()


def test_every_class_is_drawn_and_has_its_colour():
    _, maps = street_scenes(12, seed=0)
    pixels = np.bincount(maps.ravel(), minlength=len(CLASSES))
    assert len(pixels) == len(CLASSES) and (pixels > 0).all()
    assert len(set(COLORS)) == len(CLASSES) == BICYCLIST + 1 and CLASSES[CAR] == "car"


def test_the_sky_is_above_the_road():
    """Rows of a scene count from the top. The road's pixels are below the sky's in every scene."""
    _, maps = street_scenes(6, seed=1)
    for label_map in maps:
        rows = [np.flatnonzero((label_map == label).any(1)) for label in (SKY, CLASSES.index("road"))]
        assert rows[0].mean() < rows[1].mean()
        assert label_map[0].tolist().count(CLASSES.index("road")) == 0


def test_the_domain_and_its_card(monkeypatch):
    card = load_card("streets")
    assert card.classes == CLASSES and tuple(card.colors[name] for name in CLASSES) == COLORS
    assert list(card.domains) == ["rendered"] and card.domains["rendered"].images == streets.COUNT
    assert load_card("camvid").classes == CLASSES and load_card("camvid").colors == card.colors
    monkeypatch.setattr(streets, "COUNT", 2)
    images, maps = streets.domain("rendered", seed=5)
    image, label_map = street_scene((5, 1))
    assert list(images.ids) == ["rendered/00000", "rendered/00001"] and len(maps) == 2
    np.testing.assert_array_equal(images.read(1).numpy(), image)
    np.testing.assert_array_equal(maps.read(1).numpy(), label_map)
    with pytest.raises(UserError, match=r"'photos' .*known: rendered"):
        streets.domain("photos", seed=5)
