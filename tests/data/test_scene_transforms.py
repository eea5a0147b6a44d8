"""Image and label map stay aligned through every random change, because one seed decides it for both."""

import numpy as np
import pytest
import torch

from tests.data.scene_trees import RED, make_scenes, scene
from uda.data.images import ImageFiles
from uda.data.label_coding import VOID
from uda.data.scene_settings import SceneAugmentSettings, SceneTransformSettings
from uda.data.scene_transforms import ScenePredict, SceneTrain
from uda.data.settings import ReadingSettings
from uda.data.store import open_stores, take_inventory

NO_SHIFT = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}


def tensors(seed=0, **options):
    image, numbers = scene(seed, **options)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(numbers)


def train(crop, augment=None, **settings):
    return SceneTrain(
        SceneTransformSettings(crop=crop, **NO_SHIFT, **settings), SceneAugmentSettings(**(augment or {}))
    )


def reds(labels):
    """Red of each pixel of a map, if the image is aligned to it. Void has the mean colour, 0.1 * 255."""
    return np.where(labels == VOID, 26, RED[np.minimum(labels, 4)])


@pytest.mark.parametrize("size", [(24, 32), (60, 40), (16, 100)])
def test_at_scale_1_each_pixel_keeps_its_label(size):
    """Crop, padding and mirror move pixels and change none."""
    image, numbers = tensors(size=size)
    transform = train((32, 48), {"flip": True})
    mirrored = padded = 0
    for seed in range(40):
        pixels, labels = transform(image, numbers, seed)
        assert pixels.shape == (3, 32, 48) and labels.shape == (32, 48)
        assert pixels.dtype == labels.dtype == torch.uint8
        assert (pixels[0].numpy() == reds(labels.numpy())).all()
        outside = labels == VOID
        padded += int(outside.any())
        assert (pixels[1:, outside] == torch.tensor([[51], [76]])).all()
        seen = pixels[:, :, (~outside).any(0)][:, (~outside).any(1)].numpy()
        assert seen.shape == (3, min(32, size[0]), min(48, size[1]))
        windows = np.lib.stride_tricks.sliding_window_view(image.numpy(), seen.shape).reshape(-1, *seen.shape)
        straight, turned = ((windows == part).all((1, 2, 3)).any() for part in (seen, seen[:, :, ::-1]))
        assert straight ^ turned, "the crop is a part of the image, or of its mirror image"
        mirrored += turned
    assert 8 <= mirrored <= 32 and padded == (40 if size[0] < 32 or size[1] < 48 else 0)


def misplaced(transform, image, numbers):
    """Mean share of pixels whose red differs from their label's by more than half the step between two classes."""
    shares = []
    for seed in range(60):
        pixels, labels = transform(image, numbers, seed)
        inside = (labels != VOID).numpy()
        far = np.abs(pixels[0].numpy().astype(int) - reds(labels.numpy())) > 42
        shares.append((far & inside).sum() / inside.sum())
    return np.mean(shares)


@pytest.mark.parametrize("settings", [{}, {"resize": (40, 90)}])
def test_at_any_scale_the_map_lies_on_the_image(settings):
    """Blocks of 4 pixels are of one class. A map that is moved by one pixel is far worse."""
    image, numbers = tensors(size=(48, 64))
    transform = train((40, 56), {"scale": (0.7, 2.5), "flip": True}, **settings)
    assert misplaced(transform, image, numbers) < 0.002
    assert misplaced(transform, image, numbers.roll(1, 1)) > 0.04
    assert misplaced(transform, image, numbers.roll(1, 0)) > 0.04


def test_a_part_is_that_part_of_the_whole_resized_image():
    image, numbers = tensors(size=(48, 64))
    whole = ScenePredict(SceneTransformSettings(resize=(77, 99), **NO_SHIFT))(image)
    transform = train((30, 40), resize=(77, 99))
    for seed in range(5):
        pixels, _ = transform(image, numbers, seed)
        windows = np.lib.stride_tricks.sliding_window_view(whole.numpy(), (3, 30, 40))[0].astype(int)
        assert np.abs(windows - pixels.numpy().astype(int)).max((2, 3, 4)).min() <= 1


