"""Scenes: how images and label maps find each other, which classes count, and what is refused."""

import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.data.scene_trees import make_cityscapes, make_scenes, scene, write_scene
from tests.data.test_cards import write_scenes_card
from tests.forked import forked_job
from tests.scenes_script import read as read_scenes
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.data import checked, generated_scenes
from uda.data.images import ImageArray
from uda.data.label_coding import VOID
from uda.data.label_maps import MapArray, read_label_map
from uda.data.scene_settings import SceneAugmentSettings, SceneDataSettings, SceneTransformSettings
from uda.data.scenes import Scenes, TargetMaps, load_scenes

CLASSES = ["road", "sidewalk", "building"]


def load(log=None, **settings):
    return load_scenes(SceneDataSettings(**settings), 0, (log if log is not None else []).append)


@pytest.fixture
def pair(tmp_path):
    """Two folders of the user's own: `drawn` and `photo`, with four scenes each."""
    make_scenes(tmp_path / "drawn")
    make_scenes(tmp_path / "photo", first=50)
    return tmp_path


def own(pair, **changes):
    return {"source": str(pair / "drawn"), "target": str(pair / "photo"), "classes": CLASSES} | changes


def test_two_folders_of_ones_own(pair):
    found = load(**own(pair))
    assert found.classes == tuple(CLASSES) and found.colors.shape == (3, 3)
    assert found.source.images.ids == found.target.images.ids[:0] + [f"{i:03d}.png" for i in range(4)]
    for i in range(4):
        image, numbers = scene(i)
        assert (found.source.images.read(i).permute(1, 2, 0).numpy() == image).all()
        assert (found.source.maps.read(i).numpy() == numbers).all()
        assert found.source.pixels[i].tolist() == [(numbers == k).sum() for k in range(3)]
        assert (found.target_maps.reveal().read(i).numpy() == scene(50 + i)[1]).all()
    assert found.held_out is None and found.held_out_maps is None
    assert (found.source.domain, found.target.domain) == (0, 1)


def test_the_target_holds_no_label(pair):
    """Nothing but `reveal` leads to a label map, and no text shows one."""
    found = load(**own(pair))
    assert set(vars(found.target)) == {"images", "domain"}
    hidden = found.target_maps
    assert repr(hidden) == "TargetMaps(4 hidden)" and len(hidden) == 4
    assert not hasattr(hidden, "__dict__")
    assert [name for name in dir(hidden) if not name.startswith("_")] == ["checksum", "reveal"]
    assert hidden.checksum == load(**own(pair)).target_maps.checksum
    write_scene(pair / "photo" / "images" / "050.png", pair / "photo" / "labels" / "050.png", 99)
    assert hidden.checksum != load(**own(pair)).target_maps.checksum


def test_a_target_without_maps(pair, tmp_path):
    make_scenes(tmp_path / "bare", first=60, maps=False)
    for target in ("bare", "bare/images"):
        found = load(**own(pair, target=str(tmp_path / target)))
        assert found.target_maps is None and len(found.target.images) == 4
    (pair / "photo" / "labels" / "051.png").write_bytes(b"unreadable, but not looked at")
    assert load(**own(pair, target_labels="none")).target_maps is None


