import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.trees import make_folders
from uda.core.errors import UserError
from uda.data import loaders
from uda.data.batch import Batch
from uda.data.features import AugmentedFeatures, FeatureArray, PlainFeatures
from uda.data.handover import Ring
from uda.data.images import ImageArray, ImageFiles, JoinedImages
from uda.data.loaders import Part, predict_batches, training_batches
from uda.data.settings import AugmentSettings, TransformSettings
from uda.data.transforms import make_predict, make_train

PLAIN = TransformSettings(kind="affine", size=8, mean=(0,), std=(1 / 255,))


def part(n, first=0, labels="hard", domain=0, is_target=False, augment=None):
    """`n` images whose every pixel is the image's number, counted from `first`."""
    numbers = np.arange(first, first + n)
    images = ImageArray(
        np.broadcast_to(numbers[:, None, None, None], (n, 1, 8, 8)).astype(np.uint8), [str(i) for i in numbers]
    )
    given = {"hard": numbers % 3, "soft": np.eye(3, dtype=np.float32)[numbers % 3] * 0.5 + 1 / 6, None: None}[labels]
    transform = make_predict(PLAIN) if augment is None else make_train(PLAIN, augment)
    return Part(images, np.arange(n), given, transform, domain, is_target)


def batches(parts, batch_size, steps=None, seed=(0,), workers=0):
    return training_batches(parts, num_classes=3, batch_size=batch_size, steps=steps, seed=seed, workers=workers)


def numbers(batch):
    return batch.images[:, 0, 0, 0].round().int().tolist()


def test_mixed_epoch_gives_every_image_once_with_its_own_label_and_domain():
    loader = batches([part(7), part(6, first=100, labels=None, domain=1, is_target=True)], 4)
    seen = list(loader)
    assert len(loader) == len(seen) == 3  # 4 + 4 + 5: the last image joins the batch before it
    assert [len(batch) for batch in seen] == [4, 4, 5]
    assert sorted(i for batch in seen for i in numbers(batch)) == [*range(7), *range(100, 106)]
    for batch in seen:
        assert batch.images.dtype == torch.float32 and batch.images.shape[1:] == (1, 8, 8)
        for i, label, domain, is_target in zip(
            numbers(batch), batch.labels, batch.domain, batch.is_target, strict=True
        ):
            assert label.tolist() == ([0, 0, 0] if i >= 100 else np.eye(3)[i % 3].tolist())
            assert (domain, is_target) == (int(i >= 100), i >= 100)


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (3, [3]), (5, [5]), (1, [2])])
def test_no_batch_of_one_image(n, sizes):
    assert [len(batch) for batch in batches([part(n)], 4)] == sizes


def test_steps_run_through_as_many_epochs_as_they_need():
    seen = [numbers(batch) for batch in batches([part(10)], 5, steps=5)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10)) and len(seen) == 5
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_fixed_shares_come_from_endless_shuffled_streams():
    parts = [part(7), part(4, first=100, domain=1, is_target=True)]
    seen = list(batches(parts, [3, 2], steps=14))
    assert all(batch.is_target.tolist() == [False] * 3 + [True] * 2 for batch in seen)
    source = [i for batch in seen for i in numbers(batch)[:3]]
    target = [i for batch in seen for i in numbers(batch)[3:]]
    for stream, n in ((source, 7), (target, 4)):
        rounds = [stream[i : i + n] for i in range(0, len(stream), n)]
        assert all(sorted(items) == sorted(rounds[0]) for items in rounds)
        assert len({tuple(items) for items in rounds}) > 1
    assert len(batches(parts, [3, 2])) == 3 and len(batches(parts, [7, 1])) == 4


def test_a_small_part_repeats_within_a_batch_and_a_share_of_0_is_left_out():
    (batch,) = batches([part(2), part(0, first=100)], [5, 0], steps=1)
    assert sorted(set(numbers(batch))) == [0, 1] and len(batch) == 5


def test_a_part_looks_at_its_own_indices_and_at_soft_and_missing_labels():
    whole = part(9, labels="soft")
    some = Part(whole.images, np.array([8, 2, 5]), whole.labels[[8, 2, 5]], whole.transform, 0, False)
    for batch in batches([some], 3):
        assert sorted(numbers(batch)) == [2, 5, 8]
        assert torch.allclose(batch.labels, torch.tensor([1 / 6, 1 / 6, 2 / 3]))
    missing = dataclasses.replace(part(3), labels=np.array([-1, 2, -1]))
    for batch in batches([missing], 3):
        assert {i: row.tolist() for i, row in zip(numbers(batch), batch.labels, strict=True)} == {
            0: [0, 0, 0], 1: [0, 0, 1], 2: [0, 0, 0],
        }  # fmt: skip
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        Part(whole.images, np.arange(3), np.zeros(2, np.int64), whole.transform, 0, False)


