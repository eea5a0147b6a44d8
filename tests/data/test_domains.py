import dataclasses
import os
import re

import numpy as np
import pytest
import yaml

from tests.data.trees import make_folders, make_visda
from uda.core.errors import UserError
from uda.data.cards import CARDS
from uda.data.domains import Source, Target, TargetLabels, load_domains
from uda.data.folders import look_below
from uda.data.settings import DataSettings

CLASSES = ["bus", "car", "dog"]


def load(source, target, **settings):
    return load_domains(DataSettings(source=str(source), target=str(target), **settings), seed=0, log=lambda line: None)


def class_of(path):
    return path.split("/")[-2]


@pytest.mark.parametrize("lists", [True, False])
def test_visda_in_its_real_layout(tmp_path, monkeypatch, lists):
    make_visda(tmp_path, per_class=2, lists=lists)
    monkeypatch.setenv("UDA_DATA", str(tmp_path))
    domains = load("train", "validation", dataset="visda2017")
    card = CARDS["visda2017"]
    assert domains.classes == card.classes
    assert (
        domains.source.labels.tolist()
        == np.repeat(np.arange(12), 2).tolist()
        == domains.target_labels.reveal().tolist()
    )
    assert domains.source.images.ids[:2] == ["train/aeroplane/src_1_00000.png", "train/aeroplane/src_1_00001.png"]
    assert [class_of(path) for path in domains.target.images.ids] == [
        card.classes[k] for k in domains.target_labels.reveal()
    ]
    assert domains.source.images.read(0).shape == (3, 32, 40)


def test_visda_follows_its_list(tmp_path):
    folder = make_visda(tmp_path, per_class=2)
    lines = (folder / "train" / "image_list.txt").read_text().splitlines()
    (folder / "train" / "image_list.txt").write_text("\n".join(lines[::-2]))
    domains = load("train", "validation", dataset="visda2017", root=str(folder))
    assert domains.source.labels.tolist() == list(range(12))[::-1]


@pytest.mark.parametrize(
    ("name", "source", "target", "folders"),
    [
        ("pacs", "photo", "sketch", ("photo", "sketch")),
        ("office31", "amazon", "dslr", ("amazon/images", "dslr/images")),
        ("office31", "amazon", "webcam", ("amazon", "webcam")),
        ("office_home", "art", "real_world", ("Art", "Real World")),
        ("office_home", "real_world", "clipart", ("Real_World", "Clipart")),
        ("vlcs", "caltech101", "voc2007", ("Caltech101", "PASCAL")),
        ("terra_incognita", "location_38", "location_100", ("location_38", "location_100")),
    ],
)
def test_folder_cards(tmp_path, name, source, target, folders):
    card = CARDS[name]
    for folder in folders:
        make_folders(tmp_path / folder, card.classes, per_class=1)
    domains = load(source, target, dataset=name, root=str(tmp_path))
    assert domains.classes == card.classes and len(domains.source.images) == card.num_classes
    assert [class_of(path) for path in domains.source.images.ids] == list(card.classes)
    assert all(path.startswith(folders[1] + "/") for path in domains.target.images.ids)
    domains.target.images.read(0)


def test_domainnet_takes_its_lists_and_names_classes_by_folder(tmp_path):
    lines = {"real_train": [], "sketch_train": [], "sketch_test": []}
    names = ["aircraft_carrier", "airplane", "zebra"]
    for domain in ("real", "sketch"):
        make_folders(tmp_path / domain, names, per_class=2)
        for label, name in enumerate(names):
            lines[f"{domain}_train"].append(f"{domain}/{name}/{name}_0.jpg {label}\n")
            lines.setdefault(f"{domain}_test", []).append(f"{domain}/{name}/{name}_1.jpg {label}\n")
    for name, text in lines.items():
        (tmp_path / f"{name}.txt").write_text("".join(text))
    told = []
    settings = DataSettings(dataset="domainnet", root=str(tmp_path), source="real", target="sketch_test")
    domains = load_domains(settings, 0, told.append)
    assert domains.classes == tuple(names) and domains.target_labels.reveal().tolist() == [0, 1, 2]
    assert domains.target.images.ids[2] == "sketch/zebra/zebra_1.jpg"
    assert told == ["DomainNet (cleaned): found 3 classes, but its card says 345"]
    (tmp_path / "sketch_test.txt").unlink()
    with pytest.raises(UserError, match=r"sketch_test\.txt: no such list: DomainNet"):
        load("real", "sketch_test", dataset="domainnet", root=str(tmp_path))


