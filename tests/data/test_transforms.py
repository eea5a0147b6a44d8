import math
import pickle
import random
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform
from torchvision.transforms.v2 import RandAugment, RandomResizedCrop
from torchvision.transforms.v2 import functional as image_functions

from uda.core.errors import UserError
from uda.data.settings import AugmentSettings, TransformSettings
from uda.data.transforms import inverse_maps, make_predict, make_train, random_box, warp

CROP = TransformSettings(size=16, resize=20)
SQUASH = TransformSettings(size=16, resize=20, squash=True)
AFFINE = TransformSettings(kind="affine", size=12, mean=(0.2,), std=(0.5,))
CROP_AUGMENT = AugmentSettings(scale=(0.5, 1), flip=True, jitter=0.3)
AFFINE_AUGMENT = AugmentSettings(
    scale=(0.8, 1.2), degrees=15, shear=10, translate=0.1, flip=True, jitter=0.3, noise=0.05
)


def images(*sizes, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (channels, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]


def cases():
    yield "crop", make_train(CROP, CROP_AUGMENT), images((30, 24), (18, 40), (25, 25))
    yield "affine", make_train(AFFINE, AFFINE_AUGMENT), images((12, 12), (12, 12), (12, 12), channels=1)


@pytest.mark.parametrize(("transform", "batch"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
def test_an_image_depends_on_its_own_seed_and_on_nothing_else(transform, batch):
    copies = [image.clone() for image in batch]
    whole = transform(batch, [5, 6, 7])
    assert whole.dtype == torch.float32 and whole.shape[0] == 3
    torch.testing.assert_close(whole[[2, 0]], transform([batch[2], batch[0]], [7, 5]), rtol=0, atol=1e-6)
    assert (whole != transform(batch, [8, 9, 10])).flatten(1).any(1).all()
    assert all(torch.equal(image, copy) for image, copy in zip(batch, copies, strict=True))


@pytest.mark.parametrize(("transform", "batch"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
def test_the_global_generator_is_left_alone(transform, batch):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    transform(batch, [1, 2, 3])
    assert torch.equal(torch.rand(3), expected)


def test_predicting_resizes_the_shorter_side_and_takes_the_centre():
    image = images((40, 30))[0]
    out = make_predict(CROP)([image], [0])[0]
    middle = image_functions.resize(image, [26, 20], antialias=True)[:, 5:21, 2:18] / 255  # 40 x 30 -> 26 x 20
    expected = (middle - torch.tensor(CROP.mean).view(3, 1, 1)) / torch.tensor(CROP.std).view(3, 1, 1)
    torch.testing.assert_close(out, expected)


def test_predicting_a_batch_of_one_size_is_the_same_as_one_by_one():
    batch = images((40, 30), (40, 30), (40, 30))
    transform = make_predict(CROP)
    assert torch.equal(transform(batch, [0] * 3), torch.cat([transform([image], [0]) for image in batch]))


def test_an_image_comes_out_the_same_in_channels_last_order():
    """Decoders give (H, W, C); an array in memory has (C, H, W)."""
    for transform in (make_train(CROP, CROP_AUGMENT), make_predict(CROP)):
        for image in images((30, 24), (18, 40)):
            turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
            assert torch.equal(transform([image], [3]), transform([turned], [3]))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_is_the_formula_in_either_order(channels):
    """(x / 255 - mean) / std in float64, a channel, whatever the order of the pixels in memory."""
    transform = make_predict(
        TransformSettings(size=8, resize=8, mean=(0.1, 0.2, 0.7)[:channels], std=(0.5,) * channels)
    )
    (pixels,) = images((2 * 8, 8), channels=channels)
    pixels = pixels.view(channels, 2, 8, 8).transpose(0, 1)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in transform.normalisation)
    expected = ((pixels.double() / 255 - mean) / std).float()
    for order in (torch.contiguous_format, torch.channels_last):
        before = pixels.contiguous(memory_format=order)
        copy = before.clone()
        torch.testing.assert_close(transform.normalise(before), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(transform.normalise(before.float()), expected, rtol=0, atol=1e-6)
        assert torch.equal(before, copy)


def box_figures(boxes, height, width):
    """Mean and spread of a box's area and aspect, and of where it lies between the edges."""
    top, left, h, w = torch.tensor(boxes, dtype=torch.float64).T
    area, aspect = h * w / (height * width), (w / h).log()
    down, right = (top + 0.5) / (height - h + 1), (left + 0.5) / (width - w + 1)
    figures = torch.stack([area, aspect, down, right])
    return torch.cat([figures.mean(1), figures.std(1), torch.quantile(figures, 0.1, dim=1)])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 200)])
def test_crops_are_distributed_as_torchvisions(height, width):
    augment = AugmentSettings(scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
    ours = [random_box(height, width, augment, Random(seed)) for seed in range(4000)]
    theirs = RandomResizedCrop(8, augment.scale, augment.ratio)
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    drawn = [theirs.make_params([image]) for _ in range(4000)]
    expected = [tuple(params[key] for key in ("top", "left", "height", "width")) for params in drawn]
    torch.testing.assert_close(
        box_figures(ours, height, width), box_figures(expected, height, width), rtol=0, atol=0.025
    )


@pytest.mark.parametrize(("height", "width"), [(100, 30), (30, 100), (40, 41), (7, 1), (1, 7)])
def test_a_crop_that_cannot_fit_is_torchvisions_largest_in_the_middle(height, width):
    """With the whole area and an aspect far from the image's no draw fits."""
    augment = AugmentSettings(scale=(1, 1), ratio=(0.6, 0.9) if width > height else (1.2, 1.5))
    params = RandomResizedCrop(8, augment.scale, augment.ratio).make_params([torch.zeros(1, height, width)])
    expected = tuple(params[key] for key in ("top", "left", "height", "width"))
    assert random_box(height, width, augment, Random(0)) == expected


def test_a_training_image_is_its_box_resized_and_in_half_of_all_cases_mirrored():
    augment = AugmentSettings(scale=(0.2, 1), flip=True)
    (image,) = images((60, 50))
    transform = make_train(CROP, augment)
    mirrored = 0
    for seed in range(200):
        box = random_box(60, 50, augment, Random(seed))
        expected = image_functions.resized_crop(image, *box, [16, 16], antialias=True)
        pixels = transform.pixels([image], [seed])[0]
        flipped = not torch.equal(pixels, expected)
        assert not flipped or torch.equal(pixels, expected.flip(-1))
        mirrored += flipped
    assert 75 <= mirrored <= 125


def test_a_squashed_image_is_seen_from_edge_to_edge():
    """The shade of a pixel is its row. Of 40 rows the centre of 16 of 20 is rows 4 to 36: pixels of two rows each.

    Where the aspect is kept they are 16 of 40 rows, 12 to 28.
    """
    rows = (torch.arange(40, dtype=torch.uint8) * 6).view(1, 40, 1).expand(3, 40, 20)
    squashed = make_predict(SQUASH).pixels([rows], [0])[0, 0, :, 0] / 6
    kept = make_predict(CROP).pixels([rows], [0])[0, 0, :, 0] / 6
    assert squashed[0].item() == pytest.approx(4.5, abs=0.2) and squashed[-1].item() == pytest.approx(34.5, abs=0.2)
    assert kept[0].item() == pytest.approx(12, abs=0.2) and kept[-1].item() == pytest.approx(27, abs=0.2)
    (image,) = images((40, 20))
    expected = image_functions.center_crop(image_functions.resize(image, [20, 20], antialias=True), [16, 16])
    assert torch.equal(make_predict(SQUASH).pixels([image], [0])[0], expected)
    flipped = make_train(SQUASH, AugmentSettings(crop="centre", flip=True)).pixels([image] * 8, range(8))
    assert {torch.equal(row, expected) for row in flipped} == {True, False}
    assert all(torch.equal(row, expected) or torch.equal(row, expected.flip(-1)) for row in flipped)


def test_random_crops_are_parts_of_the_image_as_it_is_resized_for_predicting():
    """20 - 16 = 4 spare pixels: five places an axis, all 25 drawn; with the aspect kept the long axis has more."""
    (image,) = images((40, 20))
    for settings, (height, width) in ((SQUASH, (20, 20)), (CROP, (40, 20))):
        whole = image_functions.resize(image, [height, width], antialias=True)
        parts = {
            whole[:, top : top + 16, left : left + 16].contiguous().numpy().tobytes(): (top, left)
            for top in range(height - 15)
            for left in range(width - 15)
        }
        drawn = make_train(settings, AugmentSettings(crop="random")).pixels([image] * 1200, range(1200))
        found = [parts[part.contiguous().numpy().tobytes()] for part in drawn]
        assert set(found) == set(parts.values()), "every place, and no other part"


def test_a_random_resized_crop_of_a_squashed_image_is_cut_where_its_box_lies_in_the_image():
    """Drawn on the square of 20, an area of 1/4 is 1/4 of any image; its aspect is that of the square's part."""
    augment = AugmentSettings(scale=(0.25, 0.25), ratio=(1, 1))
    (image,) = images((80, 40))
    transform = make_train(SQUASH, augment)
    assert transform.cuts
    for seed in range(20):
        top, left, height, width = random_box(20, 20, augment, Random(seed))
        assert (height, width) == (10, 10)
        expected = image_functions.resized_crop(image, 4 * top, 2 * left, 40, 20, [16, 16], antialias=True)
        assert torch.equal(transform.pixels([image], [seed])[0], expected)
    for sizes in ((1, 1), (1, 7), (3, 90)):  # smaller than the square: never nothing
        assert transform.pixels(images(sizes), [1]).shape == (1, 3, 16, 16)


def test_jitter_changes_brightness_contrast_and_saturation_within_its_share():
    """A grey image has neither contrast nor saturation: its brightness alone moves, evenly within +- 30 %."""
    transform = make_train(CROP, AugmentSettings(scale=(1, 1), ratio=(1, 1), jitter=0.3))
    grey = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    values = transform.pixels([grey] * 300, range(300)).float()
    assert values.std((1, 2, 3)).max() == 0
    means = values.mean((1, 2, 3))
    assert means.min() >= 67 and means.max() <= 131 and means.std() == pytest.approx(30 / math.sqrt(3), rel=0.1)
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    spread = transform.pixels([colour] * 300, range(300)).float()[:, :, 0, 0]
    share = (spread[:, 0] - spread[:, 2]) / spread.mean(1)  # brightness and contrast of a plain image leave it
    assert share.min() < 1.1 < 1.4 < share.max()


def photo(size=32):
    """Smooth shades of three colours, (3, size, size) uint8."""
    ramp = torch.arange(size, dtype=torch.float32) / (size - 1)
    channels = [ramp.view(-1, 1) * torch.ones(size), ramp * torch.ones(size, 1), (ramp.view(-1, 1) * ramp).sqrt()]
    return (255 * torch.stack(channels)).to(torch.uint8)


def test_a_policy_of_timms_is_timms_and_draws_from_the_images_own_seed():
    """The global generators are lent to it and come back as they were; an image's draws do not depend on them."""
    settings = TransformSettings(size=32, resize=32)
    transform = make_train(settings, AugmentSettings(flip=True, rand_augment="rand-m10-n2-mstd2"))
    image = photo()
    lent = np.random.mtrand._rand  # NumPy's global generator
    before = random.getstate(), lent.get_state()[1].copy()
    first = transform.pixels([image] * 300, range(300))
    assert random.getstate() == before[0] and (lent.get_state()[1] == before[1]).all()
    random.random(), lent.rand()
    again = transform.pixels([image] * 3, [7, 299, 0])
    assert torch.equal(again, first[[7, 299, 0]])
    policy = rand_augment_transform("rand-m10-n2-mstd2", {"img_mean": (124, 116, 104), "interpolation": 2})
    for seed, ours in enumerate(first[:40]):
        own = Random(seed)
        random_box(32, 32, AugmentSettings(), own)
        seen = image.flip(-1) if own.random() < 0.5 else image
        lent.seed(own.getrandbits(32))
        random.setstate(own.getstate())
        theirs = policy(Image.fromarray(seen.permute(1, 2, 0).numpy()))
        assert torch.equal(ours, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))
    # Two operations of probability 1/2: a quarter is at most mirrored. A solarisation at 10 changes nothing either.
    plain = [image, image.flip(-1)]
    unchanged = sum(any(torch.equal(ours, one) for one in plain) for ours in first) / len(first)
    assert 0.2 < unchanged < 0.4
    with pytest.raises(UserError, match="'rand-m10' is for colour images"):
        make_train(TransformSettings(mean=(0.5,), std=(0.5,)), AugmentSettings(rand_augment="rand-m10"))
    with pytest.raises(ValueError, match="a timm policy such as rand-m10-n2-mstd2; got 'rand-x3'"):
        AugmentSettings(rand_augment="rand-x3")


def test_timms_m10_is_torchvisions_30_and_9_is_a_third_of_it():
    """Strengths of each operation: timm at 10 of its 10, torchvision's bins 30 and 9 of 0 to 30."""
    timms = {"Rotate": 30, "ShearX": 0.3, "TranslateXRel": 0.45, "Color": 1.9, "Brightness": 1.9}
    timms |= {"Posterize": 4, "Solarize": 256, "SolarizeAdd": 110}
    assert {name: abs(LEVEL_TO_ARG[name](10, {})[0]) for name in timms} == pytest.approx(timms)
    names = ("Rotate", "ShearX", "TranslateX", "Color", "Brightness")
    bins = {name: RandAugment._AUGMENTATION_SPACE[name][0](31, 224, 224) for name in names}
    largest, nine = ({name: float(values[place]) for name, values in bins.items()} for place in (30, 9))
    in_pixels = 150 / 331 * 224  # of 224: a share of 0.453
    # Enhancement factors of torchvision are 1 + 0.9, timm's 1.9.
    assert largest == pytest.approx(
        {"Rotate": 30, "ShearX": 0.3, "TranslateX": in_pixels, "Color": 0.9, "Brightness": 0.9}
    )
    assert nine == pytest.approx({name: 0.3 * value for name, value in largest.items()})


def test_affine_without_augmentation_is_the_identity():
    batch = images((12, 12), (12, 12), channels=1)
    expected = (torch.stack(batch) / 255 - 0.2) / 0.5
    torch.testing.assert_close(make_predict(AFFINE)(batch, [0, 0]), expected)
    torch.testing.assert_close(make_train(AFFINE, AugmentSettings())(batch, [1, 2]), expected, rtol=0, atol=1e-4)


def test_inverse_maps_undo_mirror_shear_turn_zoom_and_shift():
    augment = AugmentSettings(flip=True, shear=40, degrees=90, scale=(0.5, 2), translate=0.3)
    uniform = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = inverse_maps(uniform, augment, 32)
    point = torch.tensor([0.3, -0.7], dtype=torch.float64)
    for u, inverse in zip(uniform.tolist(), maps, strict=True):
        x, y = point.tolist()
        x = -x if u[0] < 0.5 else x
        x += math.tan(math.radians((2 * u[1] - 1) * 40)) * y
        angle = math.radians((2 * u[2] - 1) * 90)
        x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
        zoom = 0.5 + 1.5 * u[3]
        x, y = zoom * x + (2 * u[4] - 1) * 0.6, zoom * y + (2 * u[5] - 1) * 0.6
        back = inverse @ torch.tensor([x, y, 1], dtype=torch.float64)
        torch.testing.assert_close(back, point, rtol=0, atol=1e-6)


def test_whole_pixels_are_copied_as_by_a_random_crop_of_the_padded_image():
    """Shifts of +-2 of 8 pixels: an image is one of the 5 x 5 crops of its padded self, or its mirror's; all occur."""
    image = torch.randint(1, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    settings = TransformSettings(kind="affine", size=8, mean=(0, 0, 0), std=(1, 1, 1))
    transform = make_train(settings, AugmentSettings(flip=True, translate=0.25, whole_pixels=True))
    found = transform([image] * 800, list(range(800)))
    padded = torch.nn.functional.pad(torch.stack([image, image.flip(2)]) / 255, (2, 2, 2, 2))
    crops = torch.stack([padded[m, :, y : y + 8, x : x + 8] for m in (0, 1) for y in range(5) for x in range(5)])
    far = (found[:, None] - crops).abs().amax((2, 3, 4))
    assert far.amin(1).max() < 1e-4, "no value is interpolated"
    assert len(far.argmin(1).unique()) == 50
    blurred = make_train(settings, AugmentSettings(flip=True, translate=0.25))([image] * 800, list(range(800)))
    assert ((blurred[:, None] - crops).abs().amax((2, 3, 4)).amin(1) > 1e-2).float().mean() > 0.9


def test_warp_shifts_by_whole_pixels_and_agrees_with_torch():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    shifted = warp(image, torch.tensor([[[1.0, 0, -0.5], [0, 1, 0]]]), 4)  # half of 2 is a pixel of 4: to the right
    torch.testing.assert_close(shifted[..., 1:], image[..., :-1])
    assert (shifted[..., 0] == 0).all()
    maps = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    many = torch.rand(5, 3, 9, 7)
    grid = torch.nn.functional.affine_grid(maps, [5, 3, 6, 6], align_corners=False)
    expected = torch.nn.functional.grid_sample(many, grid, align_corners=False)
    torch.testing.assert_close(warp(many, maps, 6), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["degrees", "shear", "translate", "noise", "jitter"])
def test_each_affine_setting_does_something(key):
    batch = images((12, 12), channels=1)
    plain = make_train(AFFINE, AugmentSettings())(batch, [3])
    changed = make_train(AFFINE, AugmentSettings(**{key: 0.3 if key != "degrees" else 30}))(batch, [3])
    assert (plain - changed).abs().max() > 1e-3


def test_noise_has_the_given_spread_and_the_image_stays_in_range():
    grey = [torch.full((1, 12, 12), 128, dtype=torch.uint8)] * 200
    noisy = make_train(AFFINE, AugmentSettings(noise=0.1))(grey, list(range(200))) * 0.5 + 0.2
    assert noisy.std().item() == pytest.approx(0.1, rel=0.03) and noisy.mean().item() == pytest.approx(
        128 / 255, abs=2e-3
    )
    loud = make_train(AFFINE, AugmentSettings(noise=3))(grey, list(range(200))) * 0.5 + 0.2
    assert loud.min() >= -1e-6 and loud.max() <= 1 + 1e-6


def test_grey_and_colour_are_fitted_to_the_network():
    grey, colour = images((12, 12), channels=1), images((12, 12))
    three = TransformSettings(kind="affine", size=12, mean=(0, 0, 0), std=(1, 1, 1))
    one = TransformSettings(kind="affine", size=12, mean=(0,), std=(1,))
    torch.testing.assert_close(make_predict(three)(grey, [0]), (grey[0] / 255).expand(1, 3, 12, 12))
    luma = (colour[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0) / 255
    torch.testing.assert_close(make_predict(one)(colour, [0])[0, 0], luma, rtol=0, atol=1.01 / 255)
    assert make_train(CROP, CROP_AUGMENT)(grey, [0]).shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="images have 2 channels"):
        make_predict(three)(images((12, 12), channels=2), [0])


def test_a_pickled_transform_has_no_tensors_of_a_device():
    """It goes to loader processes that are not forked; MPS's tensors cannot be pickled for them."""
    transform, image = make_predict(CROP), images((20, 20))
    transform.normalise(torch.zeros(1, 3, 16, 16, device="meta"))
    copied = pickle.loads(pickle.dumps(transform))  # noqa: S301 (our own bytes)
    assert transform._on_devices and not copied._on_devices
    assert torch.equal(copied(image, [0]), transform(image, [0]))


def test_wrong_settings():
    with pytest.raises(UserError, match=r"degrees, noise: only for transforms.kind=affine"):
        make_train(CROP, AugmentSettings(degrees=3, noise=0.1))
    with pytest.raises(UserError, match="give two positive numbers in rising order, at most 1"):
        make_train(CROP, AugmentSettings(scale=(0.5, 1.5)))
    with pytest.raises(UserError, match=r"scale, ratio: only for crop 'resized', but the crop is 'centre'"):
        make_train(CROP, AugmentSettings(crop="centre", scale=(0.5, 1)))
    with pytest.raises(UserError, match=r"rand_augment, crop: only for transforms.kind=crop"):
        make_train(AFFINE, AugmentSettings(crop="random", rand_augment=3))
    with pytest.raises(UserError, match=r"squash: only transforms.kind=crop"):
        make_predict(AFFINE.model_copy(update={"squash": True}))
    with pytest.raises(UserError, match=r"resize: 12 is smaller than transforms.size, 16"):
        make_train(TransformSettings(size=16, resize=12), AugmentSettings(crop="random"))
    with pytest.raises(UserError, match=r"resize: 12 is smaller than transforms.size, 16"):
        make_predict(TransformSettings(size=16, resize=12))
    with pytest.raises(UserError, match=r"needs images of 12 x 12 pixels, but one has 10 x 12; resize the images"):
        make_predict(AFFINE)(images((12, 12), (10, 12), channels=1), [0, 0])
