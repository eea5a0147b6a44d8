"""A second look at the same files costs no decode, and never hides a change."""

import numpy as np
import pytest

from tests.data.trees import make_folders
from uda.data import checked, images
from uda.data.images import ImageFiles, check_readable
from uda.data.settings import ReadingSettings


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Twelve images, enough to be kept; gives the paths, and the calls of the decoder so far."""
    monkeypatch.setenv("UDA_STORE", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "LEAST", 3)
    root = make_folders(tmp_path / "photos", ["ant", "bee"], per_class=6)
    decoded = []
    examine = images.examine_content
    monkeypatch.setattr(images, "examine_content", lambda *given: decoded.append(1) or examine(*given))
    return root, sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg")), decoded


def look(root, names, **reading):
    told = []
    found = check_readable(ImageFiles(root, names, reading=ReadingSettings(**reading)), 0.5, told.append)
    return found.tolist(), [line for line in told if "checking" not in line]


def test_a_second_look_decodes_nothing_and_says_the_same(files):
    root, names, decoded = files
    first = look(root, names)
    assert first[0] == list(range(12)) and len(decoded) == 12
    assert look(root, names) == first and len(decoded) == 12


def test_a_changed_file_is_looked_at_again(files):
    root, names, decoded = files
    look(root, names)
    content = (root / names[4]).read_bytes()
    (root / names[4]).write_bytes(content[: len(content) // 2])
    readable, told = look(root, names)
    assert len(decoded) == 13 and readable == [i for i in range(12) if i != 4]
    assert any(line.startswith(f"unreadable image: {names[4]}") for line in told)
    assert look(root, names) == (readable, told), "what is unreadable is not kept as sound"


def test_other_rules_of_reading_are_other_looks(files):
    root, names, decoded = files
    look(root, names)
    look(root, names, load_size=16)
    assert len(decoded) == 24


def test_what_is_said_of_sound_images_is_said_again(files):
    """Transparency, orientation and white are told at every start."""
    from PIL import Image

    root, names, _ = files
    pixels = np.zeros((20, 20, 4), np.uint8)
    Image.fromarray(pixels).save(root / "ant" / "clear.png")
    Image.fromarray(np.full((20, 20), 3000, np.uint16)).save(root / "ant" / "deep.png")
    names = [*names, "ant/clear.png", "ant/deep.png"]
    first = look(root, names)
    assert len(first[1]) == 2 and look(root, names) == first


@pytest.mark.parametrize("damage", [b"", b"no such thing", b"\x78\x9c"])
def test_a_damaged_file_of_looks_is_made_anew(files, tmp_path, damage):
    root, names, decoded = files
    first = look(root, names)
    (file,) = (tmp_path / "cache" / "checked").iterdir()
    file.write_bytes(damage)
    assert look(root, names) == first and len(decoded) == 24
    assert look(root, names) == first and len(decoded) == 24


def test_few_images_leave_no_file(files, tmp_path, monkeypatch):
    root, names, _ = files
    monkeypatch.setattr(checked, "LEAST", 100)
    look(root, names)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(files, tmp_path):
    root, names, _ = files
    (tmp_path / "cache").write_text("a file")
    assert look(root, names)[0] == list(range(12))
