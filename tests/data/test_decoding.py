"""The rules of reading: every file is read with the right pixels, or refused in one line."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from tests.data.files import bomb, deep_png, gallery, picture, png, saved, tiff, turned
from tests.data.trees import make_folders
from tests.in_process import adapt
from uda.core.errors import UserError
from uda.data import decoding
from uda.data.decoding import ImageFacts
from uda.data.images import ImageFiles, check_readable, decode
from uda.data.settings import AugmentSettings, ReadingSettings, StorageSettings, TransformSettings
from uda.data.store import open_stores, take_inventory
from uda.data.transforms import make_predict, make_train
from uda.hardness.scoring.images import load_images

FILES = gallery()
TRANSFORMS = TransformSettings(size=16, resize=20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WAYS = (make_train(TRANSFORMS, AugmentSettings(scale=(0.2, 1.0), flip=True)), make_predict(TRANSFORMS))


def read_as_a_run_does(root, name, **rules):
    """The image's height and width, or None where the check refuses it; either way all agree, in one line."""
    images = ImageFiles(root, [name], reading=ReadingSettings(**rules))
    facts = images.examine(0)
    if facts.problem is not None:
        assert facts.problem and len(facts.problem.splitlines()) == 1
        with pytest.raises(UserError) as refused:
            images.read(0)
        assert name in str(refused.value) and len(str(refused.value).splitlines()) == 1
        return None
    image = images.read(0)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    for transform in WAYS:
        batch = transform([image], [0])
        assert batch.shape == (1, 3, 16, 16) and batch.isfinite().all()
    return tuple(image.shape[1:])


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_odd_file_is_read_in_its_size_or_refused_in_one_line(tmp_path, name):
    content, size = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert read_as_a_run_does(tmp_path, name) == size
    small = read_as_a_run_does(tmp_path, name, load_size=8, exif_orientation="apply", background="black")
    assert (small is None) == (size is None)


@some.composite
def damaged_files(draw):
    """A file of the gallery with some of its bytes changed, lost, added or zeroed, and perhaps a wrong ending."""
    name = draw(
        some.sampled_from(sorted(name for name, (content, _) in FILES.items() if content and name != "bomb.png"))
    )
    content = bytearray(FILES[name][0])
    places = some.integers(0, len(content) - 1) | some.integers(0, min(len(content), 64) - 1)
    for _ in range(draw(some.integers(1, 3))):
        at, length = draw(places), draw(some.integers(1, 64))
        match draw(some.sampled_from(["flip", "cut", "zero", "insert", "byte"])):
            case "flip":
                content[at : at + 1] = bytes([content[at] ^ 1 << length % 8]) if at < len(content) else b""
            case "cut":
                del content[max(at, 1) :]
            case "zero":
                content[at : at + length] = bytes(len(content[at : at + length]))
            case "insert":
                content[at:at] = draw(some.binary(min_size=1, max_size=16))
            case "byte":
                content[at : at + 1] = draw(some.binary(min_size=1, max_size=1))
    return draw(some.sampled_from([name, "image.jpg", "image.png", "image.tif"])), bytes(content)


