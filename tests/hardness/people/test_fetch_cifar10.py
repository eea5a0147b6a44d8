"""CIFAR-10 into folders, from a small archive in torchvision's layout; without network."""

import hashlib
import pickle
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from tests.in_process import hardness
from uda.data.cards import CARDS
from uda.hardness.people.human import read_human

CLASSES = CARDS["cifar10"].classes
LABELS = {"data_batch_1": [3, 0, 3], "data_batch_2": [0, 9, 3], "test_batch": [3, 8, 3, 0]}


def pixels_of(batch):
    return np.random.default_rng(len(batch)).integers(256, size=(len(LABELS[batch]), 3 * 32 * 32), dtype=np.uint8)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a line for each request."""

    def log_message(self, *arguments):
        pass


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A `cifar-10-python.tar.gz` of ten images on a local server, which torchvision is told is the true one."""
    contents = {name: {"data": pixels_of(name), "labels": labels} for name, labels in LABELS.items()}
    contents["batches.meta"] = {"label_names": list(CLASSES)}
    folder = tmp_path / "far" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    path = tmp_path / "far" / CIFAR10.filename
    with tarfile.open(path, "w:gz") as packed:
        packed.add(folder, folder.name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=path.parent))
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    monkeypatch.setenv("UDA_DATA", str(tmp_path / "data"))
    yield path
    server.shutdown()
    server.server_close()


def test_images_are_numbered_within_their_class_in_the_official_order(archive, tmp_path, capsys):
    assert hardness(["fetch", "cifar10"]) == 0
    root = tmp_path / "data" / "cifar10"
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert found == [
        "test/airplane/0000.png", "test/cat/0000.png", "test/cat/0001.png", "test/ship/0000.png", "test_order.txt",
        "train/airplane/0000.png", "train/airplane/0001.png", "train/cat/0000.png", "train/cat/0001.png",
        "train/cat/0002.png", "train/truck/0000.png",
    ]  # fmt: skip
    order = ["test/cat/0000.png", "test/ship/0000.png", "test/cat/0001.png", "test/airplane/0000.png"]
    assert (root / "test_order.txt").read_text().split() == order
    for name, batch, row in ((order[2], "test_batch", 2), ("train/cat/0002.png", "data_batch_2", 2)):
        expected = pixels_of(batch)[row].reshape(3, 32, 32).transpose(1, 2, 0)
        assert np.array_equal(np.asarray(Image.open(root / name)), expected), "to the last bit"
    assert not [path for path in root.iterdir() if path.name.startswith(".")], "the archive is gone"
    counts = np.zeros((4, 10), dtype=np.int64)
    counts[np.arange(4), [3, 8, 5, 0]] = 50
    np.save(tmp_path / "cifar10h-counts.npy", counts)
    human = read_human(tmp_path / "cifar10h-counts.npy")
    assert human.ids == tuple(order) and human.frequencies.tolist() == [1, 1, 0, 1]
    capsys.readouterr()


def test_without_uda_data_it_lies_in_datasets_in_the_current_folder(archive, in_folder, monkeypatch):
    monkeypatch.delenv("UDA_DATA")
    assert hardness(["fetch", "cifar10"]) == 0
    assert CARDS["cifar10"].find_root() == in_folder / "datasets" / "cifar10"
    assert (in_folder / "datasets" / "cifar10" / "test_order.txt").is_file()


def test_what_is_there_stays(archive, tmp_path, capsys):
    root = tmp_path / "own"
    (root / "train").mkdir(parents=True)
    assert hardness(["fetch", "cifar10", "--root", str(root), "--archive", str(tmp_path / "kept")]) == 0
    assert not list((root / "train").iterdir()) and (tmp_path / "kept" / CIFAR10.filename).is_file()
    assert f"{root / 'train'} exists already" in capsys.readouterr().out
    archive.unlink()
    assert hardness(["fetch", "cifar10", "--root", str(root)]) == 0, "nothing left to do"
    (root / "test_order.txt").unlink()
    assert hardness(["fetch", "cifar10", "--root", str(root), "--archive", str(tmp_path / "kept")]) == 0, (
        "from the kept one"
    )
    assert len((root / "test_order.txt").read_text().split()) == 4


def test_offline_is_said_in_a_line(archive, tmp_path, capsys):
    archive.unlink()
    assert hardness(["fetch", "cifar10"]) == 2
    error = capsys.readouterr().err
    assert "CIFAR-10 could not be downloaded from http://" in error and "name its folder in --archive" in error
    assert error.count("\n") == 1 and not list((tmp_path / "data" / "cifar10").iterdir())


def test_a_damaged_archive_is_not_opened(archive, tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    archive.write_bytes(archive.read_bytes()[:-20])
    assert hardness(["fetch", "cifar10"]) == 2
    assert "could not be downloaded" in capsys.readouterr().err
