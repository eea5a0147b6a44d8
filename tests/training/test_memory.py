"""Memory that runs out, told with the setting to lower. The messages are real ones; what raises them is made up."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.dry_run import dry_run
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.data.banks import header
from uda.training import memory
from uda.training.memory import room_for, shortage

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of which 12.73 GiB is "
    "free. Including non-PyTorch memory, this process has 18.73 GiB memory in use. Of the allocated memory 9.08 GiB is "
    "allocated by PyTorch, and 9.35 GiB is reserved by PyTorch but unallocated."
)
GPU_IS_FULL = "out of memory, 22.78 GiB more were requested, the GPU has 31.47 GiB, of which 12.73 GiB are free"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CUDA, GPU_IS_FULL),
        (
            RuntimeError(
                "MPS backend out of memory (MPS allocated: 15.05 GB, other allocations: 11.91 GB, max allowed: 27.20 "
                "GB). Tried to allocate 1.16 GB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable "
                "upper limit for memory allocations (may cause system failure)."
            ),
            "out of memory, 1.16 GB more were requested, at most 27.20 GB are allowed",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "out of memory, 4.00 GiB more were requested",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), None),
    ],
)
def test_what_an_error_says_of_memory(error, told):
    assert shortage(error) == told


def test_the_allocator_of_this_machine_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert shortage(caught.value) == "out of memory, 1,073,741,824.00 GiB more were requested"


@pytest.fixture
def run(tiny, tmp_path):
    """A tiny run whose network takes no batch that `too_large` is true of."""

    def make(too_large, *overrides):
        run = AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}", *overrides]))

        def look(network, images):
            if too_large(network, images[0]):
                raise CUDA

        run.engine.network.backbone.register_forward_pre_hook(look)
        return run

    return make


ADAPTING = ("adaptation.steps=2", "adaptation.batch={source: 4, target: 4}", "source.epochs=0")


@pytest.mark.parametrize(
    ("size", "overrides", "told"),
    [
        (8, (), "source: .*runtime.accumulate=2 .*, or lower source.batch_size or transforms.size"),
        (5, ("source.batch_size=4", "self_training.batch.selected=5"), "round 0: .*, or lower self_training.batch or"),
        (8, ("method=mcc", *ADAPTING), "adaptation: .*, or lower adaptation.batch or transforms.size"),
        (8, ("method=mcd", *ADAPTING), r"adaptation: [^;]*; lower adaptation.batch or transforms.size$"),
    ],
)
def test_training(run, size, overrides, told):
    with pytest.raises(UserError, match=told) as caught:
        run(lambda network, images: network.training and len(images) >= size, *overrides).execute()
    assert f"{GPU_IS_FULL} (cpu)" in str(caught.value)


def test_a_dry_run(run):
    run = run(lambda network, images: network.training)
    with pytest.raises(UserError, match=r"source: .*runtime.accumulate=2 .*, or lower source.batch_size"):
        dry_run(run)


def test_predicting(run):
    run = run(lambda network, images: not network.training and len(images) > 8)
    run._try_out()
    told = r"predict: .*; lower runtime.predict_batch_size \(128 now\) or transforms.size"
    with pytest.raises(UserError, match=told):
        run.predict()
    with pytest.raises(UserError, match=told):  # before hours of training, where the device has memory of its own
        run._try_out_batch()


def test_the_first_two_images(run):
    with pytest.raises(UserError, match=r"predict: .*; use a smaller model.backbone or transforms.size"):
        run(lambda network, images: True)._try_out()


def test_batch_norm_statistics(run):
    run = run(lambda network, images: network.layers[1].training, "self_training.adapt_batch_norm=true")
    with pytest.raises(UserError, match=r"BatchNorm statistics: .*; set self_training.adapt_images below 128"):
        run.adapt_batch_norm()


def test_a_run_on_a_gpu_tries_its_largest_batch_at_the_start(run, monkeypatch):
    run = run(lambda network, images: False)
    prediction, counts = run.predict().whole, []
    monkeypatch.setattr(run.engine, "predict", lambda batches, count: counts.append(count) or prediction)
    run._try_out()
    assert counts == [2]
    monkeypatch.setattr(run.engine, "device", torch.device("cuda:0"))
    run._try_out()
    assert counts == [2, 2, 32], "all 32 images of the target are fewer than a batch"


def test_a_large_array_lies_in_a_file_that_leaves_no_trace(tmp_path, monkeypatch):
    small = room_for(10, 3, tmp_path)
    monkeypatch.setattr(memory, "MOST_BYTES", 100)
    large = room_for(10, 3, tmp_path)
    assert isinstance(small.base, type(None)) and isinstance(large.base, np.memmap)
    for array in (small, large):
        assert array.shape == (10, 3) and array.dtype == np.float32
        array[:] = np.arange(30).reshape(10, 3)
        np.testing.assert_array_equal(torch.from_numpy(array).numpy().ravel(), np.arange(30))
    assert not list(tmp_path.iterdir())
    assert room_for(10, 3, tmp_path / "missing").shape == (10, 3)


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(memory, "MOST_BYTES", 100)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="features of a prediction cannot be written: No space left on device"):
        room_for(10, 3, tmp_path)


#: A run on 60,000 x 1,280 features without a head. It prints the MiB of the peak beyond the memory before the run.
LARGE_BANK = """
import sys, threading, time
from pathlib import Path
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.training import memory

bank, output, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
memory.MOST_BYTES = most * 2**20
peak, running = 0.0, True

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon:"))

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.02)

settings = ["data.dataset=null", f"data.features={bank}", "data.source=a", "data.target=b", f"output={output}"]
lengths = ["source.steps=4", "self_training.rounds=2", "self_training.steps=2", "model.head=null"]
config = AdaptationConfig.load("pacs_avh", [*settings, *lengths, "report.page=false", "report.loggers=[]"])
for name in ("scipy.linalg", "pyarrow.parquet", "sklearn.metrics"):
    __import__(name)
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
AdaptationRun(config).execute()
running = False
thread.join()
print("peak", peak - before)
"""


def write_bank(folder, counts, width, classes=3):
    """A bank of random features, block by block."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        ids = "\0".join(f"{name}{row}" for row in range(count)).encode()
        labels = rng.integers(0, classes, count)
        told = {"format": 1, "domain": name, "classes": ["x", "y", "z"], "made_by": {}}
        told |= dict.fromkeys(("checksum", "images", "labels"), name)
        shapes = {"features": ("F32", (count, width)), "labels": ("I64", (count,)), "ids": ("U8", (len(ids),))}
        with open(folder / f"{name}.safetensors", "wb") as file:
            file.write(header(told, shapes)[0])
            for start in range(0, count, 2000):
                block = rng.normal(size=(min(2000, count - start), width)).astype(np.float32)
                file.write(block.tobytes())
            file.write(labels.astype(np.int64).tobytes() + ids)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's account of memory")
def test_memory_of_a_run_on_a_large_bank_does_not_hold_its_features(tmp_path):
    """The features take 293 MiB. A run that holds them, as with a large MOST_BYTES, takes more by that at least."""
    write_bank(tmp_path, {"a": 600, "b": 60_000}, 1280)
    peaks = []
    for most in (16, 4096):
        run = [sys.executable, "-c", LARGE_BANK, str(tmp_path), str(tmp_path / f"run{most}"), str(most)]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout.split()[-1]))
    bounded, held = peaks
    assert bounded < 500 and held - bounded > 293, peaks