def test_a_card_by_path_finds_its_data_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("UDA_DATA", raising=False)
    for domain in ("photo", "drawn"):
        make_folders(tmp_path / "Toys" / domain, CLASSES)
    card = {
        "name": "toys", "title": "Toys", "paper": "-", "url": "-", "licence": "-", "folder": "Toys", "num_classes": 3,
        "domains": {"photo": {"path": "photo"}, "drawn": {"path": "drawn"}},
    }  # fmt: skip
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(card))
    domains = load("photo", "drawn", dataset=str(tmp_path / "toys.yaml"))
    assert domains.classes == tuple(CLASSES) and len(domains.target.images) == 6


def test_two_class_folders_of_the_users_own(tmp_path):
    make_folders(tmp_path / "a", CLASSES, suffix=".PNG")
    make_folders(tmp_path / "b", CLASSES)
    (tmp_path / "a" / "car" / "Thumbs.db").touch()
    (tmp_path / "a" / "car" / "._car_0.PNG").touch()
    (tmp_path / "a" / ".hidden").mkdir()
    domains = load(tmp_path / "a", "b", root=str(tmp_path))
    assert domains.classes == tuple(CLASSES)
    assert domains.source.images.ids == [f"{c}/{c}_{i}.PNG" for c in CLASSES for i in range(2)]
    assert domains.target_labels.reveal().tolist() == [0, 0, 1, 1, 2, 2]


def test_a_flat_target_has_no_labels(tmp_path):
    make_folders(tmp_path / "a", CLASSES)
    make_folders(tmp_path / "b", ["bus"], per_class=3)
    domains = load(tmp_path / "a", tmp_path / "b" / "bus")
    assert domains.target_labels is None and domains.target.images.ids == ["bus_0.jpg", "bus_1.jpg", "bus_2.jpg"]


def test_a_target_of_images_beside_folders_is_refused(tmp_path):
    make_folders(tmp_path / "a", CLASSES)
    make_folders(tmp_path / "b", CLASSES)
    (tmp_path / "b" / "bus" / "bus_0.jpg").rename(tmp_path / "b" / "loose.jpg")
    with pytest.raises(UserError, match=r"b holds images \(loose\.jpg\.\.\.\) beside class folders"):
        load(tmp_path / "a", tmp_path / "b")