@settings(max_examples=300, deadline=None)
@given(file=damaged_files())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, file):
    root = tmp_path_factory.mktemp("damaged")
    (root / file[0]).write_bytes(file[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uda.data.decoding.MAX_PIXELS", 1 << 18)  # wrong bytes may ask for a hundred million
        whole = read_as_a_run_does(root, file[0])
        small = read_as_a_run_does(root, file[0], load_size=8, exif_orientation="apply")
    assert (whole is None) == (small is None)


OWN = """\
data: {dataset: null, source: a, target: b, max_unreadable: 0.5}
transforms: {kind: crop, size: 16, resize: 16, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
model: {backbone: digits_cnn, weights: none, head: null}
source: {epochs: 1, batch_size: 8, optim: {lr: 0.02}}
self_training:
  {rounds: 1, steps: 2, portion: {start: 0.3, max: 0.5}, source_share: {start: 1.0, max: 1.0},
   batch: {source: 8, selected: 8}, optim: {lr: 0.01}}
report: {loggers: [], page: true}
runtime: {workers: 0, threads: 1, device: cpu}
"""


@pytest.fixture
def hostile(in_folder):
    """A config, a sound source, and a target of every file of the gallery."""
    make_folders(in_folder / "a", ["cat", "dog"], per_class=8)
    for i, (name, (content, _)) in enumerate(FILES.items()):
        path = in_folder / "b" / ("cat", "dog")[i % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (in_folder / "own.yaml").write_text(OWN)
    return in_folder


def test_a_run_on_a_folder_of_such_files_leaves_out_the_unreadable_and_continues_without_them(hostile, capfd):
    unreadable = {name for name, (_, size) in FILES.items() if size is None}
    assert adapt(["--cfg", "own.yaml", "output=o"]) == 0
    first = capfd.readouterr()
    assert first.err == "" and (hostile / "o/results.json").is_file() and (hostile / "o/report.html").is_file()
    lines = first.out.splitlines()
    named = {line.split(": ")[1] for line in lines if line.startswith("unreadable image: ")}
    assert {name.split("/")[1] for name in named} == unreadable
    assert f"{len(unreadable)} of {len(FILES)} images cannot be read and are left out" in lines
    for name in named:
        (hostile / "b" / name).unlink()
    assert adapt(["--cfg", "own.yaml", "output=o"]) == 0
    assert "o is finished" in capfd.readouterr().out
    config = hostile / "o/config.yaml"
    rules = ("  background:", "  exif_orientation:", "  white_level:")
    kept = [line for line in config.read_text().splitlines() if not line.startswith(rules)]
    assert len(kept) == len(config.read_text().splitlines()) - 3
    config.write_text("\n".join(kept))  # as an older version wrote it
    assert adapt(["--cfg", "own.yaml", "output=o"]) == 0
    assert "o is finished" in capfd.readouterr().out
    assert adapt(["--cfg", "own.yaml", "output=o", "data.background=black"]) == 2
    assert "data.background: 'white' -> 'black'" in capfd.readouterr().err


def test_too_many_such_files_are_one_clear_line(hostile, capfd):
    assert adapt(["--cfg", "own.yaml", "output=o", "data.max_unreadable=0.01"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and "cannot be read, more than data.max_unreadable=0.01 allows" in line


#: Reads hostile shapes; the first line is what Python and torch take before, the second what it came to. In MB.
MEMORY = """
import resource, sys
from pathlib import Path
import torch
from uda.data.images import ImageFiles
from uda.data.transforms import make_predict, make_train
from uda.data.settings import AugmentSettings, TransformSettings
settings = TransformSettings()
ways = make_train(settings, AugmentSettings(scale=(0.2, 1.0))), make_predict(settings)
for transform in ways:
    transform([torch.zeros(3, 500, 375, dtype=torch.uint8)] * 2, [0, 1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
images = ImageFiles(Path(sys.argv[1]), sys.argv[2:])
for i in range(len(images)):
    if images.examine(i).problem is None:
        for transform in ways:
            assert transform([images.read(i)], [0]).shape == (1, 3, 224, 224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_an_image_of_any_shape_costs_bounded_memory(tmp_path):
    """10,000 x 1 took 2.7 GB: its shorter side enlarged to 256 pixels makes 2,560,000 of the longer one."""
    for name, size in {"line.png": (1, 10_000), "column.png": (10_000, 1), "longer.png": (1, 300_000)}.items():
        (tmp_path / name).write_bytes(saved(picture(*size), "PNG"))
    (tmp_path / "bomb.png").write_bytes(bomb(20_000, 20_000))
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), "line.png", "column.png", "longer.png", "bomb.png"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 100


def test_the_middle_of_a_long_image_is_what_the_centre_crop_leaves_of_all_of_it():
    """Up to 32 times as long as wide bit for bit; beyond it nearly, for the crop is cut before it is resized."""
    predict = make_predict(TRANSFORMS)
    for size in ((10, 320), (320, 10), (25, 40)):
        image = torch.from_numpy(picture(*size)).permute(2, 0, 1)
        shorter = min(size)
        whole = torch.nn.functional.interpolate(
            image[None], [int(20 * side / shorter) for side in size], mode="bilinear", antialias=True
        )
        top, left = (round((side - 16) / 2) for side in whole.shape[2:])
        assert torch.equal(predict.pixels([image], [0]), whole[:, :, top : top + 16, left : left + 16])
    for size in ((10, 1001), (1000, 10)):
        image = torch.from_numpy(picture(*size)).permute(2, 0, 1)
        whole = torch.nn.functional.interpolate(
            image[None], [2 * side for side in size], mode="bilinear", antialias=True
        )
        top, left = ((side - 16) // 2 for side in whole.shape[2:])
        near = predict.pixels([image], [0]).float() - whole[:, :, top : top + 16, left : left + 16].float()
        assert near.abs().mean() < 2


@pytest.mark.parametrize("limit", [None, 10**12])
def test_a_bomb_is_named_whatever_pil_is_told(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / "x.png").write_bytes(FILES["bomb.png"][0])
    problem = ImageFiles(tmp_path, ["x.png"]).examine(0).problem
    assert problem == "it has 20,000 x 20,000 pixels; the limit is 178,956,970"


def test_a_file_too_large_for_an_image_is_not_read_at_all(tmp_path):
    with (tmp_path / "x.tif").open("wb") as file:
        file.truncate(1 << 34)  # a hole: no byte of it is on the disk
    problem = ImageFiles(tmp_path, ["x.tif"]).examine(0).problem
    assert problem == "the file has 17,179,869,184 bytes; the limit is 1,431,655,760"


@pytest.mark.parametrize("name", sorted(name for name, (_, size) in FILES.items() if size is not None))
def test_a_large_image_is_converted_in_bands_to_the_same_pixels(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(FILES[name][0])
    whole = decode(tmp_path / name)
    monkeypatch.setattr("uda.data.decoding._BAND_PIXELS", 80)
    assert torch.equal(decode(tmp_path / name), whole)


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(FILES["plain.png"][0])
    inside, most, convert = [], [], decoding._decode

    def slowly(*arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return convert(*arguments)

    monkeypatch.setattr(decoding, "_decode", slowly)
    monkeypatch.setattr(decoding, "_LARGE_PIXELS", 24 * 36 - 1)
    images = ImageFiles(tmp_path, sorted(os.listdir(tmp_path)))
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(images.examine, range(6))) == [ImageFacts()] * 6
    assert max(most) == 1


# ---- numbers of more than 8 bits

GREY = picture()[:, :, 0]


def grey_of(tmp_path, content, **rules):
    (tmp_path / "x.tif").write_bytes(content)
    image = decode(tmp_path / "x.tif", ReadingSettings(**rules))
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    return image[0].numpy()


@pytest.mark.parametrize(
    "content",
    [
        tiff((GREY / 255).astype(np.float32), 3),
        tiff(GREY.astype(np.float32), 3),
        tiff(GREY.astype(np.int32), 2),
        tiff(GREY.astype(np.uint16)),
        tiff(GREY.astype(np.uint16) * 16),
        tiff(GREY.astype(np.uint16) * 257),
        tiff(GREY.astype(np.int32) * 257, 2),
        saved(GREY.astype(np.uint16) * 257, "PNG"),
        saved(Image.fromarray(GREY.astype(">u2") * 257), "TIFF"),
        b"P5 36 24 65535\n" + (GREY.astype(">u2") * 257).tobytes(),
    ],
    ids=[
        "0..1",
        "float 0..255",
        "int32",
        "uint16 to 255",
        "12 bits",
        "16 bits",
        "int32 to 65535",
        "PNG",
        "I;16B",
        "PGM",
    ],
)
def test_a_grey_image_looks_the_same_in_any_range(tmp_path, content):
    """Of 12 bits 4080 is the highest here, 254.06 of 255."""
    assert abs(grey_of(tmp_path, content).astype(int) - GREY).max() <= 1


def test_a_dark_image_is_dark_where_its_file_names_white(tmp_path):
    """2000 of 65535 is 7.8 of 255."""
    dark = np.full((4, 5), 2000, np.uint16)
    assert (grey_of(tmp_path, b"P5 5 4 65535\n" + dark.astype(">u2").tobytes()) == 8).all()


def test_white_level_rules_every_deep_image_and_what_is_above_is_white(tmp_path):
    """100 of 1000 is a tenth of 255."""
    values = np.array([[0, 100, 1000, 3000]])
    for content in (tiff(values.astype(np.uint16)), tiff(values.astype(np.float32), 3)):
        assert grey_of(tmp_path, content, white_level=1000).tolist() == [[0, 26, 255, 255]]


@pytest.mark.parametrize(
    ("values", "sample_format", "message"),
    [
        (np.array([[0, -1]], np.int32), 2, "it holds negative numbers, down to -1"),
        (np.array([[0, np.nan]], np.float32), 3, "it holds numbers that are not finite"),
        (np.array([[0, np.inf]], np.float32), 3, "it holds numbers that are not finite"),
        (
            np.array([[0, 256]], np.float32),
            3,
            "it holds floats up to 256: set data.white_level to the value that is white",
        ),
        (np.array([[0, 65536]], np.int32), 2, "it holds integers up to 65536: set data.white_level"),
    ],
)
def test_numbers_without_a_white_are_named(tmp_path, values, sample_format, message):
    (tmp_path / "x.tif").write_bytes(tiff(values, sample_format))
    with pytest.raises(ValueError, match=f"^{message}"):
        decode(tmp_path / "x.tif")


def test_16_bits_a_colour_that_pil_would_make_black_are_named(tmp_path):
    colours = picture().astype(np.uint16)
    for content in (deep_png(colours * 257), tiff(colours * 257)):
        (tmp_path / "x.tif").write_bytes(content)
        image = decode(tmp_path / "x.tif", ReadingSettings(white_level=65535)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image, picture())
        with pytest.raises(ValueError, match="it has 16 bits per colour, of which PIL keeps the upper 8; data"):
            decode(tmp_path / "x.tif", ReadingSettings(white_level=4095))
    for content in (deep_png(colours * 16), tiff(colours * 16)):
        (tmp_path / "x.tif").write_bytes(content)
        with pytest.raises(ValueError, match="it has 16 bits per colour and no value above 4095"):
            decode(tmp_path / "x.tif")


def checked(root, **rules):
    """What is said of all files of a folder."""
    lines = []
    images = ImageFiles(root, sorted(os.listdir(root)), reading=ReadingSettings(**rules))
    check_readable(images, 0.0, lines.append)
    return lines


def test_a_range_that_was_guessed_is_told_once_and_images_may_not_disagree(tmp_path):
    bright, dark = GREY.astype(np.uint16) * 257, np.full((4, 4), 2000, np.uint16)
    for i in range(2):
        (tmp_path / f"{i}.tif").write_bytes(tiff(GREY.astype(np.uint16) * 16))
    told = (
        f"2 of 2 images of {tmp_path} hold integers up to 4095, which is read as white; data.white_level sets another"
    )
    assert checked(tmp_path) == [told]
    assert checked(tmp_path, white_level=4095) == []
    (tmp_path / "black.tif").write_bytes(tiff(np.zeros((4, 4), np.uint16)))  # in any range
    assert len(checked(tmp_path)) == 1
    for i in range(2):
        (tmp_path / f"{i}.tif").write_bytes(tiff(bright))
    assert checked(tmp_path) == []
    (tmp_path / "dark.tif").write_bytes(tiff(dark))
    with pytest.raises(UserError) as found:
        checked(tmp_path)
    assert str(found.value) == (
        f"{tmp_path}: images of integers disagree on which value is white (dark.tif has none above 4095; 1.tif has "
        "none above 65535): set it, for example data.white_level=65535"
    )
    assert checked(tmp_path, white_level=65535) == []
    assert (decode(tmp_path / "dark.tif", ReadingSettings(white_level=65535)) == 8).all()


# ---- transparency


def files_of_a_clear_ground():
    """A black square of two pixels on a transparent ground of hidden red, in each way to say so; and where it lies."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :, 0] = 200
    rgba[1:3, 1:3] = (0, 0, 0, 255)
    opaque = np.zeros((4, 4), bool)
    opaque[1:3, 1:3] = True
    indices = Image.fromarray(opaque.astype(np.uint8), "L").convert("P")
    indices.putpalette([200, 0, 0, 0, 0, 0])
    grey = np.where(opaque, 0, 99).astype(np.uint8)
    colours = np.where(opaque[:, :, None], 0, np.array([200, 0, 0])).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    return {
        "rgba.png": saved(rgba, "PNG"),
        "la.png": saved(Image.fromarray(rgba).convert("LA"), "PNG"),
        "p.png": saved(indices, "PNG", transparency=0),
        "p_bytes.png": saved(indices, "PNG", transparency=b"\0\xff"),
        "l.png": saved(grey, "PNG", transparency=99),
        "rgb.png": png(4, 4, rows, before=[(b"tRNS", b"\0\xc8\0\0\0\0")]),
        "deep.png": deep_png(np.where(opaque, 0, 9999).astype(np.uint16), 0, before=[(b"tRNS", b"\x27\x0f")]),
        "rgba16.png": deep_png(rgba.astype(np.uint16) * 257, 6),
        "x.gif": saved(indices, "GIF", transparency=0),
        "x.webp": saved(rgba, "WEBP", lossless=True),
        "x.tif": saved(rgba, "TIFF"),
        "x.avif": saved(rgba, "AVIF", quality=100, subsampling="4:4:4"),
    }, opaque


CLEAR, OPAQUE = files_of_a_clear_ground()


@pytest.mark.parametrize("name", sorted(CLEAR))
def test_what_is_transparent_lies_on_the_background(tmp_path, name):
    (tmp_path / name).write_bytes(CLEAR[name])
    for colour, values in (("white", (255, 255, 255)), ("#ff8000", (255, 128, 0))):
        expected = np.where(OPAQUE[:, :, None], 0, np.array(values))
        image = decode(tmp_path / name, ReadingSettings(background=colour)).permute(1, 2, 0).numpy().astype(int)
        assert abs(image - expected).max() <= (8 if name.endswith("avif") else 0)
    assert checked(tmp_path) == [
        f"1 of 1 images of {tmp_path} are partly transparent; data.background=white is put there"
    ]


def test_the_hardness_tools_read_by_the_same_rules(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clear.png").write_bytes(CLEAR["rgba.png"])
    lines = []
    data = load_images(str(tmp_path), StorageSettings(background="blue"), lines.append)
    assert lines == [f"2 of 2 images of {tmp_path} are partly transparent; data.background=blue is put there"]
    assert data.images.read(0)[:, 0, 0].tolist() == [0, 0, 255]


def test_a_fifth_of_a_colour_and_the_rest_of_the_background(tmp_path):
    """51 of 255 is a fifth: a fifth of 100 and four fifths of 255 are 224."""
    (tmp_path / "x.png").write_bytes(saved(np.full((2, 2, 4), (100, 100, 100, 51), np.uint8), "PNG"))
    assert (decode(tmp_path / "x.png") == 224).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_opaque_alpha_channel_changes_nothing(tmp_path, kind):
    alpha = np.dstack([picture(), np.full((24, 36), 255, np.uint8)])
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "x.png").write_bytes(saved(alpha, kind, **options))
    np.testing.assert_array_equal(decode(tmp_path / "x.png").permute(1, 2, 0).numpy(), picture())
    assert checked(tmp_path) == []


@pytest.mark.parametrize("colour", ["wite", "#12", "#ffffff80", ""])
def test_a_background_is_an_opaque_colour(colour):
    with pytest.raises(
        ValueError, match=f"'{colour}' is not an opaque colour; give a name such as white, or '#rrggbb'"
    ):
        ReadingSettings(background=colour)


# ---- EXIF orientation


def upright(values, orientation):
    """By the standard's table: where the stored picture's first row and first column belong."""
    return {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1],
        5: values.transpose(1, 0, 2), 6: np.rot90(values, -1), 7: np.rot90(values, 2).transpose(1, 0, 2),
        8: np.rot90(values),
    }[orientation]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "pil", "PNG", "WEBP"])
def test_an_image_is_turned_as_its_orientation_says_where_that_is_asked_for(tmp_path, kind, orientation, monkeypatch):
    if kind == "pil":
        monkeypatch.setattr("uda.data.decoding.decode_jpeg", None)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = turned(orientation, "JPEG" if kind == "pil" else kind, **options)
    (tmp_path / "x.jpg").write_bytes(content)
    as_stored = decode(tmp_path / "x.jpg")
    image = decode(tmp_path / "x.jpg", ReadingSettings(exif_orientation="apply"))
    np.testing.assert_array_equal(
        image.permute(1, 2, 0).numpy(), upright(as_stored.permute(1, 2, 0).numpy(), orientation)
    )
    assert as_stored.shape == (3, 24, 36) and image.permute(1, 2, 0).is_contiguous()
    ignored = (
        f"1 of 1 images of {tmp_path} have an EXIF orientation, which is ignored; data.exif_orientation=apply turns"
    )
    assert [line.startswith(ignored) for line in checked(tmp_path)] == [True] * (orientation != 1)
    assert checked(tmp_path, exif_orientation="apply") == []


@pytest.mark.parametrize("rule", ["ignore", "apply"])
def test_a_store_holds_turned_images_in_their_own_shape(tmp_path, rule):
    root = tmp_path / "images"
    root.mkdir()
    for orientation in range(1, 9):
        (root / f"{orientation}.jpg").write_bytes(turned(orientation))
        (root / f"{orientation}.png").write_bytes(turned(orientation, "PNG"))
        (root / f"{orientation}.tif").write_bytes(turned(orientation, "TIFF"))
    (root / "huge.jpg").write_bytes(FILES["huge_header.jpg"][0])
    paths, reading = sorted(os.listdir(root)), ReadingSettings(exif_orientation=rule, load_size=20)
    (store,) = open_stores([take_inventory(root, paths, reading)], tmp_path / "store", 0.001, lambda line: None)
    images = ImageFiles(root, paths, reading=reading, store=store)
    readable = check_readable(images, 0.1, lambda line: None)
    assert len(readable) == 24
    for _ in range(2):
        for i in readable:
            assert torch.equal(images.read(i), decode(root / paths[i], reading))
    assert store.held == 24
