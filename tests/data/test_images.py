import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.trees import make_folders, write_image
from uda.data.images import ImageArray, ImageFiles, check_readable, decode
from uda.errors import UserError


@pytest.fixture(params=["torchvision", "pil"])
def decoder(request, monkeypatch):
    if request.param == "pil":
        monkeypatch.setattr("uda.data.images.decode_image", None)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".gif", ".ppm"])
def test_every_format_gives_the_pixels_that_were_saved(tmp_path, suffix):
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[:, :3], pixels[2:, 4:] = (255, 0, 0), (0, 0, 255)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    image = decode(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "image.png")
    np.testing.assert_array_equal(decode(tmp_path / "image.png").permute(1, 2, 0).numpy(), pixels)


@pytest.mark.usefixtures("decoder")
def test_16_bits_are_rounded_to_8(tmp_path):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png")[0, 0].tolist() == [0, 0, 1, 1, 128, 255]


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
    assert ImageFiles(tmp_path, ["a/a_0.jpg"]).problem(0) is None


def test_reading_a_broken_file_names_it(tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.png: cannot be read as an image: no known image format; mend or remove"):
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