def test_cards_match_classes_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("UDA_DATA", str(tmp_path))
    make_cityscapes(tmp_path)
    log = []
    write_scene(
        tmp_path / "Toys" / "photo" / "1.png", tmp_path / "Toys" / "photo_maps" / "1.png", 5, {0: 9, 1: 0, 2: 8}
    )
    card = write_scenes_card(tmp_path)  # 7 and 9 are road, 8 is car, 0 is ignored
    found = load(log, source=str(card), target="cityscapes/train", held_out="cityscapes/val")
    assert found.classes == ("road", "car")
    numbers = scene(5)[1]
    assert (found.source.maps.read(0).numpy() == np.choose(numbers, [0, VOID, 1])).all()
    assert found.target.images.ids == [
        f"{town}/{town}_{i:06d}_leftImg8bit.png" for town, i in (("aachen", 0), ("aachen", 2), ("bonn", 1), ("bonn", 3))
    ]
    for place, seed in enumerate((0, 2, 1, 3)):
        wanted = np.where(scene(seed)[1] == 0, 0, VOID)  # sidewalk and building are not classes of the run
        assert (found.target_maps.reveal().read(place).numpy() == wanted).all()
        assert (found.held_out_maps.reveal().read(place).numpy() == np.where(scene(100 + seed)[1] == 0, 0, VOID)).all()
    assert len(found.held_out.images) == 4
    assert found.colors[0].tolist() == [128, 64, 128], "the colours of a class may come from any card"


def test_names_of_domains(tmp_path, monkeypatch, in_folder):
    monkeypatch.setenv("UDA_DATA", str(tmp_path))
    make_cityscapes(tmp_path)
    some = ["road", "building"]
    for names in (
        {"source": "cityscapes/train", "target": "cityscapes/val"},
        {"dataset": "cityscapes", "source": "train", "target": "val"},
        {"dataset": "cityscapes", "source": "train", "target": "val", "root": str(tmp_path)},
        {"dataset": "cityscapes", "source": "train", "target": "cityscapes/val", "root": str(tmp_path / "cityscapes")},
    ):
        found = load(**names, classes=some)
        assert found.classes == ("road", "building") and len(found.source) == 4
    make_scenes(in_folder / "cityscapes")
    found = load(source="./cityscapes", target="cityscapes/val", classes=CLASSES)
    assert found.source.images.root.parts[-2:] == ("cityscapes", "images")
    with pytest.raises(UserError, match="name one of them: cityscapes/train, cityscapes/val"):
        load(source="cityscapes", target="cityscapes/val")
    with pytest.raises(UserError, match="unknown domain 'trian', did you mean 'train'"):
        load(source="cityscapes/trian", target="cityscapes/val")
    with pytest.raises(UserError, match=r"data\.target: 'pacs' has a class for each image.*or write \./pacs/photo"):
        load(source="cityscapes/train", target="pacs/photo", classes=some)
    with pytest.raises(UserError, match=r"data\.classes: 'raod' is not a class of 'cityscapes', did you mean 'road'"):
        load(source="cityscapes/train", target="cityscapes/val", classes=["raod", "building"])
    with pytest.raises(UserError, match=r"GTA5 is not at .*gta5.*: download it from"):
        load(source="gta5", target="cityscapes/val")


def test_a_list_names_scenes_by_path_or_by_stem(pair):
    root = pair / "photo"
    (root / "part.txt").write_text("052\n050\n")
    (root / "pairs.txt").write_text("images/053.png labels/050.png\nimages/051.png\tlabels/051.png\n")
    (root / "bare.txt").write_text("images/053.png\n052.png\n")
    by_stem, by_pair, bare = (load(**own(pair, target=str(root / f"{name}.txt"))) for name in ("part", "pairs", "bare"))
    assert by_stem.target.images.ids == ["052.png", "050.png"]
    assert (by_stem.target_maps.reveal().read(0).numpy() == scene(52)[1]).all()
    assert by_pair.target.images.ids == ["053.png", "051.png"]
    assert (by_pair.target_maps.reveal().read(0).numpy() == scene(50)[1]).all()
    assert bare.target.images.ids == ["053.png", "052.png"]
    assert (bare.target_maps.reveal().read(1).numpy() == scene(52)[1]).all()
    (pair / "all.txt").write_text(
        "drawn/images/000.png photo/labels/052.png\ndrawn/images/001.png photo/labels/051.png\n"
    )
    anywhere = load(**own(pair, source=str(pair / "all.txt"), target=str(root / "bare.txt"), target_labels="none"))
    assert anywhere.source.images.ids == ["drawn/images/000.png", "drawn/images/001.png"]
    assert (anywhere.source.maps.read(1).numpy() == scene(51)[1]).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("050\n059\n", "line 2: no such image: 059; a line is `image map`"),
        ("images/050.png labels/059.png\n", "line 1: no such label map: labels/059.png"),
        ("050\n051\nimages/050.png\n", "line 3: 050.png is already in line 1"),
        ("\n", "the list has no images"),
    ],
)
def test_wrong_lists(pair, lines, message):
    (pair / "photo" / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=f"list.txt: {re.escape(message)}"):
        load(**own(pair, target=str(pair / "photo" / "list.txt")))


