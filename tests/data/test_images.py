import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as image_functions

import uda.data.decoding
from tests.data.files import gallery, picture, saved
from tests.data.trees import make_folders, write_image
from uda.core.errors import UserError
from uda.data.images import ImageArray, ImageFiles, check_readable, decode
from uda.data.settings import ReadingSettings


@pytest.fixture(params=["torchvision", "pil"])
def decoder(request, monkeypatch):
    if request.param == "pil":
        monkeypatch.setattr("uda.data.decoding.decode_jpeg", None)


def noise_png(random, size=(20, 12), **options):
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(buffer, "png", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".gif", ".ppm"])
def test_every_format_gives_the_pixels_that_were_saved(tmp_path, suffix):
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[:, :3], pixels[2:, 4:] = (255, 0, 0), (0, 0, 255)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    image = decode(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "image.png")
    np.testing.assert_array_equal(decode(tmp_path / "image.png").permute(1, 2, 0).numpy(), pixels)


def test_16_bits_are_rounded_to_8(tmp_path):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png")[0, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.usefixtures("decoder")
def test_jpegs_of_all_kinds(tmp_path):
    make_folders(tmp_path, ["a"], per_class=1)
    with Image.open(tmp_path / "a" / "a_0.jpg") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
        for mode in ("L", "CMYK"):
            image.convert(mode).save(tmp_path / f"{mode}.jpg", quality=95)
        image.save(tmp_path / "RGB.jpg", quality=95, progressive=True)
    for mode in ("RGB", "CMYK"):
        decoded = decode(tmp_path / f"{mode}.jpg").permute(1, 2, 0).numpy()
        assert decoded.shape == (32, 40, 3) and abs(decoded - expected).mean() < 6
    grey = decode(tmp_path / "L.jpg")
    assert grey.shape == (3, 32, 40) and torch.equal(grey[0], grey[1])


def test_without_torchvisions_decoder_pil_takes_its_place(tmp_path, monkeypatch):
    make_folders(tmp_path, ["a"], per_class=1)
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    spec = importlib.util.spec_from_file_location("decoding_of_a_later_torchvision", uda.data.decoding.__file__)
    spec.loader.exec_module(later := importlib.util.module_from_spec(spec))
    assert later.decode_jpeg is None
    image = later.decode_content((tmp_path / "a" / "a_0.jpg").read_bytes(), ReadingSettings())
    assert (image.float() - decode(tmp_path / "a" / "a_0.jpg").float()).abs().max() <= 4


@pytest.mark.parametrize(
    ("size", "kept"), [((60, 40), (30, 20)), ((41, 97), (20, 47)), ((20, 50), (20, 50)), ((12, 90), (12, 90))]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_load_size_shrinks_the_shorter_side_and_never_enlarges(tmp_path, size, kept, suffix):
    write_image(tmp_path / f"image{suffix}", 3, np.random.default_rng(0), size)
    whole, small = (
        decode(tmp_path / f"image{suffix}"),
        decode(tmp_path / f"image{suffix}", ReadingSettings(load_size=20)),
    )
    assert whole.shape == (3, size[1], size[0]) and small.shape == (3, kept[1], kept[0])
    expected = image_functions.resize(whole, [kept[1], kept[0]], antialias=True)
    assert small.dtype == torch.uint8
    assert torch.equal(small, expected)
    assert small.stride() == whole.permute(1, 2, 0)[: kept[1], : kept[0]].contiguous().permute(2, 0, 1).stride()


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("times", [4, 5, 9])
def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path, mode, times, monkeypatch):
    """Smooth pictures, whose shrunk pixels no order of filters changes much."""
    y, x = np.mgrid[: 20 * times, : 30 * times] / (10 * times)
    pixels = 128 + 100 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(tmp_path / "large.jpg", quality=95)
    expected = image_functions.resize(decode(tmp_path / "large.jpg"), [20, 30], antialias=True)
    small = decode(tmp_path / "large.jpg", ReadingSettings(load_size=20))
    assert small.shape == (3, 20, 30)
    assert (small.float() - expected.float()).abs().mean() < 2
    seen, in_bands = [], uda.data.decoding._in_bands
    monkeypatch.setattr(
        "uda.data.decoding._in_bands", lambda image, *rest: seen.append(image) or in_bands(image, *rest)
    )
    monkeypatch.setattr("uda.data.decoding.decode_jpeg", None)
    assert torch.equal(decode(tmp_path / "large.jpg", ReadingSettings(load_size=20)), small)
    assert 20 <= seen[0].height < 20 * times / 3


def test_every_way_to_keep_images_obeys_load_size(tmp_path):
    make_folders(tmp_path, ["a"], per_class=2)
    kept = ImageFiles(tmp_path, ["a/a_0.jpg", "a/a_1.jpg"], "memory", reading=ReadingSettings(load_size=16))
    check_readable(kept, 0.0, print)
    for images in (
        kept,
        kept.take(np.array([0, 1])),
        ImageFiles(tmp_path, kept.ids, reading=ReadingSettings(load_size=16)),
    ):
        assert torch.equal(images.read(1), decode(tmp_path / "a" / "a_1.jpg", ReadingSettings(load_size=16)))
        assert images.read(1).shape == (3, 16, 20)


