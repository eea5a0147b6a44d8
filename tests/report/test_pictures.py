"""Which images a page shows, by hand, and their thumbnails."""

import io

import numpy as np
import pytest
from PIL import Image

from uda.core.errors import UserError
from uda.data.images import ImageArray
from uda.report import pictures
from uda.report.image_table import ImageTable
from uda.report.pictures import Pictures, in_turns, notable_rows, read_pictures, write_pictures


def table(**columns):
    """Images of the classes a and b."""
    arrays = {name: np.array(values) for name, values in columns.items()}
    count = len(arrays["prediction"])
    return ImageTable(("a", "b"), [f"{row}.png" for row in range(count)], np.zeros(count, int), ("photos",), arrays)


def test_groups_take_turns_and_each_begins_with_its_lowest_row():
    """Group 0 has the rows 3, 0, 5 by their order, group 1 the row 1, group 2 the rows 6, 2; row 4 has no group."""
    order = np.array([2.0, 9.0, 8.0, 1.0, 0.0, 3.0, 7.0])
    groups = np.array([0, 1, 2, 0, -1, 0, 2])
    assert in_turns(order, groups) == [3, 1, 6, 0, 2, 5]


def test_equal_orders_keep_the_order_of_the_rows():
    assert in_turns(np.zeros(5), np.array([1, 0, 1, 0, 1])) == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("groups", [[], [-1, -1]])
def test_without_groups_nobody_has_a_turn(groups):
    assert in_turns(np.zeros(len(groups)), np.array(groups, int)) == []


def test_a_model_that_chooses_nothing_shows_mistakes_the_surest_the_hardest_and_the_most_doubtful():
    """The kinds take turns, and in each kind the classes a (rows 0, 1, 4) and b (rows 2, 3, 5).

    By hand: mistakes are row 3 in the cell (a, b) and row 1 in the cell (b, a); the surest are 0, 2, 1, 3, 4, 5; the
    hardest 1, 3, 0, 2, 4, 5; the most doubtful 4, 5, 1, 3, 0, 2. A random sample is the last kind.
    """
    last = table(
        label=[0, 1, 1, 0, 0, 1],
        prediction=[0, 0, 1, 1, 0, 1],
        probability=[0.99, 0.8, 0.9, 0.7, 0.6, 0.55],
        avh=[0.2, 0.3, 0.2, 0.3, 0.1, 0.1],
    )
    random = np.random.default_rng(0).permutation(6).tolist()
    kinds = [[3, 1], [0, 2, 1, 3, 4, 5], [1, 3, 0, 2, 4, 5], [4, 5, 1, 3, 0, 2], random]
    turns = [kind[place] for place in range(6) for kind in kinds if place < len(kind)]
    assert notable_rows([last], 100) == list(dict.fromkeys(turns))
    assert notable_rows([last], 4) == [3, 0, 1, 4]


def test_images_that_one_selector_alone_chose_come_first_without_labels():
    """Row 2 is the selector's alone, row 0 softmax's alone, row 3 of both."""
    chosen = table(
        prediction=[0, 1, 1, 1],
        probability=[0.9, 0.8, 0.7, 0.6],
        avh=[0.1, 0.2, 0.3, 0.4],
        selected=[False, False, True, True],
        softmax_selected=[True, False, False, True],
        pseudo_label=[0, 0, 1, 1],
        softmax_label=[0, 0, 1, 1],
        ratio=[0.9, 0.5, 1.1, 1.2],
    )
    assert notable_rows([chosen], 3) == [2, 0, 3]


def test_images_whose_class_changed_are_a_kind_of_their_own():
    """Row 0 is the surest of 50 images, row 49 the hardest and the most doubtful. Row 20 had another class before."""
    rising = np.linspace(0.1, 0.9, 50)
    after = table(prediction=np.ones(50, int), probability=1 - rising, avh=rising)
    before = table(prediction=np.arange(50) != 20, probability=1 - rising, avh=rising)
    random = np.random.default_rng(0).permutation(50).tolist()
    assert notable_rows([before, after], 4) == [0, 49, 20, random[0]]
    assert notable_rows([after, after], 3) == [0, 49, random[0]]


def test_every_class_is_shown_before_one_is_shown_twice():
    """Of 90 images of a and 10 of b, the first ones by class are as many of b."""
    rng = np.random.default_rng(1)
    prediction = np.r_[np.zeros(90, int), np.ones(10, int)]
    one = table(prediction=prediction, probability=rng.random(100), avh=rng.random(100))
    rows = in_turns(-one.get("probability"), one.get("prediction"))[:20]
    assert prediction[rows].tolist() == [0, 1] * 10
    assert (prediction[notable_rows([one], 20)] == 1).sum() >= 6


def test_nothing_is_shown_of_no_states_and_none_is_none():
    assert notable_rows([], 10) == [] == notable_rows([table(prediction=[0], probability=[1.0], avh=[0.1])], 0)


# Thumbnails


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 40, 200), np.uint8)
    return ImageArray(pixels, [f"{row}.png" for row in range(5)])


def test_thumbnails_are_small_jpegs_of_the_same_shape(images):
    found = Pictures(images).of([4, 1])
    assert list(found) == [4, 1]
    with Image.open(io.BytesIO(found[4])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (96, 19))


def test_an_image_is_read_once(images, monkeypatch):
    read = []
    reader = pictures.Pictures(images)
    monkeypatch.setattr(pictures, "thumbnail", lambda _, row: read.append(row) or b"jpeg")
    for _ in range(2):
        reader.of([2, 0])
    assert read == [2, 0]


def test_thumbnails_end_where_the_page_would_become_large(images, monkeypatch):
    monkeypatch.setattr(pictures, "thumbnail", lambda _, row: b"x" * 100)
    monkeypatch.setattr(pictures, "MOST_BYTES", 250)
    assert list(Pictures(images).of([3, 1, 2, 0])) == [3, 1]


def test_without_images_the_kept_thumbnails_are_all():
    assert Pictures(None, {3: b"x"}).of([1, 3]) == {3: b"x"}


def test_thumbnails_go_through_a_file(images, tmp_path):
    found = Pictures(images).of([4, 1])
    write_pictures(tmp_path / "pictures.parquet", found, images.ids)
    assert read_pictures(tmp_path / "pictures.parquet") == found


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 300 + b"PAR1"])
def test_a_broken_file_of_thumbnails_is_refused(tmp_path, content):
    (tmp_path / "pictures.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"pictures\.parquet is broken"):
        read_pictures(tmp_path / "pictures.parquet")