def test_no_images_are_an_error():
    with pytest.raises(UserError, match="no images to train on"):
        batches([part(0), part(0)], 4)
    with pytest.raises(UserError, match="2 target images, but none were selected"):
        batches([part(3), part(0, domain=1, is_target=True)], [2, 2])
    assert len(batches([part(3), part(0, domain=1, is_target=True)], 4)) == 1


RANDOM = AugmentSettings(translate=0.2, noise=0.1, jitter=0.2)


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    tensors = [field.name for field in dataclasses.fields(Batch) if field.name != "weight"]
    return all(
        a.weight == b.weight and all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
        for a, b in pairs
    )


def test_the_seed_decides_order_and_augmentation():
    def run(seed):
        return list(batches([part(20, augment=RANDOM)], 6, seed=seed))

    assert same(run((0, 1)), run((0, 1)))
    for other in ((0, 2), (1, 1), (0,), (0, 1, 0)):
        assert not same(run((0, 1)), run(other))
    loader = batches([part(20, augment=RANDOM)], 6)
    assert same(list(loader), list(loader))


@pytest.mark.parametrize("batch_size", [6, [4, 2]])
def test_workers_change_nothing(batch_size):
    parts = [part(13, augment=RANDOM), part(9, first=100, labels="soft", domain=1, is_target=True, augment=RANDOM)]
    torch.manual_seed(0)
    expected = list(batches(parts, batch_size, steps=5))
    state = torch.get_rng_state()
    assert same(expected, list(batches(parts, batch_size, steps=5, workers=2)))
    assert torch.equal(state, torch.get_rng_state())


def test_a_signal_to_a_worker_that_is_just_starting_does_not_end_it(monkeypatch):
    """Schedulers and Ctrl-C reach the whole group, also in the moments before a worker has learned to ignore them."""
    leave = loaders._leave_signals_to_the_main_process

    def late(worker):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        leave(worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loaders, "_leave_signals_to_the_main_process", late)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert len(list(batches([part(7)], 2, workers=2))) == 3
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "the main process hears its own again"


CROP = TransformSettings(size=8, resize=8)


@pytest.mark.parametrize("way", ["ring", "too small a ring", "no fork"])
def test_workers_hand_over_pixels_unchanged_and_each_batch_stays_as_it_was(tmp_path, monkeypatch, way):
    """More batches than the ring has slots, all kept: what lies in a slot is overwritten."""
    make_folders(tmp_path, ["a", "b"], per_class=10)
    files = ImageFiles(tmp_path, [f"{c}/{c}_{i}.jpg" for c in "ab" for i in range(10)])
    transform = make_train(CROP, AugmentSettings(scale=(0.3, 1), flip=True))
    parts = [
        Part(files, np.arange(20), np.arange(20) % 3, transform, 0, False),
        Part(files, np.arange(5), None, transform, 1, True),
    ]
    expected = list(batches(parts, [4, 1], steps=16))
    predicted = list(predict_batches(files, make_predict(CROP), batch_size=3, workers=0))
    if way == "too small a ring":
        monkeypatch.setattr("uda.data.loaders.Fixed.largest", 0)
    if way == "no fork":
        monkeypatch.setattr(Ring, "possible", lambda: False)
    assert same(expected, list(batches(parts, [4, 1], steps=16, workers=2)))
    again = predict_batches(files, make_predict(CROP), batch_size=3, workers=2)
    assert all(torch.equal(a, b) for a, b in zip(predicted, again, strict=True))


def test_a_ring_gives_what_was_put_in_and_returns_what_does_not_fit():
    ring = Ring(2, 2 * 3 * 4 * 5)
    first, second = torch.randint(0, 256, (2, 2, 3, 4, 5), dtype=torch.uint8)
    handed = [ring.put(number, pixels) for number, pixels in enumerate((first, second[:1]))]
    assert torch.equal(ring.take(handed[0]), first) and torch.equal(ring.take(handed[1]), second[:1])
    assert torch.equal(ring.take(ring.put(2, second)), second) and torch.equal(ring.take(handed[0]), second)
    for pixels in (torch.zeros(9, 3, 200, 200, dtype=torch.uint8), first.float()):
        assert ring.put(0, pixels) is pixels
    assert ring.space(0, (9, 3, 200, 200)) is None
    space = ring.space(3, (2, 3, 4, 5))
    space.copy_(first)
    assert torch.equal(ring.take(ring.put(3, space)), first)  # it lies where it is to lie


