"""Label maps are read as they are: no value passes through a conversion of colours."""

import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.files import deep_png, png, saved, tiff
from uda.core.errors import UserError
from uda.data.label_coding import VOID, LabelCoding, UnknownIdsError
from uda.data.label_maps import MapArray, MapFiles, class_palette, read_label_map, write_label_map

#: Values 7, 8 and 300 are classes 0, 1 and 2.
STREETS = LabelCoding({7: 0, 8: 1, 300: 2}, frozenset({0, 9}))
VALUES = np.array([[7, 8, 0, 9], [8, 7, 7, 0], [9, 9, 8, 7]])
TRAIN_IDS = [[0, 1, VOID, VOID], [1, 0, 0, VOID], [VOID, VOID, 1, 0]]
DEEP = np.array([[7, 300, 0], [8, 300, 9]], np.uint16)
DEEP_TRAIN_IDS = [[0, 2, VOID], [1, 2, VOID]]


def read(folder, content, coding=STREETS, name="map.png"):
    (folder / name).write_bytes(content)
    found = read_label_map(folder / name, coding)
    assert found.dtype == torch.uint8
    return found.tolist()


def palette_image(values):
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([number * 5 % 256 for number in range(768)])  # the colours say nothing about the classes
    return image


def test_grey_and_palette(tmp_path):
    grey = VALUES.astype(np.uint8)
    assert read(tmp_path, saved(grey, "PNG")) == TRAIN_IDS
    assert read(tmp_path, saved(palette_image(VALUES), "PNG")) == TRAIN_IDS
    assert read(tmp_path, saved(palette_image(VALUES), "PNG", transparency=7)) == TRAIN_IDS
    assert read(tmp_path, saved(grey, "TIFF"), name="map.tif") == TRAIN_IDS
    assert read(tmp_path, saved(grey, "BMP"), name="map.bmp") == TRAIN_IDS


def test_sixteen_bits_of_grey(tmp_path):
    assert read(tmp_path, saved(DEEP, "PNG")) == DEEP_TRAIN_IDS
    assert read(tmp_path, tiff(DEEP), name="map.tif") == DEEP_TRAIN_IDS
    assert read(tmp_path, tiff(DEEP.astype(np.int32), 2), name="map.tif") == DEEP_TRAIN_IDS


@pytest.mark.parametrize(("bits", "row"), [(1, [0b10100000]), (2, [0b01000111, 0b10000000]), (4, [0x30, 0x1F, 0x20])])
def test_few_bits_are_not_scaled_to_255(tmp_path, bits, row):
    """PIL would read the 3 of a map of two bits as 255, and the 15 of four bits too."""
    wanted = {1: [1, 0, 1, 0, 0], 2: [1, 0, 1, 3, 2], 4: [3, 0, 1, 15, 2]}[bits]
    coding = LabelCoding.plain(16)
    assert read(tmp_path, png(5, 1, bytes([0, *row]), bits, 0), coding) == [wanted]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_channel_of_eight_bits(tmp_path, channel):
    values = np.full((3, 4, 3), 77, np.uint8)
    values[:, :, channel] = VALUES
    coding = LabelCoding(STREETS.ids, STREETS.ignore, channel)
    assert read(tmp_path, saved(values, "PNG"), coding) == TRAIN_IDS
    assert read(tmp_path, saved(np.dstack([values, values[:, :, 0]]), "PNG"), coding) == TRAIN_IDS


@pytest.mark.parametrize(("channels", "colours"), [(3, 2), (4, 6)])
@pytest.mark.parametrize("filtered", [False, True])
def test_a_channel_of_sixteen_bits(tmp_path, channels, colours, filtered):
    """As in SYNTHIA: red holds the class, green the number of the thing. A conversion to 8 bits would give 0 for 7."""
    values = np.random.default_rng(0).integers(0, 65_536, (2, 3, channels)).astype(np.uint16)
    values[:, :, 0] = DEEP
    content = deep_png(values, colours)
    if filtered:  # the filter of each row takes the difference to the pixel on the left
        raw = values.astype(">u2").view(np.uint8).reshape(2, 3, 2 * channels)
        rows = np.concatenate([raw[:, :1], raw[:, 1:] - raw[:, :-1]], 1).reshape(2, -1)
        content = png(3, 2, b"".join(b"\1" + row.tobytes() for row in rows), 16, colours)
    coding = LabelCoding(STREETS.ids, STREETS.ignore, 0)
    assert read(tmp_path, content, coding) == DEEP_TRAIN_IDS
    last = LabelCoding({int(value): 1 for value in np.unique(values[:, :, 2])}, frozenset(), 2)
    assert read(tmp_path, content, last) == [[1, 1, 1], [1, 1, 1]]


def test_unknown_values_are_named_with_their_file(tmp_path):
    values = np.array([[7, 7, 26], [26, 26, 255]], np.uint8)
    with pytest.raises(UnknownIdsError) as found:
        read(tmp_path, saved(values, "PNG"))
    assert found.value.values == {26: 3, 255: 1}
    for part in (str(tmp_path / "map.png"), "26 (3 pixels), 255 (1 pixels)", "known are 0, 7-9, 300", "`ignore`"):
        assert part in str(found.value)
    with pytest.raises(UnknownIdsError, match=r"70000 \(1 pixels\)"):
        read(tmp_path, tiff(np.array([[7, 70_000]], np.int32), 2), name="map.tif")
    with pytest.raises(UnknownIdsError, match=r"-3 \(1 pixels\)"):
        read(tmp_path, tiff(np.array([[7, -3]], np.int32), 2), name="map.tif")