def test_a_list_of_a_card_chooses_among_its_images(tmp_path, monkeypatch):
    monkeypatch.setenv("UDA_DATA", str(tmp_path))
    toys, values = tmp_path / "Toys", {0: 7, 1: 8, 2: 0}
    for number in range(4):
        write_scene(toys / "photo" / f"{number}_i.png", toys / "m" / f"{number}_m.png", number, values)
    domain = {"path": "photo", "maps": "m", "image_ending": "_i.png", "map_ending": "_m.png"}
    domains = {"day": domain | {"list": "day.txt"}, "night": domain | {"list": "night.txt"}}
    card = write_scenes_card(tmp_path, domains=domains)
    (toys / "day.txt").write_text("3\n0\n")
    with pytest.raises(UserError, match=r"night\.txt: no such list"):
        load(source=f"{card}/day", target=f"{card}/night")
    (toys / "night.txt").write_text("photo/1_i.png m/1_m.png\n/photo/2_i.png /m/2_m.png\n")
    found = load(source=f"{card}/day", target=f"{card}/night")
    assert found.source.images.ids == ["3_i.png", "0_i.png"] and found.target.images.ids == ["1_i.png", "2_i.png"]
    assert (found.source.maps.read(0).numpy() == np.choose(scene(3)[1], [0, 1, VOID])).all()
    assert (found.target_maps.reveal().read(1).numpy() == np.choose(scene(2)[1], [0, 1, VOID])).all()


def remove(path):
    path.unlink()


def save(values):
    return lambda path: Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"1 of its 4 images lack a label map: 051\.png \(no .*photo/labels/051\.png\); add the maps"),
        (save(np.full((24, 32), 7, np.uint8)), r"in 1 label maps: .*051\.png: .* 7 \(768 pixels\); known are 0-2, 255"),
        (save(np.zeros((12, 32), np.uint8)), r"051\.png: the label map has 32 x 12 pixels, but its image 051\.png"),
        (save(np.zeros((24, 32, 3), np.uint8)), r"051\.png: cannot be read as a label map: it has 3 channels; set"),
        (lambda path: path.write_bytes(b"sky"), r"051\.png: cannot be read as a label map: no known image format"),
    ],
)  # fmt: skip
def test_faults_of_a_targets_maps_stop_the_run_or_are_not_looked_at(pair, damage, message):
    """No image of the target is left out for its label's sake."""
    damage(pair / "photo" / "labels" / "051.png")
    with pytest.raises(UserError, match=message) as error:
        load(**own(pair))
    assert str(error.value).startswith("data.target: ")
    assert "set data.target_labels=none" in str(error.value) and "\n" not in str(error.value)
    assert len(load(**own(pair, target_labels="none")).target.images) == 4


def test_faults_of_source_maps_are_left_out_up_to_a_share(pair):
    save(np.zeros((12, 32), np.uint8))(pair / "drawn" / "labels" / "002.png")
    with pytest.raises(UserError, match=r"1 of 4 label maps cannot be used, more than data\.max_unreadable=0\.01"):
        load(**own(pair))
    log = []
    found = load(log, **own(pair, max_unreadable=0.3))
    assert found.source.images.ids == ["000.png", "001.png", "003.png"] and len(found.source.pixels) == 3
    assert (found.source.maps.read(2).numpy() == scene(3)[1]).all()
    assert any(line.startswith("left out scene: ") and "002.png: the label map has 32 x 12" in line for line in log)