def test_every_damaged_byte_of_a_png_is_found_and_no_shorter_file_passes(tmp_path):
    content = noise_png(np.random.default_rng(0), size=(6, 5), dpi=(72, 72))
    path, images = tmp_path / "x.png", ImageFiles(tmp_path, ["x.png"])
    path.write_bytes(content + b"trailing")
    assert images.examine(0).problem is None
    for at in range(len(content)):
        for bit in (0x01, 0x80):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            assert images.examine(0).problem is not None, f"bit {bit} of byte {at}"
            with pytest.raises(UserError, match=r"x\.png: cannot be read as an image: .*; repair or remove the file"):
                images.read(0)
        path.write_bytes(content[:at])
        assert images.examine(0).problem is not None, f"cut at {at}"


#: Reads files with damage, as a loader does, in a process of its own: the decoders are C, and may crash.
READ_ALL = """
import sys
from pathlib import Path
from uda.data.images import ImageFiles
from uda.core.errors import UserError
root = Path(sys.argv[1])
images, refused = ImageFiles(root, sorted(path.name for path in root.iterdir())), 0
for i in range(len(images)):
    found = images.examine(i).problem
    try:
        assert images.read(i).ndim == 3 and found is None
    except UserError as error:
        assert images.ids[i] in str(error) and "repair or remove the file" in str(error) and found in str(error)
        refused += 1
print(len(images), refused)
print("heard", file=sys.stderr)
"""


