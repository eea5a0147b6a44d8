"""The decoded store: its images equal those of the files, whatever happens while it is filled."""

import errno
import multiprocessing
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.trees import make_folders, write_image
from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.data import store as store_module
from uda.data.decoding import kept_size
from uda.data.domains import load_domains
from uda.data.images import ImageFiles, check_readable, decode
from uda.data.loaders import Part, training_batches
from uda.data.settings import AugmentSettings, DataSettings, ReadingSettings, TransformSettings
from uda.data.store import DecodedStore, default_folder, open_stores, take_inventory
from uda.data.transforms import make_train
from uda.training.config import differing_keys

CLASSES = ["ant", "bee"]


@pytest.fixture
def tree(tmp_path):
    """Images of several sizes and formats; gives their folder and paths."""
    root = tmp_path / "photos"
    make_folders(root, CLASSES, per_class=4)
    random = np.random.default_rng(1)
    for i, (suffix, size) in enumerate(
        [(".png", (60, 90)), (".jpg", (200, 130)), (".gif", (33, 21)), (".jpg", (9, 7))]
    ):
        write_image(root / "bee" / f"other_{i}{suffix}", i, random, size)
    Image.fromarray(np.arange(0, 65536, 50, dtype=np.uint16)[:1200].reshape(30, 40)).save(root / "bee" / "deep.png")
    return root, paths_of(root)


def paths_of(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))


def open_one(root, paths, folder, load_size=None, log=lambda line: None, limit_gb=1.0):
    return open_stores([take_inventory(root, paths, ReadingSettings(load_size=load_size))], folder, limit_gb, log)[0]


def stored(root, paths, folder, load_size=None, log=lambda line: None):
    """The images by way of a store."""
    reading = ReadingSettings(load_size=load_size)
    return ImageFiles(root, paths, reading=reading, store=open_one(root, paths, folder, load_size, log))


def assert_equal_to_files(images, load_size=None):
    for i, name in enumerate(images.ids):
        image, expected = images.read(i), decode(images.root / name, ReadingSettings(load_size=load_size))
        assert image.dtype == torch.uint8 and torch.equal(image, expected), name


@pytest.mark.parametrize("load_size", [None, 16])
def test_what_is_read_equals_the_files_bit_for_bit_and_later_runs_decode_nothing(
    tree, tmp_path, monkeypatch, load_size
):
    root, paths = tree
    images = stored(root, paths, tmp_path / "store", load_size)
    assert not images.in_memory
    expected = [decode(root / name, ReadingSettings(load_size=load_size)) for name in paths]
    for _ in range(2):
        assert_equal_to_files(images, load_size)
    assert images._store.held == len(paths)
    monkeypatch.setattr("uda.data.images.decode_content", None)
    taken = images.take(np.array([5, 0, 5, 2]))
    assert [torch.equal(taken.read(i), expected[k]) for i, k in enumerate((5, 0, 5, 2))] == [True] * 4
    again = stored(root, paths, tmp_path / "store", load_size)
    assert all(torch.equal(again.read(i), image) for i, image in enumerate(expected))
    assert check_readable(again, 0.0, print).tolist() == list(range(len(paths)))


def test_a_cut_equals_the_same_cut_of_the_whole_image_and_reads_its_rows_alone(tree, tmp_path, monkeypatch):
    images = stored(*tree, tmp_path / "store")
    box = (slice(None), slice(2, 6), slice(1, 5))
    assert all(torch.equal(images.open(i)[box], images.read(i)[box]) for i in range(len(images)))  # not there yet
    read, original = [], os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, pieces, at: read.append(pieces[0].size) or original(file, pieces, at)
    )
    for i, name in enumerate(images.ids):
        expected, image = decode(images.root / name), images.open(i)
        assert image.shape == tuple(expected.shape)
        cut = image[box]
        assert torch.equal(cut, expected[box]) and cut.stride()[0] == 1  # in the order of decoded images: channels last
        assert read == [3 * 4 * expected.shape[2]]
        read.clear()
        assert torch.equal(image[:, :, :], expected) and torch.equal(image[:, 1:-2, -3:], expected[:, 1:-2, -3:])
        read.clear()
    image = images.open(0)
    monkeypatch.setattr(os, "preadv", fail_to_read)
    assert torch.equal(image[box], decode(images.root / images.ids[0])[box])  # the file is still there