def test_an_unreadable_image_goes_with_its_map(pair):
    (pair / "drawn" / "images" / "001.png").write_bytes(b"nothing")
    found = load(**own(pair, max_unreadable=0.3))
    assert found.source.images.ids == ["000.png", "002.png", "003.png"]
    assert (found.source.maps.read(1).numpy() == scene(2)[1]).all()


def test_void_scenes_are_told_and_a_class_without_pixels_is_refused(pair):
    save(np.full((24, 32), 255, np.uint8))(pair / "drawn" / "labels" / "000.png")
    save(np.full((24, 32), 255, np.uint8))(pair / "photo" / "labels" / "050.png")
    log = []
    found = load(log, **own(pair))
    assert found.source.images.ids == ["001.png", "002.png", "003.png"] and len(found.target.images) == 4
    assert "data.source: 1 scenes are void throughout and are left out: 000.png" in log
    assert "data.target: 1 label maps are void throughout, so these images are not measured" in log
    with pytest.raises(UserError, match=r"no pixel is of class tram; .*data\.classes=\[road,sidewalk,building\]"):
        load(**own(pair, classes=[*CLASSES, "tram"]))
    for number in range(4):
        save(np.full((24, 32), 255, np.uint8))(pair / "drawn" / "labels" / f"00{number}.png")
    with pytest.raises(UserError, match=r"data\.source: .*drawn: no pixel of its label maps has a class"):
        load(**own(pair))


def test_missing_pieces_are_named(pair, tmp_path):
    with pytest.raises(UserError, match=r"data\.classes: .*drawn has no card, so name the classes"):
        load(**own(pair, classes=None))
    with pytest.raises(UserError, match=r"data\.source: no such folder: nowhere; give a folder with images/"):
        load(**own(pair, source="nowhere"))
    make_scenes(tmp_path / "bare", first=60, maps=False)
    with pytest.raises(UserError, match="bare has no folder labels/; a source needs"):
        load(**own(pair, source=str(tmp_path / "bare")))
    for number in range(4):
        (pair / "drawn" / "labels" / f"00{number}.png").rename(pair / "drawn" / "labels" / f"00{number}_label.png")
    with pytest.raises(UserError, match=r"none of its 4 images has .*there is 000_label\.png, which has another name"):
        load(**own(pair))
    Image.fromarray(scene(9)[0]).save(pair / "photo" / "images" / "051.jpg")
    with pytest.raises(UserError, match=r"051\.jpg, 051\.png have the same name without the ending"):
        load(**own(pair))
    with pytest.raises(ValueError, match="a feature bank holds no pixels"):
        SceneDataSettings(**own(pair, features="bank"))


def test_domains_must_not_share_images(pair):
    with pytest.raises(UserError, match=r"share 4 images.*the target's labels would be trained on"):
        load(**own(pair, target=str(pair / "drawn")))
    (pair / "photo" / "few.txt").write_text("050\n")
    with pytest.raises(UserError, match=r"share 1 images.*held-out images would be adapted to"):
        load(**own(pair, held_out=str(pair / "photo" / "few.txt")))


def test_a_second_look_reads_no_map(pair, monkeypatch):
    monkeypatch.setattr(checked, "LEAST", 3)
    monkeypatch.setenv("UDA_STORE", str(pair / "cache"))
    read = []
    monkeypatch.setattr(
        "uda.data.label_maps.read_label_map", lambda *given: read.append(given[0]) or read_label_map(*given)
    )
    first = load(**own(pair))
    assert len(read) == 8
    again = load(**own(pair))
    assert len(read) == 8 and (again.source.pixels == first.source.pixels).all()
    assert again.target_maps.checksum == first.target_maps.checksum
    write_scene(pair / "drawn" / "images" / "001.png", pair / "drawn" / "labels" / "001.png", 77)
    changed = load(**own(pair))
    assert len(read) == 9 and changed.source.pixels[1].tolist() == np.bincount(scene(77)[1].ravel()).tolist()
    load(**own(pair, classes=[*reversed(CLASSES)], cache="memory"))
    assert len(read) == 17, "maps that are kept in memory are read at the start"