def test_shrinking_is_antialiased_and_labels_take_the_value_in_the_middle():
    """Columns of 0 and 200 in turn become grey 100. At half the size, the middle of two pixels is the second one."""
    stripes = torch.zeros(3, 32, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    numbers = torch.arange(64, dtype=torch.uint8).expand(32, 64)
    pixels, labels = train((16, 32), {"scale": (0.5, 0.5)})(stripes, numbers, 0)
    assert (pixels[:, :, 1:-1].int() - 100).abs().max() <= 1
    assert labels[0].tolist() == list(range(1, 64, 2))


def test_a_map_on_a_coarser_grid_is_stretched():
    image, numbers = tensors(size=(24, 32))
    for seed in range(10):
        pixels, labels = train((16, 20), {"flip": True})(image, numbers[2::4, 2::4], seed)
        assert (pixels[0].numpy() == reds(labels.numpy())).all()


def test_the_seed_decides_everything():
    image, numbers = tensors()
    transform = train((16, 16), {"scale": (0.5, 2), "flip": True, "jitter": 0.4, "blur": 0.5})
    first = [transform(image, numbers, seed) for seed in range(12)]
    for seed, (pixels, labels) in enumerate(first):
        again = transform(image.contiguous(memory_format=torch.preserve_format), numbers, seed)
        assert torch.equal(again[0], pixels) and torch.equal(again[1], labels)
    assert len({pixels.numpy().tobytes() for pixels, _ in first}) == 12
    assert torch.equal(image, tensors()[0]), "the caller's image is unchanged"


def test_jitter_and_blur_change_the_image_only():
    image, numbers = tensors()
    plain, changed = train((16, 16), {"flip": True}), train((16, 16), {"flip": True, "jitter": 0.5, "blur": 1.0})
    for seed in range(10):
        pixels, labels = plain(image, numbers, seed)
        other, same = changed(image, numbers, seed)
        assert torch.equal(labels, same) and not torch.equal(pixels, other)
    blurred, _ = train((16, 16), {"blur": 1.0})(image, numbers, 3)
    kept, _ = train((16, 16))(image, numbers, 3)
    assert blurred[1].float().diff().abs().mean() < 0.9 * kept[1].float().diff().abs().mean()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_crop_around_a_pixel(scale):
    image, numbers = tensors(size=(64, 64))
    numbers = torch.zeros_like(numbers)
    numbers[50, 20] = 4
    transform = train((16, 16), {"scale": (scale, scale)})
    for seed in range(10):
        _, labels = transform(image, numbers, seed, centre=(50, 20))
        rows, columns = (labels == 4).nonzero(as_tuple=True)
        assert len(rows) == scale**2 and (rows - 8).abs().max() <= 1 and (columns - 8).abs().max() <= 1
    _, labels = transform(image, numbers, 0, centre=(0, 63))  # the crop stays within the scene
    _, corner = transform(image, numbers, 5, centre=(0, 63))
    assert torch.equal(labels, corner) and (labels != VOID).all()
    assert sum((transform(image, numbers, seed)[1] == 4).any() for seed in range(20)) < 20


def test_without_a_map_everything_is_void():
    image, _ = tensors()
    pixels, labels = train((16, 16))(image, None, 0)
    assert (labels == VOID).all() and pixels.float().std() > 1


def test_grey_images_and_grey_networks():
    image, numbers = tensors()
    grey = SceneTrain(
        SceneTransformSettings(crop=(16, 16), mean=(0.5,), std=(0.5,)), SceneAugmentSettings(scale=(1.5, 1.5))
    )
    assert grey(image, numbers, 0)[0].shape == (1, 16, 16)
    colour = train((16, 16), {"scale": (1.5, 1.5), "jitter": 0.2})
    pixels, _ = colour(image[:1], numbers, 0)
    assert pixels.shape == (3, 16, 16)


def test_predicting_sees_the_whole_image():
    image, _ = tensors(size=(24, 32))
    assert torch.equal(ScenePredict(SceneTransformSettings(**NO_SHIFT))(image), image)
    assert ScenePredict(SceneTransformSettings(**NO_SHIFT), resize=(30, 50))(image).shape == (3, 30, 50)
    flat = torch.full((3, 24, 32), 77, dtype=torch.uint8)
    assert (ScenePredict(SceneTransformSettings(resize=(9, 50), **NO_SHIFT))(flat) == 77).all()


def test_the_decoded_store_gives_the_same_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("uda.data.store.SPARE_BYTES", 0)
    root = make_scenes(tmp_path / "own", size=(48, 64)) / "images"
    names = [f"{i:03d}.png" for i in range(4)]
    (store,) = open_stores([take_inventory(root, names, ReadingSettings())], tmp_path / "store", 1, print)
    plain, stored = ImageFiles(root, names), ImageFiles(root, names, store=store)
    numbers = torch.from_numpy(scene(0, size=(48, 64))[1])
    transform = train((20, 24), {"scale": (0.5, 2), "flip": True})
    for seed in range(12):
        stored.read(seed % 4)
        part = stored.open(seed % 4)
        assert not isinstance(part, torch.Tensor)
        found, wanted = transform(part, numbers, seed), transform(plain.read(seed % 4), numbers, seed)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