def fail_to_read(*_):
    raise OSError(errno.EIO, "Input/output error")


def test_what_is_read_belongs_to_the_reader(tree, tmp_path):
    images = stored(*tree, tmp_path / "store")
    for _ in range(2):
        images.read(0).zero_()
    assert_equal_to_files(images)


def test_writing_continues_beside_reading_and_is_waited_for_where_it_must_be(tree, tmp_path, monkeypatch):
    """A disk that takes nothing until it may: two images are under way, a third waits; `holds` waits for its own."""
    may, threads, write = threading.Event(), set(), os.pwrite
    images = stored(*tree, tmp_path / "store")

    def slow(*given):
        threads.add(threading.current_thread())
        assert may.wait(10)
        return write(*given)

    monkeypatch.setattr(store_module.os, "pwrite", slow)
    for i in (0, 1):
        images.open(i)
    assert not images._store.holds(2), "an image that is not under way is not waited for"
    later = threading.Timer(0.2, may.set)
    later.start()
    images.open(2)  # waits until the first is written
    assert may.is_set() and images._store.holds(2) and images._store.held == 3
    assert threads and threading.current_thread() not in threads
    assert_equal_to_files(images)


def test_the_size_is_announced_before_and_what_is_there_is_told(tree, tmp_path):
    root, paths = tree
    folder, lines = tmp_path / "store", []
    images = stored(root, paths, folder, log=lambda line: lines.append((line, folder.exists())))
    size = sum(decode(root / name).numel() for name in paths)
    assert lines == [(f"decoded store: {len(paths)} images, {size / 1e6:.1f} MB in {folder}", False)]
    (file,) = folder.iterdir()
    assert size < file.stat().st_size < size + 64 * len(paths) + 3 * 4096
    images.read(0), images.read(3)
    lines = []
    images = stored(root, paths, folder, log=lines.append)
    assert lines[1:] == [f"decoded store: {file.name}: 2 of {len(paths)} images are already stored"]
    assert_equal_to_files(images)
    lines = []
    stored(root, paths, folder, log=lines.append)
    assert lines[1:] == [f"decoded store: {file.name}: complete"]


def test_kept_size_by_hand():
    """Shorter side 100 -> 50: everything by a half; no side above the limit: as it was."""
    assert kept_size(100, 300, 50) == (50, 150) and kept_size(301, 100, 50) == (150, 50)
    assert kept_size(40, 300, 50) == (40, 300) and kept_size(50, 50, 50) == (50, 50)
    assert kept_size(400, 300, None) == (400, 300)