@pytest.mark.parametrize("kind", ["crop", "affine"])
def test_pixels_may_be_left_in_memory_that_is_given(kind):
    """By the transforms that go image by image; others give memory of their own."""
    settings = TransformSettings(kind=kind, size=8, resize=8)
    for transform in (make_predict(settings), make_train(settings, AugmentSettings())):
        images = [torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8) for _ in range(3)]
        memory = torch.zeros(3, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        pixels = transform.pixels(images, [0, 1, 2], memory)
        assert (pixels is memory) == (kind == "crop")
        assert torch.equal(pixels, transform.pixels(images, [0, 1, 2]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_in_two_views_comes_twice_first_all_in_the_plain_one(workers):
    """Numbers are pixels; the strong view adds noise of its own seed."""
    strong = make_train(PLAIN, AugmentSettings(noise=0.01))
    two = dataclasses.replace(part(6, first=100, labels=None, domain=1, is_target=True), strong=strong)
    for batch in batches([part(5), two], [2, 3], steps=4, workers=workers):
        assert len(batch) == 2 + 3 + 3 and batch.view.tolist() == [0] * 5 + [1] * 3
        assert batch.is_target.tolist() == [False] * 2 + [True] * 6
        plain, noisy = batch.images[2:5, 0], batch.images[5:, 0]
        assert (noisy - plain).abs().max() > 0.5 and (noisy - plain).mean((1, 2)).abs().max() < 3
    assert batches([part(5), two], [2, 3], steps=4).ids(0)[2:5] == batches([part(5), two], [2, 3], steps=4).ids(0)[5:]


def test_two_views_stay_together_when_a_batch_is_divided():
    two = dataclasses.replace(part(8, labels=None, is_target=True), strong=make_predict(PLAIN))
    (batch,) = batches([two], [4], steps=1)
    for dealt in batch.dealt(2):
        assert numbers(dealt)[:2] == numbers(dealt)[2:] and dealt.view.tolist() == [0, 0, 1, 1]
    (batch,) = batches([two], [3], steps=1)
    with pytest.raises(UserError, match="3 images in two views cannot be divided evenly among 2 parts"):
        batch.dealt(2)


def test_a_window_is_a_part_of_the_whole_stage():
    whole = list(batches([part(7), part(5, first=100)], [2, 2], steps=9))
    loader = batches([part(7), part(5, first=100)], [2, 2], steps=9).window(3, 4)
    assert [numbers(batch) for batch in loader] == [numbers(batch) for batch in whole[3:7]]
    assert [numbers(batch) for batch in loader.starting_at(2)] == [numbers(batch) for batch in whole[5:7]]
    assert loader.ids(2) == loader.starting_at(1).ids(2), "steps are counted from the window's first"


def test_parts_of_other_normalisations_are_refused():
    other = make_predict(TransformSettings(kind="affine", size=8, mean=(0.5,), std=(1 / 255,)))
    with pytest.raises(ValueError, match="the same mean and std"):
        batches([part(3), dataclasses.replace(part(3), transform=other)], 2)


def test_predicting_gives_each_image_once_and_in_order(tmp_path):
    images = part(11).images
    for workers in (0, 2):
        loader = predict_batches(images, make_predict(PLAIN), batch_size=4, workers=workers)
        seen = list(loader)
        assert [len(batch) for batch in seen] == [4, 4, 3] and len(loader) == 3
        assert torch.cat(seen)[:, 0, 0, 0].round().int().tolist() == list(range(11))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_a_clear_error_from_workers_too(tmp_path, workers):
    make_folders(tmp_path, ["a"], per_class=3)
    files = ImageFiles(tmp_path, ["a/a_0.jpg", "a/a_1.jpg", "a/a_2.jpg"])
    (tmp_path / "a" / "a_1.jpg").write_text("broken")
    transform = make_predict(TransformSettings(size=8, resize=8))
    with pytest.raises(UserError, match=r"^\S*a_1\.jpg: cannot be read as an image: no known image format"):
        list(predict_batches(files, transform, batch_size=1, workers=workers))
    one = Part(files, np.arange(3), np.zeros(3, np.int64), transform, 0, False)
    with pytest.raises(UserError, match=r"^\S*a_1\.jpg"):
        list(batches([one], 3, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_lenient_batches_tell_of_broken_images_and_have_black_ones_in_their_place(tmp_path, workers):
    """A damaged file, and an image that the transform cannot take; the others are those of plain batches."""
    make_folders(tmp_path, ["ä"], per_class=5, suffix=".png")
    names = [f"ä/ä_{i}.png" for i in range(5)]
    transform = make_predict(TransformSettings(kind="affine", size=32, mean=(0, 0, 0), std=(1, 1, 1)))
    for name in names:
        file = tmp_path / name
        Image.open(file).resize((32, 32)).save(file)
    plain = torch.cat(list(predict_batches(ImageFiles(tmp_path, names), transform, batch_size=2, workers=0)))
    (tmp_path / names[1]).write_text("broken")
    Image.open(tmp_path / names[4]).resize((31, 32)).save(tmp_path / names[4])
    read = predict_batches(ImageFiles(tmp_path, names), transform, batch_size=2, workers=workers, lenient=True)
    images, problems = zip(*read, strict=True)
    assert [list(told) for told in problems] == [[1], [], [0]]
    assert problems[0][1].endswith(
        "ä_1.png: cannot be read as an image: no known image format; repair or remove the file"
    )
    assert "needs images of 32 x 32 pixels, but one has 32 x 31" in problems[2][0]
    images = torch.cat(images)
    assert (images[[1, 4]] == 0).all() and torch.equal(images[[0, 2, 3]], plain[[0, 2, 3]])


class Deadly(ImageArray):
    """Kills the process that reads it, as a system does that runs out of memory."""

    def together(self, indices):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_the_system_kills_is_named_with_what_to_lower():
    images = Deadly(np.zeros((4, 1, 8, 8), np.uint8), list("abcd"))
    with pytest.raises(UserError, match=r"a loader process was killed.*lower runtime\.workers"):
        list(predict_batches(images, make_predict(PLAIN), batch_size=2, workers=1))


def test_page_locked_memory_that_runs_out_is_named_with_the_setting(monkeypatch):
    def refused(self):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    loader = predict_batches(part(4).images, make_predict(PLAIN), batch_size=2, workers=0)
    with pytest.raises(UserError, match=r"\(CUDA error: out of memory\); set runtime\.pin_memory=false"):
        list(loader.on(torch.device("meta"), pinned=True))


def test_batches_move(tmp_path):
    (batch,) = batches([part(4)], 4)
    moved = batch.to("cpu", memory_format=torch.channels_last)
    assert moved.images.is_contiguous(memory_format=torch.channels_last) and len(moved) == 4
    assert batch.to("meta").labels.device.type == "meta"


def feature_parts(joined=False, strong=False):
    """A source and a target of features that tell their image and view: image i is (i, 0, 0), its view v (i, v, 0)."""
    arrays = []
    for first, count in ((0, 30), (30, 25)):
        every = torch.zeros(count, 4, 3)
        every[..., 0], every[..., 1] = torch.arange(first, first + count)[:, None], torch.arange(4)
        ids = [str(i) for i in range(first, first + count)]
        arrays.append(FeatureArray(every[:, 0].contiguous(), ids, every[:, 1:].contiguous()).take(np.arange(count)))
    source, target = arrays
    if joined:
        source = JoinedImages(arrays, ["a", "b"])
    soft = np.random.default_rng(0).dirichlet(np.ones(3), len(target)).astype(np.float32)
    hard = np.arange(len(source)) % 4 - 1
    plain, other = PlainFeatures(3), AugmentedFeatures(3)
    domain = np.arange(len(source)) % 2
    return [
        Part(source, np.arange(len(source)), hard, plain, domain, is_target=False),
        Part(target, np.arange(len(target)), soft, plain, 2, is_target=True, strong=other if strong else None),
    ]


@pytest.mark.parametrize("size", [[5, 4], [5, 0], 7], ids=str)
@pytest.mark.parametrize(("joined", "strong"), [(False, False), (True, False), (False, True)])
def test_features_that_are_read_ahead_are_those_of_one_batch_at_a_time(size, joined, strong):
    """20 batches: more than are read at a time, and the last time fewer."""
    found = training_batches(
        feature_parts(joined, strong), num_classes=3, batch_size=size, steps=20, seed=(3,), workers=0
    )
    reader, sampler = found._reader, found._sampler
    single = [reader.finish(loaders.Delivery(), *reader.read(sampler.draw(step))) for step in range(20)]
    assert len(list(found)) == 20
    for ours, wanted in zip(found, single, strict=True):
        for field in dataclasses.fields(Batch):
            a, b = getattr(ours, field.name), getattr(wanted, field.name)
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        views = ours.images[:, 1, 0, 0]
        assert ours.images.shape[1:] == (3, 1, 1) and torch.equal(views > 0, ours.view == 1)
    rest = found.starting_at(13)
    assert torch.equal(next(iter(rest)).images, single[13].images)


def test_an_augmented_view_is_drawn_by_the_seed_in_every_way_of_reading():
    """Rows of one array are read from the views alone; those of joined arrays are chosen from all."""
    parts = feature_parts()
    array, transform, seeds = parts[1].images, AugmentedFeatures(3), [7, 11, 12]
    indices = np.array([2, 0, 2])
    direct = transform.read(array, indices, seeds, transform.memory(3))
    assert torch.equal(direct, transform.pixels(array.together(indices), seeds))
    assert direct[:, :2, 0, 0].tolist() == [[32, 1 + 7 % 3], [30, 1 + 11 % 3], [32, 1 + 12 % 3]]
