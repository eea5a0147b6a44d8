"""Odd trees of folders as targets: each ends in a right result or one clear line, and no image vanishes."""

import io
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.trees import make_visda
from uda.core.errors import UserError
from uda.data.domains import load_domains
from uda.data.images import SUFFIXES
from uda.data.settings import DataSettings

CLASSES = ("café", "cat", "dog")
NFD = unicodedata.normalize("NFD", "café")

_PIXELS = io.BytesIO()
Image.new("RGB", (8, 8), (200, 90, 10)).save(_PIXELS, "PNG")


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_PIXELS.getvalue())


def source(root):
    for name in CLASSES:
        for i in range(2):
            put(root / "a" / name / f"{i}.png")


def classes(b):
    for name in CLASSES:
        put(b / name / "0.png")


def link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def hard_link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(to)


def undecodable(b):
    place = os.fsencode(b / "cat") + b"/caf\xe9.png"
    try:
        open(place, "wb").close()
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")


def pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.mkfifo(path)


def other_files(b):
    for name in ("notes.txt", "list.TXT", "IMG_1.heic", "README", "Thumbs.db", ".DS_Store", "x.a b"):
        put(b / "cat" / name)


# What is done to a target, and what must come of it: images with labels, without, or a message.
LABELLED, UNLABELLED = "labelled", "unlabelled"
ODDITIES = {
    "nothing odd": (lambda b: classes(b), LABELLED),
    "nested": (lambda b: (classes(b), put(b / "cat/x/y/deep.png")), LABELLED),
    "very deep": (lambda b: (classes(b), put(b / "dog" / "/".join("d" * 100) / "1.png")), LABELLED),
    "endings": (lambda b: (classes(b), put(b / "cat/1.JPEG"), put(b / "dog/2.Bmp"), put(b / "dog/noending")), LABELLED),
    "other files": (lambda b: (classes(b), other_files(b)), LABELLED),
    "hidden": (lambda b: (classes(b), put(b / ".git/x.png"), put(b / "cat/.y.png"), put(b / "dog/._0.png")), LABELLED),
    "a folder named as an image": (lambda b: (classes(b), put(b / "cat/shots.png/1.png")), LABELLED),
    "odd names": (lambda b: (classes(b), put(b / "cat/a b\tc.png"), put(b / "dog/\U0001f415 'x'.png")), LABELLED),
    "a line break": (lambda b: (classes(b), put(b / "cat/one\ntwo.png")), LABELLED),
    "a pipe": (lambda b: (classes(b), pipe(b / "cat/pipe.png")), LABELLED),
    "a loop": (lambda b: (classes(b), link(b / "cat/loop", "..")), LABELLED),
    "a loop at the top": (lambda b: (classes(b), link(b / "loop", ".")), LABELLED),
    "a link to a folder above": (lambda b: (classes(b), link(b / "dog/up", "../../..")), LABELLED),
    "loops through each other": (
        lambda b: (classes(b), link(b / "cat/x/dogs", "../../dog"), link(b / "dog/cats", "../cat")),
        LABELLED,
    ),
    "a link to another class": (lambda b: (classes(b), link(b / "café/dogs", "../dog")), LABELLED),
    "a link that leads to itself": (lambda b: (classes(b), link(b / "cat/self.png.d", "self.png.d")), LABELLED),
    "a folder elsewhere": (
        lambda b: (classes(b), put(b / "../more/1.png"), link(b / "cat/more", "../../more")),
        LABELLED,
    ),
    "a class folder elsewhere": (
        lambda b: (put(b / "café/0.png"), put(b / "cat/0.png"), put(b / "../dogs/1.png"), link(b / "dog", "../dogs")),
        LABELLED,
    ),
    "a folder elsewhere in two classes": (
        lambda b: (classes(b), put(b / "../more/1.png"), [link(b / f"{c}/m", "../../more") for c in ("cat", "dog")]),
        "cat/m|dog/m.* are the same folder, in two classes",
    ),
    "one folder as two classes": (
        lambda b: (put(b / "café/0.png"), put(b / "cat/0.png"), link(b / "dog", "cat")),
        "dog, cat are the same folder, in two classes",
    ),
    "an image linked in its class": (lambda b: (classes(b), link(b / "cat/again.png", "0.png")), LABELLED),
    "an image linked in another class": (
        lambda b: (classes(b), link(b / "dog/not.png", "../cat/0.png")),
        "cat/0.png, dog/not.png are the same file, in two classes",
    ),
    "class names of a Mac": (lambda b: [put(b / name / "0.png") for name in (NFD, "cat", "dog")], LABELLED),
    "one class in two forms": (lambda b: (classes(b), put(b / NFD / "1.png")), "two folders are named 'café'"),
    "a class without images": (
        lambda b: (put(b / "café/0.png"), put(b / "cat/0.png"), put(b / "dog/0.heic")),
        r"without images: dog; .*passed over 1 file that is not an image: 1 \.heic",
    ),
    "loose images beside classes": (
        lambda b: (classes(b), put(b / "loose.png")),
        "beside class folders.*target_labels=no",
    ),
    "one misspelt": (
        lambda b: [put(b / name / "0.png") for name in ("café", "cat", "dgo")],
        "did you mean 'dog'.*data.target_labels=none",
    ),
    "one missing": (lambda b: [put(b / name / "0.png") for name in ("café", "cat")], "that are not in .*: dog"),
    "one too many": (lambda b: (classes(b), put(b / "emu/0.png")), "not in the source domain: emu"),
    "all in capitals": (
        lambda b: [put(b / name / "0.png") for name in ("CAFÉ", "CAT", "DOG")],
        "'CAFÉ' and 'café' differ only by case, spaces or punctuation",
    ),
    "a space at the end": (
        lambda b: [put(b / name / "0.png") for name in ("café", "cat ", "dog")],
        "'cat ' and 'cat' differ",
    ),
    "all in the plural": (lambda b: [put(b / name / "0.png") for name in ("cats", "dogs")], "that are not in .*: cats"),
    "one folder too high": (
        lambda b: classes(b / "images"),
        "which itself holds café, cat, dog: did you mean .*images",
    ),
    "parts of a data set": (
        lambda b: (classes(b / "train"), classes(b / "val")),
        "train, val are parts of a data set, not classes; .*café, cat, dog: name one of them",
    ),
    "classes below other folders": (
        lambda b: (put(b / "monday/cat/0.png"), put(b / "friday/dog/0.png")),
        "classes of the source domain are one level below, as in friday/dog, monday/cat",
    ),
    "days": (lambda b: (put(b / "2021/05/0.png"), put(b / "2022/06/0.png"), put(b / "loose.png")), UNLABELLED),
    "one folder of no class": (lambda b: (put(b / "shots/0.png"), link(b / "shots/x", "..")), UNLABELLED),
    "flat": (lambda b: (put(b / "0.png"), put(b / "1.JPG"), put(b / "notes.md")), UNLABELLED),
    "empty": (lambda b: b.mkdir(exist_ok=True), "holds no images"),
    "nothing that we read": (
        lambda b: (put(b / "x/0.heic"), put(b / "x/1.npy")),
        r"holds no images \(passed over 2 files that are not images: 1 \.heic, 1 \.npy\)",
    ),
    "a name that is no text": (lambda b: (classes(b), undecodable(b)), "is not UTF-8, rename it"),
    "a link to the source": (
        lambda b: (classes(b), link(b / "cat/1.png", "../../a/cat/1.png")),
        "share 1 images.*which",
    ),
    "a folder of the source": (lambda b: (classes(b), link(b / "cat/more", "../../a/cat")), "share 2 images.*which"),
    "a hard link to the source": (
        lambda b: (classes(b), hard_link(b / "cat/1.png", b / "../a/cat/1.png")),
        "share 1 images, such as .*a/cat/1.png, which is .*b/cat/1.png",
    ),
}