def test_sizes_are_read_from_headers_of_every_kind(tmp_path, monkeypatch):
    """Plain, progressive, grey and CMYK JPEGs; one whose size lies behind 8,000 bytes of notes; PNG; a broken JPEG."""
    picture = Image.fromarray(np.zeros((31, 47, 3), np.uint8))
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "b.jpg", progressive=True)
    picture.convert("L").save(tmp_path / "c.jpg")
    picture.convert("CMYK").save(tmp_path / "d.jpg", comment=b"\xff\xc0" * 100)
    picture.save(tmp_path / "e.jpg", comment=b"\xff\xc0" * 4000)
    picture.save(tmp_path / "f.png")
    (tmp_path / "g.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    inventory = take_inventory(tmp_path, paths_of(tmp_path), ReadingSettings())
    assert inventory.index(print)[:, 1:].tolist() == [[31, 47]] * 6 + [[0, 0]]
    monkeypatch.setattr(Image, "open", None)
    assert inventory.index(print)[:, 1:].tolist() == [[31, 47]] * 4 + [[0, 0]] * 3


# ---- killed writers, writers at once


def assert_equal_to_files_alone(images):
    """In a forked process, where torch's threads are not: it must not wait for them."""
    torch.set_num_threads(1)
    assert_equal_to_files(images)


def read_all(root, folder, seed, rounds, kill_at, started):
    """Read every image in an order of its own, as a run does, again and again.

    The `kill_at`-th write of pixels stops in the middle, and so does the process.
    """
    torch.set_num_threads(1)
    images, whole_write, writes = stored(root, paths_of(root), folder), os.pwrite, 0

    def write(file, content, at):
        nonlocal writes
        writes += len(content) > 4
        if kill_at and writes == kill_at:
            whole_write(file, content[: len(content) // 2], at)
            os.kill(os.getpid(), signal.SIGKILL)
        return whole_write(file, content, at)

    os.pwrite = write
    started.set()
    for _ in range(rounds):
        for i in np.random.default_rng(seed).permutation(len(images)):
            images.read(int(i))


def reader(root, folder, seed, rounds=1, kill_at=0):
    """A process that runs `read_all`, and what tells that it has begun."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=read_all, args=(root, folder, seed, rounds, kill_at, started))
    process.start()
    return process, started


def ended(process):
    process.join(60)
    return process.exitcode


def test_a_writer_killed_in_the_middle_of_an_image_leaves_none_that_is_half_written(tree, tmp_path):
    root, paths = tree
    killed = [reader(root, tmp_path / "store", seed=seed, kill_at=4) for seed in range(2)]
    assert [ended(process) for process, _ in killed] == [-signal.SIGKILL] * 2
    images = stored(root, paths, tmp_path / "store")
    assert 3 <= images._store.held <= 6
    assert_equal_to_files(images)
    assert images._store.held == len(paths)
    assert_equal_to_files(images)


def test_a_system_that_writes_in_small_pieces(tree, tmp_path, monkeypatch):
    root, paths = tree
    images, whole_write = stored(root, paths, tmp_path / "store"), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: whole_write(file, content[:1000], at))
    for _ in range(2):
        assert_equal_to_files(images)
    assert images._store.held == len(paths)


def test_who_comes_second_does_not_empty_the_store_of_the_first(tree, tmp_path):
    """Both have found none; the second makes its own when the first has begun to fill."""
    root, paths = tree
    inventory = take_inventory(root, paths, ReadingSettings())
    index = inventory.index(print)
    images = stored(root, paths, tmp_path / "store")
    images.read(0)
    store_module._create(images._store.path, index, inventory)
    assert stored(root, paths, tmp_path / "store")._store.held == 1
    assert list((tmp_path / "store").iterdir()) == [images._store.path]


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.03])
def test_readers_at_once_and_one_killed_at_any_moment(tmp_path, moment):
    root = make_folders(tmp_path / "photos", CLASSES, per_class=40)
    processes = [reader(root, tmp_path / "store", seed, rounds) for seed, rounds in enumerate((10**6, 5, 5))]
    processes[0][1].wait(60)
    time.sleep(moment)
    processes[0][0].kill()
    images = stored(root, paths_of(root), tmp_path / "store")
    for _ in range(3):
        assert_equal_to_files(images)
    assert [ended(process) for process, _ in processes] == [-signal.SIGKILL, 0, 0]
    assert images._store.held == 80 and len(list((tmp_path / "store").glob("*.decoded"))) == 1
    assert_equal_to_files(images)


def test_loader_workers_fill_one_store(tree, tmp_path):
    """What the workers of an epoch have decoded, those of the next one read."""
    root, paths = tree
    images = stored(root, paths, tmp_path / "store")
    transform = make_train(TransformSettings(size=8, resize=8), AugmentSettings(scale=(0.2, 1), flip=True))
    labels = np.zeros(len(paths), np.int64)

    def epoch(source, workers):
        part = Part(source, np.arange(len(paths)), labels, transform, 0, False)
        return training_batches([part], num_classes=2, batch_size=4, steps=None, seed=(1,), workers=workers)

    expected = [batch.images for batch in epoch(ImageFiles(root, paths), 0)]
    for _ in range(2):
        assert all(map(torch.equal, (batch.images for batch in epoch(images, 2)), expected))
        assert images._store.held == len(paths)
    assert_equal_to_files(images)


def test_a_pickled_store_is_the_same_file(tree, tmp_path):
    """As it travels to spawned loader workers."""
    root, paths = tree
    images = stored(root, paths, tmp_path / "store", log=[].append)
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301 (our own)
    assert_equal_to_files(copy)
    assert images._store.held == len(paths)
    assert_equal_to_files(images)


# ---- the power fails


def test_only_a_sealed_store_outlasts_a_start_of_the_machine(tree, tmp_path, monkeypatch):
    root, paths = tree
    images = stored(root, paths, tmp_path / "store")
    images.read(1), images.read(2)
    assert images._store.held == 2 and not images._store.seal()
    monkeypatch.setattr(store_module, "_mark_of_this_boot", lambda: 12345)
    images = stored(root, paths, tmp_path / "store")
    assert images._store.held == 0  # the marks may be there and the pixels lost
    assert_equal_to_files(images)
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert images._store.held == len(paths) and not images._store.sealed
    images.read(0)  # the second time round it looks whether all are there
    assert images._store.sealed and len(synced) == 2
    monkeypatch.setattr(store_module, "_mark_of_this_boot", lambda: 54321)
    monkeypatch.setattr("uda.data.images.decode_content", None)
    images = stored(root, paths, tmp_path / "store")
    assert images._store.held == len(paths)
    monkeypatch.undo()
    assert_equal_to_files(images)


def test_marks_of_boots_are_never_the_special_ones(monkeypatch):
    assert store_module._mark_of_this_boot() == store_module._mark_of_this_boot() >= 2
    for checksum in (0, 1):
        monkeypatch.setattr("zlib.crc32", lambda content, checksum=checksum: checksum)
        assert store_module._mark_of_this_boot() == 2


# ---- other files, damaged files


def test_a_changed_file_makes_another_store_and_the_old_one_is_named(tree, tmp_path):
    root, paths = tree
    assert_equal_to_files(stored(root, paths, tmp_path / "store"))
    write_image(root / paths[1], 7, np.random.default_rng(9))
    lines = []
    images = stored(root, paths, tmp_path / "store", log=lines.append)
    assert images._store.held == 0
    assert_equal_to_files(images)
    (old,) = set((tmp_path / "store").iterdir()) - {images._store.path}
    assert f"decoded store: {old} (full size, " in lines[1] and "remove it if no other run does" in lines[1]
    lines = []
    smaller = stored(root, paths, tmp_path / "store", 16, log=lines.append)
    assert smaller._store.held == 0 and len(lines) == 3
    assert len(list((tmp_path / "store").iterdir())) == 3
    lines = []  # other images of the same folder are no business of this run
    stored(root, paths[:4], tmp_path / "store", log=lines.append)
    assert len(lines) == 1


def test_every_part_of_the_fingerprint_counts(tree, monkeypatch):
    root, paths = tree

    def fingerprint(load_size=None, names=paths, **rules):
        return take_inventory(root, names, ReadingSettings(load_size=load_size, **rules)).fingerprint

    seen = {
        fingerprint(),
        fingerprint(16),
        fingerprint(17),
        fingerprint(names=paths[1:]),
        fingerprint(names=paths[::-1]),
        fingerprint(background="black"),
        fingerprint(exif_orientation="apply"),
        fingerprint(white_level=4095),
    }
    os.utime(root / paths[0], ns=(1, 1))
    seen.add(fingerprint())
    with (root / paths[0]).open("ab") as file:
        file.write(b"x")
    os.utime(root / paths[0], ns=(1, 1))
    seen.add(fingerprint())
    monkeypatch.setattr(store_module, "version", lambda name: "another")
    seen.add(fingerprint())
    monkeypatch.setattr(store_module, "FORMAT", 0)
    seen.add(fingerprint())
    assert len(seen) == 12
    assert fingerprint() in seen
    root.rename(root.with_name("moved"))
    assert take_inventory(root.with_name("moved"), paths, ReadingSettings()).fingerprint in seen


def test_a_file_that_changes_during_the_run_is_not_stored(tree, tmp_path):
    root, paths = tree
    images = stored(root, paths, tmp_path / "store")
    write_image(root / paths[0], 7, np.random.default_rng(9))  # same shape
    write_image(root / paths[1], 7, np.random.default_rng(9), size=(50, 20))
    assert_equal_to_files(images)
    assert images._store.held == len(paths) - 2 and not images._store.holds(0)


def test_a_store_of_other_images_or_a_broken_one_is_refused(tree, tmp_path):
    root, paths = tree
    folder = tmp_path / "store"
    path, inventory = open_one(root, paths, folder).path, take_inventory(root, paths, ReadingSettings())
    content = path.read_bytes()
    path.unlink()
    open_one(root, paths[:3], folder).path.rename(path)
    with pytest.raises(UserError, match=r"photos-\w+\.decoded: this decoded store was made from other images.*remove"):
        open_one(root, paths, folder)
    for broken in (b"", b"{}", b"\xff" * 5000, b"[]".ljust(5000), content[:100]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="made from other images or by another version"):
            open_one(root, paths, folder)
    for length in (5000, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="this decoded store is truncated: remove the file"):
            DecodedStore(path, inventory, print)
    path.write_bytes(content)
    assert len(open_one(root, paths, folder)) == len(paths)
    with pytest.raises(ValueError, match=f"a store of {len(paths)} images for 2 paths"):
        ImageFiles(root, paths[:2], store=open_one(root, paths, folder))


def test_unreadable_images_are_found_before_training_and_the_store_is_complete_without_them(tree, tmp_path):
    root, _ = tree
    whole = (root / "ant" / "ant_0.jpg").read_bytes()
    (root / "ant" / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (root / "ant" / "text.jpg").write_text("not an image")
    paths = paths_of(root)
    for _ in range(2):
        images, lines = stored(root, paths, tmp_path / "store"), []
        readable = check_readable(images, 0.5, lines.append)
        assert {paths[i] for i in range(len(paths))} - {paths[i] for i in readable} == {"ant/cut.jpg", "ant/text.jpg"}
        assert lines[-1] == f"2 of {len(paths)} images cannot be read and are left out"
        assert_equal_to_files(images.take(readable))
        with pytest.raises(UserError, match=r"cut\.jpg: cannot be read as an image"):
            images.read(paths.index("ant/cut.jpg"))
    assert images._store.seal() and images._store.held == len(paths) - 2
    # One that was mended comes too late: its mark might reach the disk without its pixels.
    cut = paths.index("ant/cut.jpg")
    stamp = tuple(take_inventory(root, paths, ReadingSettings()).stamps[cut].tolist())
    images._store.write(cut, torch.zeros(3, 32, 40, dtype=torch.uint8), stamp)
    assert images._store.held == len(paths) - 2
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read as an image"):
        images.read(paths.index("ant/cut.jpg"))


# ---- no room, no right to write


def test_a_store_above_the_limit_is_refused_with_the_cure(tree, tmp_path):
    root, paths = tree
    size = sum(decode(root / name).numel() for name in paths)
    inventories = [take_inventory(root, paths, ReadingSettings()), take_inventory(root, paths[:4], ReadingSettings())]
    with pytest.raises(
        UserError,
        match=r"the decoded store would take 0\.\d MB, more than data\.store_gb=1e-05 allows: set data\.load_size, "
        r"raise data\.store_gb, or set data\.cache=none",
    ):
        open_stores(inventories, tmp_path / "store", 1e-5, print)
    with pytest.raises(UserError, match=r"lower data\.load_size \(now 16\)"):
        open_one(root, paths, tmp_path / "store", 16, limit_gb=1e-6)
    assert not (tmp_path / "store").exists()
    limit = (size + 64 * len(paths) + 3 * 4096) / 1e9
    open_one(root, paths, tmp_path / "store", limit_gb=limit)
    with pytest.raises(UserError, match=r"more than data\.store_gb"):  # both domains count
        open_stores(inventories, tmp_path / "store", limit, print)


@pytest.mark.parametrize("way", ["no folder", "no right", "no room"])
def test_without_a_place_for_a_store_there_is_a_warning_and_reading_continues(tree, tmp_path, monkeypatch, way):
    root, paths = tree
    folder = tmp_path / "file" / "store" if way == "no folder" else tmp_path / "store"
    (tmp_path / "file").touch()
    if way == "no right":  # as root, no folder is unwritable
        whole_mkdir = Path.mkdir

        def refuse(path, *arguments, **options):
            if path == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            whole_mkdir(path, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", refuse)
    if way == "no room":
        usage = SimpleNamespace(free=store_module.SPARE_BYTES + 9)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    lines = []
    assert open_one(root, paths, folder, log=lines.append) is None
    without = "the run continues without it; set data.store to another folder"
    expected = {
        "no folder": f"warning: decoded store: {folder}: Not a directory: " + without,
        "no right": f"warning: decoded store: {folder}: Permission denied: " + without,
        "no room": "decoded store: the disk has 1.1 GB free, but the store needs 0.1 MB more, and 1.1 GB must stay "
        "free: the run continues without it; free some space, or set data.load_size or data.store",
    }
    assert lines[-1] == expected[way]
    if way == "no room":
        assert not list(folder.iterdir())
    for domain, name in (("a", "ant"), ("b", "bee")):
        make_folders(tmp_path / domain, [name, "cat"])
        (tmp_path / domain / name).rename(tmp_path / domain / "insect")
    settings = DataSettings(
        source=str(tmp_path / "a"), target=str(tmp_path / "b"), cache="store", store=str(folder), load_size=20
    )
    domains = load_domains(settings, 0, lines.append)
    assert_equal_to_files(domains.source.images, 20)


def test_a_full_disk_is_told_once_and_reading_continues(tree, tmp_path, monkeypatch):
    """The third image finds the disk full, with a part of it written; two forked readers meet it too."""
    root, paths = tree
    told = tmp_path / "told"

    def log(line):
        with told.open("a") as file:
            file.write(line + "\n")

    images = stored(root, paths, tmp_path / "store", log=log)
    told.unlink()
    whole_write, written = os.pwrite, []

    def write(file, content, at):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(at)
        return whole_write(file, content[:100] if len(written) == 5 else content, at)

    monkeypatch.setattr(os, "pwrite", write)
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=assert_equal_to_files_alone, args=(images,)) for _ in range(2)]
    for process in readers:
        process.start()
    assert [ended(process) for process in readers] == [0, 0]
    assert_equal_to_files(images)
    lines = told.read_text().splitlines()
    assert 1 <= len(lines) <= 2  # two that meet it in the same moment may both say so
    assert lines[0] == (
        f"decoded store: {images._store.path}: No space left on device: nothing more is stored; the run continues"
    )
    monkeypatch.undo()
    assert_equal_to_files(images)
    again = stored(root, paths, tmp_path / "store")
    assert 2 <= again._store.held <= 4
    assert_equal_to_files(again)
    assert again._store.held == len(paths)


def test_a_store_that_may_only_be_read_is_read(tree, tmp_path, monkeypatch):
    root, paths = tree
    assert_equal_to_files(stored(root, paths[:5], tmp_path / "store"))
    images = stored(root, paths, tmp_path / "store")
    images.read(2)
    whole_open = os.open

    def open_to_read(path, flags, *mode):
        if flags & os.O_RDWR and str(path).endswith(".decoded"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return whole_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_to_read)
    lines = []
    images = stored(root, paths, tmp_path / "store", log=lines.append)
    assert lines[-1].endswith(f": 1 of {len(paths)} images are already stored")
    assert_equal_to_files(images)
    assert images._store.held == 1 and not any("nothing more" in line for line in lines)


# ---- settings


def test_a_run_reads_its_domains_by_way_of_stores(tmp_path, monkeypatch):
    for seed, domain in enumerate("ab"):
        make_folders(tmp_path / domain, CLASSES, seed=seed)
    monkeypatch.setenv("UDA_STORE", str(tmp_path / "mine"))
    lines = []
    settings = DataSettings(source=str(tmp_path / "a"), target=str(tmp_path / "b"), cache="store", load_size=24)
    domains = load_domains(settings, 0, lines.append)
    assert lines[0].startswith("decoded store: 8 images, 0.0 MB in") and lines[0].endswith(str(tmp_path / "mine"))
    for images in (domains.source.images, domains.target.images):
        assert_equal_to_files(images, 24)
        assert images._store.held == 4
    plain = load_domains(settings.model_copy(update={"cache": "none"}), 0, print).target.images
    assert all(torch.equal(plain.read(i), domains.target.images.read(i)) for i in range(4))
    assert len(list((tmp_path / "mine").iterdir())) == 2


def test_where_stores_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("UDA_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_folder() == tmp_path / ".cache" / "uda"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_folder() == Path("/x/uda")
    monkeypatch.setenv("UDA_STORE", "/y/stores")
    assert default_folder() == Path("/y/stores")


def test_the_size_belongs_to_the_result_and_the_store_does_not():
    def config(**data):
        return AdaptationConfig(name="x", data={"source": "a", "target": "b", **data})

    saved = config().model_dump(mode="json")
    assert not differing_keys(config(cache="store", store="/x", store_gb=3), saved)
    assert differing_keys(config(load_size=100), saved) == ["data.load_size: None -> 100"]
    del saved["data"]["load_size"]  # a folder from before there was such a setting
    assert not differing_keys(config(), saved)
