"""`uda check-data` for cards of label maps: what is missing, what does not fit, and what is there."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.data.files import deep_png
from tests.data.scene_trees import make_cityscapes, make_scenes, scene, write_scene
from tests.data.test_cards import write_scenes_card
from uda.cli.main import main
from uda.data import generated_scenes
from uda.data.cards import CARDS
from uda.data.images import ImageArray
from uda.data.label_maps import MapArray
from uda.data.scene_inventory import take_stock_of_scenes

VALUES = {0: 7, 1: 8, 2: 0}


@pytest.fixture
def toys(tmp_path):
    """Five scenes of the card `scenes`, and the card's path."""
    images, maps = tmp_path / "Toys" / "photo", tmp_path / "Toys" / "photo_maps"
    for number in range(5):
        write_scene(images / f"{number}.png", maps / f"{number}.png", number, VALUES)
    return tmp_path / "Toys", str(write_scenes_card(tmp_path))


def check(capsys, *words):
    code = main(["check-data", *words])
    return code, capsys.readouterr()


def test_a_sound_data_set(toys, capsys):
    code, told = check(capsys, toys[1])
    assert code == 0
    lines = [line.split() for line in told.out.splitlines()]
    assert ["photo", "-", "5", "ok"] in lines and ["label", "maps", "5", "5", "ok"] in lines
    assert "photo: width x height 32 x 24 (5)\n" in told.out
    numbers = np.concatenate([scene(i)[1] for i in range(5)])
    road, car = (numbers == 0).sum(), (numbers == 1).sum()
    assert f"photo: pixels road {100 * road / (road + car):.3g} %, car {100 * car / (road + car):.3g} %\n" in told.out


def test_everything_that_is_wrong_is_said_at_once(toys, capsys):
    root, card = toys
    (root / "photo_maps" / "0.png").rename(root / "photo_maps" / "9.png")
    Image.fromarray(np.full((24, 32), 26, np.uint8)).save(root / "photo_maps" / "1.png")
    Image.fromarray(np.full((12, 32), 7, np.uint8)).save(root / "photo_maps" / "2.png")
    Image.fromarray(np.full((24, 32), 0, np.uint8)).save(root / "photo_maps" / "3.png")
    code, told = check(capsys, card)
    assert code == 1
    for part in (
        r"label maps +5 +4  no .*photo_maps/0\.png",
        r"maps of unknown values +0 +1  .*1\.png: .*26 \(768 pixels\); known are 0, 7-9: add them",
        r"maps that do not fit +0 +1  .*2\.png: the label map has 32 x 12 pixels, but its image 2\.png has 32 x 24",
        r"photo: width x height 32 x 24 \(2\); 1 label maps are void throughout",
        r"photo: 1 label maps belong to no image, such as 9\.png",
        r"3 of 4 counts differ from the card; get what is missing from nowhere",
    ):
        assert re.search(part, told.out), part


def test_missing_folders_and_lists(toys, tmp_path, capsys):
    domains = {
        "photo": {"path": "photo"},
        "drawn": {"path": "drawn", "maps": "drawn_maps"},
        "day": {"path": "photo", "maps": "photo_maps", "list": "day.txt"},
        "night": {"path": "photo", "maps": "night_maps"},
    }
    code, told = check(capsys, str(write_scenes_card(tmp_path, domains=domains)))
    assert code == 1
    for part in (
        r"drawn +- +0  .*drawn: no such folder",
        r"day +- +0  .*day\.txt: no such list",
        r"night +- +0  .*night_maps: no such folder; it should hold the label maps",
        r"photo: no label maps",
    ):
        assert re.search(part, told.out), part


def test_our_cards_fit_their_layouts(tmp_path, monkeypatch):
    """A small copy of each layout has every pair, and no value that the card does not know."""
    monkeypatch.setenv("UDA_DATA", str(tmp_path))
    make_cityscapes(tmp_path, 2)
    camvid = tmp_path / "CamVid"
    for part in ("train", "val", "test"):
        write_scene(camvid / part / "a_1.png", camvid / f"{part}annot" / "a_1.png", 0, {0: 0, 1: 10, 2: 11})
    for part in ("train", "val"):
        place = tmp_path / "idd20k_lite"
        write_scene(
            place / "leftImg8bit" / part / "119" / "903127_image.jpg",
            place / "gtFine" / part / "119" / "903127_label.png",
            0,
            {0: 0, 1: 6, 2: 255},
        )
        (place / "gtFine" / part / "119" / "903127_inst_label.png").write_bytes(b"not looked at")
    gta5, synthia = tmp_path / "gta5", tmp_path / "RAND_CITYSCAPES"
    image, numbers = scene(0)
    for folder in (gta5 / "images", gta5 / "labels", synthia / "RGB", synthia / "GT" / "LABELS"):
        folder.mkdir(parents=True)
    Image.fromarray(image).save(gta5 / "images" / "00001.png")
    indices = Image.fromarray(np.choose(numbers, [7, 33, 34]).astype(np.uint8))
    indices.putpalette(list(range(256)) * 3)
    indices.save(gta5 / "labels" / "00001.png")
    Image.fromarray(image).save(synthia / "RGB" / "0000000.png")
    deep = np.stack([np.choose(numbers, [3, 21, 22]), 700 + numbers.astype(int), 0 * numbers], 2).astype(np.uint16)
    (synthia / "GT" / "LABELS" / "0000000.png").write_bytes(deep_png(deep))
    wanted = {"gta5": "road.*bicycle", "synthia": "road.*wall", "camvid": "sky.*bicyclist", "idd_lite": "drivable.*sky"}
    for name in ("cityscapes", "camvid", "idd_lite", "gta5", "synthia"):
        stock = take_stock_of_scenes(CARDS[name], None, lambda line: None)
        assert [count.note for count in stock.counts if count.note] == []
        assert all(count.found > 0 for count in stock.counts)
        assert all(count.right for count in stock.counts if count.label is not None)
        assert all(re.search(wanted.get(name, "road.*building"), line) for line in stock.notes if " pixels " in line)


def test_a_folder_of_ones_own(tmp_path, capsys):
    root = make_scenes(tmp_path / "own", 3)
    code, told = check(capsys, str(root))
    numbers = np.concatenate([scene(i)[1] for i in range(3)])
    shares = ", ".join(f"{value} {100 * (numbers == value).mean():.3g} %" for value in range(3))
    assert code == 0 and f"values in the label maps: pixels {shares}\n" in told.out
    assert "images: width x height 32 x 24 (3)" in told.out
    (root / "labels" / "001.png").unlink()
    code, told = check(capsys, str(root))
    assert code == 1 and re.search(r"label maps +3 +2  no .*labels/001\.png", told.out)
    assert "1 of 2 counts differ from what is expected; repair or remove these scenes" in told.out
    bare = make_scenes(tmp_path / "bare", 2, maps=False)
    code, told = check(capsys, str(bare))
    assert code == 0 and "images: no label maps" in told.out


def test_generated_scenes_are_counted(tmp_path, monkeypatch, capsys):
    card = write_scenes_card(tmp_path, layout="generated", domains={"drawn": {"path": ".", "images": 2}})
    image, numbers = scene(0, classes=(1,))
    array = np.stack([image.transpose(2, 0, 1)] * 2)
    made = ImageArray(array, ["a", "b"]), MapArray(np.stack([numbers] * 2))
    monkeypatch.setitem(generated_scenes.MAKERS, "scenes", lambda domain, seed: made)
    code, told = check(capsys, str(card))
    assert code == 0 and "drawn: pixels car 100 %; no pixel of road" in told.out