def test_generated_scenes(monkeypatch, tmp_path):
    card = write_scenes_card(tmp_path, layout="generated", domains={"drawn": {"path": "."}, "photo": {"path": "."}})

    def make(domain, seed):
        made = [scene(seed + i + 10 * (domain == "photo"), classes=(0, 1)) for i in range(3)]
        array = np.stack([image.transpose(2, 0, 1) for image, _ in made])
        return ImageArray(array, [f"{domain}/{i}" for i in range(3)]), MapArray(
            np.stack([numbers for _, numbers in made])
        )

    monkeypatch.setitem(generated_scenes.MAKERS, "scenes", make)
    found = load(source=f"{card}/drawn", target=f"{card}/photo")
    assert found.classes == ("road", "car") and found.target.images.ids[0] == "photo/0"
    assert (found.target_maps.reveal().read(1).numpy() == scene(11, classes=(0, 1))[1]).all()
    turned = load(source=f"{card}/drawn", target=f"{card}/photo", classes=["car", "road"])
    assert (turned.source.maps.read(1).numpy() == 1 - scene(1, classes=(0, 1))[1]).all()
    assert (turned.source.pixels == found.source.pixels[:, ::-1]).all()
    with pytest.raises(UserError, match=r"data\.source and data\.target are both 'scenes/drawn'"):
        load(source=f"{card}/drawn", target=f"{card}/drawn")
    monkeypatch.delitem(generated_scenes.MAKERS, "scenes")
    with pytest.raises(UserError, match="nothing makes its scenes"):
        load(source=f"{card}/drawn", target=f"{card}/photo")


def test_two_processes_load_the_same_scenes_and_share_the_batches_of_one(pair):
    """One map has a fault. Only rank 0 looks at the maps; both leave the scene out."""
    save(np.zeros((12, 32), np.uint8))(pair / "drawn" / "labels" / "002.png")
    codes, output = forked_job(2, CHECKOUT / "tests" / "scenes_script.py", pair)
    assert codes == [0, 0], output
    whole, *shares = read_scenes(pair, None), *(torch.load(pair / f"{rank}.pt") for rank in (0, 1))
    assert len(whole["pixels"]) == 3
    for rank, share in enumerate(shares):
        assert torch.equal(share["pixels"], whole["pixels"]) and share["checksum"] == whole["checksum"]
        for column in ("images", "labels"):
            assert torch.equal(share[column], whole[column][:, rank::2])


def test_images_and_maps_must_be_as_many():
    images = ImageArray(np.zeros((2, 3, 8, 8), np.uint8), ["a", "b"])
    with pytest.raises(ValueError, match="2 images, but 1 label maps"):
        Scenes(images, MapArray(np.zeros((1, 8, 8), np.uint8)))
    assert len(TargetMaps(MapArray(np.zeros((1, 8, 8), np.uint8)))) == 1


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (SceneAugmentSettings, {"scale": (1.5, 0.5)}, "in rising order"),
        (SceneTransformSettings, {"crop": (4, 100)}, "at least 8 pixels"),
        (SceneTransformSettings, {"std": (1.0,)}, "1 values, but mean has 3"),
    ],
)
def test_wrong_settings(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


def test_two_folders_in_five_lines_of_yaml(pair, monkeypatch):
    monkeypatch.chdir(pair)
    text = "data:\n  source: drawn\n  target: photo\n  classes: [road, sidewalk, building]\n"
    found = load(**yaml.safe_load(text)["data"])
    assert len(found.source) == len(found.target_maps) == 4
