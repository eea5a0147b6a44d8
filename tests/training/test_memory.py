"""Memory that runs out, told with the setting to lower. The messages are real ones; what raises them is made up."""

import pytest
import torch

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.dry_run import dry_run
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.training.memory import shortage

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