def test_damaged_files_never_crash_the_process_and_no_library_writes_a_word(tmp_path):
    """Warnings of PIL, libjpeg and libtiff name no file. What Python writes to standard error afterwards comes out."""
    random = np.random.default_rng(0)
    jpeg, odd = saved(picture(), "JPEG"), gallery()
    tiff = saved(picture(), "TIFF", compression="tiff_adobe_deflate")
    files = {"sound.jpg": jpeg, "stream.tif": tiff[:20] + bytes(60) + tiff[80:]}
    files |= {f"odd_{name}": content for name, (content, _) in odd.items()}
    for i in range(60):
        for kind, content in (("png", noise_png(random)), ("jpg", jpeg)):
            damaged = bytearray(content)
            # Every third keeps to the first 200 bytes, where a JPEG has its tables.
            damaged[random.integers(200 if i % 3 else len(damaged))] ^= int(random.integers(1, 256))
            files[f"{i}.{kind}"] = bytes(damaged)
    (tmp_path / "all").mkdir()
    for name, content in files.items():
        (tmp_path / "all" / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", READ_ALL, str(tmp_path / "all")],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "heard\n")
    count, refused = map(int, done.stdout.split())
    assert count == len(files)
    # The stream, every PNG, and of the JPEGs the fewer: libjpeg decodes most in spite of the damage.
    assert 61 <= refused - sum(size is None for _, size in odd.values()) <= 101


def broken_tree(root):
    """Twelve sound images, and four that cannot be read."""
    make_folders(root, ["a", "b", "c"], per_class=4)
    write_image(root / "a" / "png.png", 0, np.random.default_rng(0))
    for name in ("a/a_0.jpg", "a/png.png"):
        content = (root / name).read_bytes()
        (root / name.replace("a/", "a/cut_")).write_bytes(content[: len(content) // 2])
    (root / "a" / "png.png").unlink()
    (root / "b" / "empty.jpg").touch()
    (root / "b" / "text.jpg").write_text("not an image")
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    return paths, {"a/cut_a_0.jpg", "a/cut_png.png", "b/empty.jpg", "b/text.jpg"}


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_truncated_empty_and_foreign_files_are_found_and_listed(tmp_path, cache):
    paths, broken = broken_tree(tmp_path)
    images, lines = ImageFiles(tmp_path, paths, cache), []
    readable = check_readable(images, 0.25, lines.append)
    assert {paths[i] for i in range(16)} - {paths[i] for i in readable} == broken
    assert readable.tolist() == sorted(readable) and readable.dtype == np.int64
    assert {line.split(": ")[1] for line in lines[:-1]} == broken
    assert any("b/empty.jpg: the file is empty" in line for line in lines)
    assert lines[-1] == "4 of 16 images cannot be read and are left out"
    for image in map(images.take(readable).read, range(12)):
        assert image.shape == (3, 32, 40)


def test_the_check_says_how_far_it_is(tmp_path, monkeypatch):
    paths, _ = broken_tree(tmp_path)
    monkeypatch.setattr("uda.core.progress.SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    lines = []
    check_readable(ImageFiles(tmp_path, paths), 0.25, lines.append)
    assert [line.split(",")[0] for line in lines[:15]] == [f"checking images: {done}/16" for done in range(1, 16)]


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    paths, _ = broken_tree(tmp_path)
    with pytest.raises(
        UserError, match=r"4 of 16 images of .* more than data.max_unreadable=0.24 .*a/cut_a_0.jpg: .*and 1 more"
    ):
        check_readable(ImageFiles(tmp_path, paths), 0.24, lambda line: None)
    with pytest.raises(UserError, match="1 of 1"):
        check_readable(ImageFiles(tmp_path, ["b/text.jpg"]), 1.0, lambda line: None)


def test_a_jpeg_with_bytes_after_its_end_is_sound(tmp_path):
    make_folders(tmp_path, ["a"], per_class=1)
    with (tmp_path / "a" / "a_0.jpg").open("ab") as file:
        file.write(b"camera's own data")
    assert ImageFiles(tmp_path, ["a/a_0.jpg"]).examine(0).problem is None


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_jpeg_damaged_behind_its_first_bytes_is_found_before_it_is_read(tmp_path, cache):
    """Its header is zeroed, or its frame has another marker; one wrong bit in its picture is decoded all the same."""
    make_folders(tmp_path, ["a"], per_class=1)
    content = (tmp_path / "a" / "a_0.jpg").read_bytes()
    (tmp_path / "header.jpg").write_bytes(content[:3] + bytes(400) + content[403:])
    frame = content.index(b"\xff\xc0")
    (tmp_path / "frame.jpg").write_bytes(content[:frame] + b"\xff\xc5" + content[frame + 2 :])
    scan = content.index(b"\xff\xda") + 40
    (tmp_path / "scan.jpg").write_bytes(content[:scan] + bytes([content[scan] ^ 0x55]) + content[scan + 1 :])
    images, lines = ImageFiles(tmp_path, ["frame.jpg", "scan.jpg", "header.jpg"], cache), []
    assert check_readable(images, 0.7, lines.append).tolist() == [1]
    assert lines[1] == "unreadable image: header.jpg: a JPEG with a damaged header, or of a kind unknown to PIL"
    assert images.read(1).shape == (3, 32, 40)
    for i, name in ((0, "frame"), (2, "header")):
        with pytest.raises(UserError, match=rf"{name}\.jpg: cannot be read as an image: .*; repair or remove the file"):
            images.read(i)
    (tmp_path / "header.jpg").unlink()
    (tmp_path / "frame.jpg").unlink()
    rest = ImageFiles(tmp_path, ["scan.jpg"], cache)
    assert [rest.ids[i] for i in check_readable(rest, 0.0, print)] == ["scan.jpg"]


def test_a_file_that_changes_under_the_run_is_named_with_the_cure(tmp_path):
    make_folders(tmp_path, ["a"], per_class=3)
    images = ImageFiles(tmp_path, [f"a/a_{i}.jpg" for i in range(3)])
    assert check_readable(images, 0.0, print).tolist() == [0, 1, 2]
    (tmp_path / "a" / "a_0.jpg").unlink()
    (tmp_path / "a" / "a_1.jpg").write_bytes(b"")
    (tmp_path / "a" / "a_2.jpg").unlink()
    os.mkfifo(tmp_path / "a" / "a_2.jpg")  # a read of it would wait for ever
    back = "restore the file"
    for i, reason in enumerate(
        [
            f"cannot be read: No such file or directory; {back}",
            "cannot be read as an image: the file is empty; repair or remove the file",
            f"cannot be read: it is not a file; {back}",
        ]
    ):
        with pytest.raises(UserError) as found:
            images.read(i)
        assert str(found.value) == f"{tmp_path}/a/a_{i}.jpg: {reason}"


def test_reading_a_broken_file_names_it(tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.png: cannot be read as an image: no known image format; repair or remove"):
        ImageFiles(tmp_path, ["x.png"]).read(0)
    with pytest.raises(UserError, match=r"gone\.png"):
        ImageFiles(tmp_path, ["gone.png"]).read(0)


def test_the_cache_keeps_what_was_decoded(tmp_path):
    make_folders(tmp_path, ["a"], per_class=2)
    kept = ImageFiles(tmp_path, ["a/a_0.jpg", "a/a_1.jpg"], "memory")
    plain = ImageFiles(tmp_path, kept.ids)
    check_readable(kept, 0.0, print)
    expected = plain.read(1)
    for name in kept.ids:
        (tmp_path / name).unlink()
    assert torch.equal(kept.read(1), expected)
    assert torch.equal(kept.take(np.array([1])).read(0), expected)
    with pytest.raises(UserError):
        plain.read(1)


def test_arrays(tmp_path):
    array = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    images = ImageArray(array, ["one", "two"])
    assert len(images) == 2
    np.testing.assert_array_equal(images.take(np.array([1])).read(0).numpy(), array[1])
    assert check_readable(images, 0.0, print).tolist() == [0, 1]
    with pytest.raises(ValueError, match="uint8"):
        ImageArray(array.astype(np.float32), ["one", "two"])