COLOUR = np.dstack([VALUES, VALUES + 1, VALUES]).astype(np.uint8)
GREY = VALUES.astype(np.uint8)


@pytest.mark.parametrize(
    ("content", "channel", "message"),
    [
        (saved(COLOUR, "PNG"), None, "has 3 channels; set `channel` of the card.*must be converted to class numbers"),
        (saved(np.dstack([GREY] * 3), "PNG"), None, r"has 3 channels.*\(0 is red\), and here all colours are equal"),
        (saved(COLOUR, "PNG"), 3, "has 3 channels, but `channel` is 3; the first one is 0"),
        (saved(GREY, "PNG"), 1, "has one channel, but channel 1 should hold the class; set `channel` to null"),
        (saved(GREY, "JPEG"), None, "a JPEG, whose compression changes class numbers; save it as a PNG"),
        (saved(np.dstack([GREY] * 3), "JPEG"), 0, "a JPEG, whose compression"),
        (
            tiff(COLOUR.astype(np.uint16)),
            0,
            "a TIFF of 16 bits a channel, of which the lower 8 are lost",
        ),
        (tiff(VALUES.astype(np.float32), 3), None, "of the kind 'F'; save the class numbers as a grey PNG"),
        (deep_png(COLOUR[:, :, :2].astype(np.uint16), 4), 0, "two channels of 16 bits; save the class numbers"),
        (saved(GREY, "PNG")[:-14], None, "truncated or damaged: it has no valid end; repair or replace the file"),
        (png(36, 24, b"\x09" + bytes(24 * 109), 8, 2), 0, "repair or replace the file"),
        (png(36, 24, b"", 16, 2, stream=b"x\x9c" + bytes(range(200))), 0, "repair or replace the file"),
        (b"", None, "the file is empty; repair or replace the file"),
        (b"sky", None, "no known image format; repair or replace the file"),
    ],
)
def test_files_that_are_no_label_maps(tmp_path, content, channel, message):
    coding = LabelCoding(dict.fromkeys(range(256), 0), frozenset(), channel)
    with pytest.raises(
        UserError, match=f"{re.escape(str(tmp_path / 'map.png'))}: cannot be read as a label map: .*{message}"
    ):
        read(tmp_path, content, coding)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: cannot be read as a label map: No such file.*; restore the file"):
        read_label_map(tmp_path / "gone.png", STREETS)


def test_codings_that_contradict_themselves():
    with pytest.raises(ValueError, match=r"in `ids` and in `ignore`: \[7\]"):
        LabelCoding({7: 0}, frozenset({7}))
    with pytest.raises(ValueError, match=r"must be 0\.\.65535"):
        LabelCoding({-1: 0})
    with pytest.raises(ValueError, match=r"train ids must be 0\.\.253"):
        LabelCoding({7: 254}, frozenset())
    assert LabelCoding({7: 254 + 1}, frozenset()).train_ids(np.array([[7]]), "map").tolist() == [[VOID]]


def test_numbered_maps(tmp_path):
    maps = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, values in zip(paths, maps, strict=True):
        path.write_bytes(saved(values, "PNG"))
    coding = LabelCoding.plain(24)
    for found in (MapArray(maps), MapFiles(paths, coding), MapFiles(paths, coding, "memory")):
        assert len(found) == 3 and found.read(2).tolist() == maps[2].tolist()
        taken = found.take(np.array([2, 0]))
        assert len(taken) == 2 and taken.read(1).tolist() == maps[0].tolist()
    kept = MapFiles(paths, coding, "memory")
    kept.read(1)
    paths[1].unlink()
    assert kept.read(1).tolist() == kept.take(np.array([1])).read(0).tolist() == maps[1].tolist()
    with pytest.raises(UserError, match="restore the file"):
        MapFiles(paths, coding).read(1)


def test_a_written_map_is_a_small_picture_that_reads_the_same(tmp_path):
    numbers = torch.randint(0, 19, (64, 128), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    numbers[:9] = VOID
    palette = class_palette([f"c{number}" for number in range(19)], {"c0": (128, 64, 128)})
    path = tmp_path / "new" / "map.png"
    write_label_map(path, numbers, palette)
    assert torch.equal(read_label_map(path, LabelCoding.plain(19)), numbers)
    shown = np.asarray(Image.open(path).convert("RGB"))
    assert (shown[:9] == 0).all()
    assert (shown[9:] == palette[numbers[9:].numpy()]).all()
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]
    write_label_map(path, numbers.flip(0), palette, durable=False)
    assert torch.equal(read_label_map(path, LabelCoding.plain(19)), numbers.flip(0))


def test_colours_of_classes():
    """PASCAL VOC's first colours are dark red, dark green, dark yellow. No two of 254 classes look the same."""
    assert class_palette(["a", "b", "c"]).tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert class_palette(["a", "b"], {"b": (1, 2, 3)}).tolist() == [[128, 0, 0], [1, 2, 3]]
    assert len(np.unique(class_palette(list(map(str, range(254)))), axis=0)) == 254


def test_pngs_of_sixteen_bits_that_are_interlaced(tmp_path):
    """Adam7's first pass of a picture of one pixel is the whole picture."""
    content = png(1, 1, b"\0" + np.array([300, 5, 6], ">u2").tobytes(), 16, 2)
    head = content.index(b"IHDR")
    body = content[head : head + 16] + b"\1"
    content = content[:head] + body + struct.pack(">I", zlib.crc32(body)) + content[head + 21 :]
    assert read(tmp_path, content, LabelCoding(STREETS.ids, STREETS.ignore, 0)) == [[2]]