def images_on_disk(folder):
    """Every image below a folder or behind its links, as real paths; hidden ones and folders above do not count."""
    above = {os.path.realpath(folder)}
    above |= {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    found, done, waiting = set(), set(), [os.path.realpath(folder)]
    while waiting:
        place = waiting.pop()
        if place in done:
            continue
        done.add(place)
        for name in os.listdir(place):
            path = os.path.join(place, name)
            if name.startswith("."):
                continue
            if os.path.isdir(path):
                real = os.path.realpath(path)
                waiting += [] if real in above else [real]
            elif os.path.isfile(path) and os.path.splitext(name)[1].lower() in SUFFIXES:
                found.add(os.path.realpath(path))
    return found


def load(root, **changes):
    told = []
    config = DataSettings(source=str(root / "a"), target=str(root / "b"), **changes)
    return load_domains(config, 0, told.append), told


def check(root):
    """Load the target `b`: the domains, or a message of one line. No image is lost, and every label is right."""
    message = ""
    try:
        domains, told = load(root)
    except UserError as error:
        message = str(error)
    if message:
        assert "\n" not in message and len(message) < 1500
        return message
    ids = domains.target.images.ids
    listed = {os.path.realpath(root / "b" / path) for path in ids}
    assert listed == images_on_disk(root / "b")
    assert len(ids) - sum(os.path.islink(root / "b" / path) for path in ids) <= len(listed)
    if domains.target_labels is not None:
        for path, label in zip(ids, domains.target_labels.reveal(), strict=True):
            where = Path(os.path.realpath((root / "b" / path).parent))
            lies = where.relative_to(os.path.realpath(root / "b")) if where.is_relative_to(root / "b") else Path(path)
            assert domains.classes[label] == unicodedata.normalize("NFC", lies.parts[0]), path
    return domains, told


@pytest.mark.parametrize("name", ODDITIES)
def test_odd_targets(tmp_path, name):
    build, expected = ODDITIES[name]
    source(tmp_path)
    build(tmp_path / "b")
    found = check(tmp_path)
    if expected in (LABELLED, UNLABELLED):
        assert not isinstance(found, str), found
        assert (found[0].target_labels is not None) == (expected == LABELLED)
    else:
        assert isinstance(found, str) and re.search(expected, found), found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(set(ODDITIES) - {"a name that is no text"})), min_size=2, max_size=4, unique=True)
)
def test_several_oddities_at_once(names):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        source(root)
        for name in names:
            try:
                ODDITIES[name][0](root / "b")
            except OSError:  # two that want the same path
                return
        check(root)