def write_list(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_lists_with_names_numbers_spaces_and_bare_paths(tmp_path):
    names = ["alarm clock", "bus"]
    make_folders(tmp_path / "a", names)
    make_folders(tmp_path / "my photos", names)
    source = write_list(
        tmp_path / "source.txt",
        ["a/bus/bus_0.jpg bus", "a/alarm clock/alarm clock_0.jpg alarm clock", "", f"{tmp_path}/a/bus/bus_1.jpg bus"],
    )
    named = load(source, write_list(tmp_path / "t.txt", ["my photos/bus/bus_0.jpg"]))
    assert named.classes == ("alarm clock", "bus") and named.source.labels.tolist() == [1, 0, 1]
    assert named.source.images.ids == ["a/bus/bus_0.jpg", "a/alarm clock/alarm clock_0.jpg", "a/bus/bus_1.jpg"]
    assert named.target.images.ids == ["my photos/bus/bus_0.jpg"] and named.target_labels is None
    numbers = write_list(
        tmp_path / "lists.txt", ["bus/bus_0.jpg 1", "alarm clock/alarm clock_1.jpg 0", "bus/bus_1.jpg -1"]
    )
    partly = load(source.parent / "a", numbers, root=str(tmp_path / "my photos"))
    assert partly.target_labels.reveal().tolist() == [1, 0, -1]


def test_numbered_lists_take_the_folders_names_only_where_they_tell_the_classes_apart(tmp_path):
    make_folders(tmp_path / "a", ["x", "y"])
    target = write_list(tmp_path / "t.txt", ["b/x/x_0.jpg", "b/y/y_0.jpg"])
    make_folders(tmp_path / "b", ["x", "y"])
    apart = write_list(tmp_path / "s.txt", ["a/x/x_0.jpg 1", "a/y/y_0.jpg 0", "a/y/y_1.jpg 0"])
    assert load(apart, target).classes == ("y", "x")
    mixed = write_list(tmp_path / "m.txt", ["a/x/x_0.jpg 1", "a/x/x_1.jpg 0"])
    assert load(mixed, target).classes == ("0", "1")


@pytest.fixture
def pair(tmp_path):
    make_folders(tmp_path / "a", CLASSES)
    make_folders(tmp_path / "b", CLASSES)
    write_list(tmp_path / "good.txt", [f"a/{c}/{c}_0.jpg {c}" for c in CLASSES])
    return tmp_path


def test_class_in_one_domain_only_is_named(pair):
    (pair / "b" / "dog").rename(pair / "b" / "dogs")
    with pytest.raises(
        UserError, match=r"classes of the source domain that are not in .*b: dog; .*dogs, did you mean 'dog'"
    ):
        load(pair / "a", pair / "b")
    targets = write_list(pair / "t.txt", ["b/bus/bus_0.jpg bus", "b/dogs/dog_0.jpg dog"])
    with pytest.raises(UserError, match=r"not in .*t\.txt: car"):
        load(pair / "good.txt", targets)
    make_folders(pair / "photo", CARDS["pacs"].classes[1:])
    with pytest.raises(UserError, match="classes of the card 'pacs' that are not in"):
        load("photo", "sketch", dataset="pacs", root=str(pair))


def test_empty_class_folder_is_named(pair):
    (pair / "b" / "car" / "car_0.jpg").unlink()
    (pair / "b" / "car" / "car_1.jpg").unlink()
    with pytest.raises(UserError, match="b: class folders without images: car;"):
        load(pair / "a", pair / "b")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/bus/bus_0.jpg bus", "a/car/gone.jpg car"], "bad.txt: 1 of 2 listed images are not in"),
        (["a/bus/bus_0.jpg bus", "a/car/gone.jpg car"], "line 2: a/car/gone.jpg"),
        (["../secret.jpg bus"], "bad.txt: line 1: ../secret.jpg lies outside"),
        (["/etc/secret.jpg bus"], "line 1: /etc/secret.jpg lies outside"),
        (["a/bus/bus_0.jpg bus", "a/./bus/bus_0.jpg car"], "line 2: a/bus/bus_0.jpg is already in line 1"),
        (["a/bus/bus_0.jpg bus", "a/car/car_0.jpg"], "a/car/car_0.jpg has no label"),
        (["a/bus/bus_0.jpg 0", "a/car/car_0.jpg 2"], "no image has the label 1"),
        ([], "the list has no images"),
    ],
)
def test_bad_source_lists(pair, lines, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(write_list(pair / "bad.txt", lines), pair / "b")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/bus/bus_0.jpg buss"], "line 1: class 'buss' is not in the source domain, did you mean 'bus'"),
        (["a/bus/bus_0.jpg 3"], "line 1: label 3, but the classes are numbered 0 to 2"),
    ],
)
def test_bad_target_lists(pair, lines, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(pair / "good.txt", write_list(pair / "bad.txt", lines))


def test_missing_places(pair, monkeypatch):
    with pytest.raises(UserError, match=r"data\.source: no such folder: .*nowhere; give a folder.*data\.dataset"):
        load(pair / "nowhere", pair / "b")
    with pytest.raises(UserError, match=r"data\.target: no such list file"):
        load(pair / "a", pair / "gone.txt")
    with pytest.raises(UserError, match=r"data\.root: no such folder"):
        load("a", "b", root=str(pair / "nowhere"))
    (pair / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images"):
        load(pair / "a", pair / "empty")
    with pytest.raises(UserError, match="holds no class folders"):
        load(pair / "a" / "bus", pair / "b")
    monkeypatch.setenv("UDA_DATA", str(pair))
    with pytest.raises(UserError, match="visda2017: unknown domain 'training', did you mean 'train'"):
        load("training", "validation", dataset="visda2017")
    with pytest.raises(UserError, match=r"unknown domain '.*/a' .*for folders of your own, set data\.dataset=null"):
        load(pair / "a", "validation", dataset="visda2017")
    with pytest.raises(UserError, match=r"VisDA-2017 is not at .*download it from https"):
        load("train", "validation", dataset="visda2017")
    make_folders(pair / "PACS" / "photo", CARDS["pacs"].classes)
    with pytest.raises(UserError, match="PACS is not complete; get the domain 'sketch'"):
        load("photo", "sketch", dataset="pacs")


def test_a_file_name_that_is_not_text_is_named(tmp_path):
    place = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        open(place, "wb").close()
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    with pytest.raises(UserError, match=r"a file's name is not UTF-8, rename it: b'caf\\xe9\.png'"):
        look_below(tmp_path)


def test_unreadable_images_leave_with_their_labels(pair):
    (pair / "b" / "bus" / "bus_0.jpg").write_text("broken")
    domains = load(pair / "a", pair / "b", max_unreadable=0.2)
    assert domains.target.images.ids[0] == "bus/bus_1.jpg" and len(domains.target.images) == 5
    assert domains.target_labels.reveal().tolist() == [0, 1, 1, 2, 2]
    (pair / "b" / "bus" / "bus_1.jpg").write_text("broken")
    with pytest.raises(UserError, match=r"not in .*b: bus"):
        load(pair / "a", pair / "b", max_unreadable=0.5)


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("place", ["header", "pixels", "end"])
def test_pngs_with_a_damaged_byte_are_skipped_below_the_share_and_stop_the_run_above_it(tmp_path, place, cache):
    names = CARDS["visda2017"].classes
    folder = make_visda(tmp_path, per_class=2)
    pngs = sorted((folder / "train").rglob("*.png"))
    for path in pngs[::2][:3]:
        content = bytearray(path.read_bytes())
        content[{"header": 18, "pixels": content.index(b"IDAT") + 40, "end": len(content) - 3}[place]] ^= 0x10
        path.write_bytes(content)
    settings = {"dataset": "visda2017", "root": str(folder), "cache": cache}
    domains = load("train", "validation", max_unreadable=3 / 24, **settings)
    assert domains.source.labels.tolist() == sorted([*range(12), *range(3, 12)])
    for images in (domains.source.images, domains.target.images):
        assert all(images.read(i).shape == (3, 32, 40) for i in range(len(images)))
    with pytest.raises(UserError, match=rf"3 of 24 images of .*train/{names[0]}/.*: the PNG is damaged"):
        load("train", "validation", max_unreadable=2 / 24, **settings)


def test_a_target_that_is_also_the_source_is_refused(pair, monkeypatch):
    for dataset, name in (("digits", "mnist"), ("visda2017", "train"), (None, str(pair / "a"))):
        with pytest.raises(UserError, match=f"data.source and data.target are both '{name}'"):
            load(name, name, dataset=dataset)
    (pair / "link").symlink_to(pair / "a", target_is_directory=True)
    monkeypatch.chdir(pair)
    for target in ("link", "a/../a", str(pair / "a")):
        with pytest.raises(UserError, match=r"share 6 images, such as .*bus_0\.jpg: .*name domains without a common"):
            load("a", target)
    bare = write_list(pair / "t.txt", ["b/bus/bus_0.jpg", "a/bus/bus_0.jpg"])
    with pytest.raises(UserError, match=r"good\.txt\) and data.target \(.*t\.txt\) share 1 images"):
        load(pair / "good.txt", bare)
    other = write_list(pair / "t.txt", [f"a/{c}/{c}_1.jpg {c}" for c in CLASSES])
    assert load(pair / "good.txt", other).target_labels.reveal().tolist() == [0, 1, 2]


def test_target_labels_hide():
    hidden = TargetLabels(np.array([7, -1, 3]))
    assert repr(hidden) == str(hidden) == "TargetLabels(3 hidden)"
    assert hidden.known and not TargetLabels(np.array([-1, -1])).known
    with pytest.raises(TypeError):
        hidden[0]
    with pytest.raises(TypeError):
        len(hidden)
    with pytest.raises(ValueError, match="read-only"):
        hidden.reveal()[0] = 1
    assert [field.name for field in dataclasses.fields(Target)] == ["images", "domain"]
    assert [field.name for field in dataclasses.fields(Source)] == ["images", "labels", "domain"]