@pytest.mark.parametrize("name", ["one misspelt", "loose images beside classes", "parts of a data set", "one missing"])
def test_a_target_may_be_said_to_have_no_labels(tmp_path, name):
    source(tmp_path)
    ODDITIES[name][0](tmp_path / "b")
    domains, _ = load(tmp_path, target_labels="none")
    assert domains.target_labels is None
    assert {os.path.realpath(tmp_path / "b" / path) for path in domains.target.images.ids} == images_on_disk(
        tmp_path / "b"
    )


def test_a_target_without_labels_keeps_none_of_a_list_or_a_card(tmp_path):
    source(tmp_path)
    classes(tmp_path / "b")
    (tmp_path / "b" / "list.txt").write_text("cat/0.png cat\ndog/0.png nobody\n")
    config = DataSettings(source=str(tmp_path / "a"), target=str(tmp_path / "b" / "list.txt"), target_labels="none")
    assert load_domains(config, 0, print).target_labels is None
    for lists in (True, False):
        folder = make_visda(tmp_path / str(lists), per_class=1, lists=lists)
        visda = DataSettings(
            dataset="visda2017", root=str(folder), source="train", target="validation", target_labels="none"
        )
        domains = load_domains(visda, 0, print)
        assert domains.target_labels is None and len(domains.target.images) == 12
    digits = DataSettings(
        dataset="digits", source="rendered", target="mnist", target_labels="none", rendered_per_class=2
    )
    assert load_domains(digits, 0, print).target_labels is None


def test_the_log_says_what_was_left_out(tmp_path):
    """Once a domain; nothing is said of a system's own files."""
    source(tmp_path)
    put(tmp_path / "a/cat/Thumbs.db")
    put(tmp_path / "a/loose.png")
    classes(tmp_path / "b")
    other_files(tmp_path / "b")
    link(tmp_path / "b/cat/loop", "..")
    put(tmp_path / "b/dog/.x.png")
    _, told = load(tmp_path)
    assert told == [
        f"{tmp_path}/a: passed over 1 images that are in no class folder: loose.png",
        f"{tmp_path}/b: passed over 6 files that are not images: 2 .txt, 1 .heic, 1 hidden, 1 with another ending, "
        "1 without an ending",
        f"{tmp_path}/b: left out cat/loop: a link to this folder; every folder counts once, at its real place",
    ]


def test_the_log_says_that_a_target_has_no_labels(tmp_path):
    source(tmp_path)
    put(tmp_path / "b/2021/0.png")
    _, told = load(tmp_path)
    assert told == [
        f"{tmp_path}/b: none of its folders (2021) is a class of the source domain (café, cat, dog), so its images are "
        "treated as unlabelled"
    ]


@pytest.mark.parametrize("name", ["one folder too high", "parts of a data set"])
def test_the_source_and_other_labelled_domains_are_looked_at_alike(tmp_path, name):
    from uda.data.domains import load_labelled
    from uda.data.settings import StorageSettings
    from uda.hardness.scoring.images import load_images

    build, message = ODDITIES[name]
    source(tmp_path)
    build(tmp_path / "b")
    with pytest.raises(UserError, match=message):
        load_domains(DataSettings(source=str(tmp_path / "b"), target=str(tmp_path / "a")), 0, print)
    with pytest.raises(UserError, match=message):
        load_labelled(StorageSettings(), [str(tmp_path / "a"), str(tmp_path / "b")], 0, print)
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path / "b"))


def test_folders_that_may_be_domains_are_told(tmp_path):
    """A folder of domains, or of classes with parts: nobody can tell, so the log shows what the classes are."""
    for place in "ab":
        for path in ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog"):
            put(tmp_path / place / path / "0.png")
    _, told = load(tmp_path)
    assert told[0] == (
        f"{tmp_path}/a: the classes are photo, sketch, but each of these folders holds cat, dog; if those are the "
        f"classes, name one of the outer folders instead, as in {tmp_path}/a/photo"
    )
    put(tmp_path / "a/photo/0.png")
    assert len(load(tmp_path)[1]) == 1


def test_a_partial_target_is_looked_at_in_the_same_way(tmp_path):
    """A class may be missing, in folders that hold the same folders too; but not all of its images."""
    source(tmp_path)
    for path in ("cat/day", "cat/night", "dog/day", "dog/night"):
        put(tmp_path / "b" / path / "0.png")
    domains, told = load(tmp_path, label_sets="partial")
    assert domains.target_labels.reveal().tolist() == [1, 1, 2, 2]
    assert told == [
        f"{tmp_path}/b: the classes are cat, dog, but each of these folders holds day, night; if those are the "
        f"classes, name one of the outer folders instead, as in {tmp_path}/b/cat"
    ]
    for image in (tmp_path / "b").rglob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match="class folders without images: cat, dog"):
        load(tmp_path, label_sets="partial")


def test_a_class_may_be_named_train(tmp_path):
    """VisDA-2017 has one: what counts is whether class folders lie in it."""
    for place in "ab":
        for name in ("train", "val"):
            put(tmp_path / place / name / "day" / "0.png")
    domains, _ = load(tmp_path)
    assert domains.classes == ("train", "val") and domains.target_labels.reveal().tolist() == [0, 1]


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    source(tmp_path)
    classes(tmp_path / "b")
    scandir = os.scandir

    def closed(place):
        if Path(place).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"a/dog: cannot be opened: Permission denied"):
        load(tmp_path)
