"""Which settings a device gets, by capabilities that the tests make up; and malloc for real, where there is glibc."""

import contextlib
import os

import pytest
import torch
from torch import nn

from tests.forked import Forked
from uda.core.devices import pick_device
from uda.core.errors import UserError
from uda.training import device
from uda.training.device import describe, loader_workers, set_up_process, settle
from uda.training.settings import RuntimeSettings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No malloc settings, no torchrun, no compiler of the machine that the tests run on."""
    for name in ("LD_PRELOAD", "GLIBC_TUNABLES", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)


def network(parameters=2_000_000, convolutional=True):
    layers = [nn.Conv2d(1, 1, 1)] if convolutional else []
    return nn.Sequential(*layers, nn.Linear(parameters // 100, 100))


def pretend_cuda(monkeypatch, bf16=True):
    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: "Tesla X")
    monkeypatch.setattr(torch.cuda, "set_device", lambda which: None)
    monkeypatch.setattr(torch.cuda, "device", lambda which: contextlib.nullcontext())


@pytest.fixture
def process(monkeypatch):
    """What is the whole process's comes back as it was; malloc is not touched."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    tf32, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    monkeypatch.setattr(device, "_kept", False)
    monkeypatch.setattr(device, "_has_glibc", lambda: True)
    monkeypatch.setattr(device, "keep_memory", lambda: monkeypatch.setattr(device, "_kept", True))
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
    torch.set_float32_matmul_precision(products)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(UserError, match=r"runtime\.device: 'quantum'"):
        pick_device("quantum")


def test_a_device_that_is_missing_is_told_in_a_sentence(monkeypatch):
    """torch's own message on MPS has a thousand characters."""

    def refuse(*size, device):
        raise NotImplementedError("Could not run 'aten::empty' on MPS. This could be for many reasons.\nMPS: ...")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UserError, match=r"'mps' is not available on this machine: Could not run 'aten::empty' on MPS$"):
        pick_device("mps")


def test_under_torchrun_each_process_takes_its_own_gpu(monkeypatch):
    """On a machine without that GPU it is the one that the message names."""
    monkeypatch.setenv("LOCAL_RANK", "61")
    with pytest.raises(UserError, match=r"runtime\.device: 'cuda:61' is not available on this machine"):
        pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "visible", "processes", "found"),
    [
        ("cuda", 8, 8, "cuda:3"),
        ("auto", 8, 8, "cuda:3"),
        ("cuda", 1, 8, "cuda:0"),  # the launcher shows each process its own
        ("cuda:0", 1, 8, "cuda:0"),
        ("cuda:5", 8, 1, "cuda:5"),  # the only process of this machine
    ],
)
def test_a_process_of_a_job_finds_its_gpu(monkeypatch, name, visible, processes, found):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert pick_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "visible", "told"),
    [
        ("cuda:0", 8, "'cuda:0' would be shared by all 4 processes of this machine; set it to cuda"),
        (
            "cuda",
            2,
            "there are 4 processes on a machine with 2 GPUs; start one process for each GPU, with --n",
        ),
    ],
)
def test_processes_that_would_share_a_gpu_are_refused(monkeypatch, name, visible, told):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(UserError, match=f"runtime.device: {told}"):
        pick_device(name)


@pytest.mark.parametrize("parameters", [100_000, 2_000_000])
def test_a_cpu_trains_in_fp32_unless_told_otherwise(monkeypatch, parameters):
    """Also where it computes in bf16: whether that is faster depends on the network's layers."""
    features = {"avx512_bf16": True, "amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    settled = settle(RuntimeSettings(device="cpu"), network(parameters))
    assert (settled.precision, settled.predict_precision) == ("fp32", "fp32")
    assert settle(RuntimeSettings(device="cpu", precision="bf16"), network(parameters)).precision == "bf16"


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_cuda_settings(monkeypatch, bf16, precision):
    """Emulated bf16 (GPUs before Ampere) does not count."""
    pretend_cuda(monkeypatch, bf16)
    settled = settle(RuntimeSettings(), network())
    assert settled.precision == precision
    assert settle(RuntimeSettings(), network(parameters=100_000)).precision == "fp32"
    assert settled.channels_last and settled.fused and settled.pin_memory
    assert (settled.predict_batch_size, settled.device) == (256, "cuda:0")


def test_mps_settings(monkeypatch):
    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("mps"))
    settled = settle(RuntimeSettings(), network())
    assert (settled.precision, settled.channels_last, settled.fused, settled.pin_memory) == ("fp32",) + (False,) * 3


def test_cpu_settings(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    settled = settle(RuntimeSettings(device="cpu"), network())
    assert (settled.channels_last, settled.fused, settled.cudnn_benchmark) == (True, False, False)
    assert settled.predict_batch_size == 32
    assert settle(RuntimeSettings(device="cpu"), network(parameters=50_000)).predict_batch_size == 128
    assert settle(RuntimeSettings(device="cpu"), network(convolutional=False)).channels_last is False
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert settle(RuntimeSettings(device="cpu"), network()).channels_last is False


def test_what_the_user_says_stays(monkeypatch):
    pretend_cuda(monkeypatch)
    said = {
        "precision": "fp16",
        "channels_last": False,
        "fused": False,
        "pin_memory": False,
        "predict_batch_size": 7,
        "workers": 3,
    }
    settled = settle(RuntimeSettings(**said), network())
    assert {name: getattr(settled, name) for name in said} == said


def test_what_cannot_be_had_is_left_out(monkeypatch):
    """Malloc settings without glibc, page-locked memory without CUDA: a config should run everywhere."""
    monkeypatch.setattr(device, "_has_glibc", lambda: False)
    monkeypatch.setattr(device, "_kept", False)
    settings = RuntimeSettings(device="cpu", allocator="keep", pin_memory=True)
    set_up_process(settings)
    settled = settle(settings, network())
    assert (settled.allocator, settled.pin_memory) == ("default", False)


ASKED = RuntimeSettings(threads=3, allocator="keep", tf32=False, cudnn_benchmark=True)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_library_call_changes_nothing_of_the_process_and_says_what_holds(monkeypatch, process, kind):
    """`Engine` and whoever settles settings is told the process's own, whatever was asked for."""
    if kind == "cuda":
        pretend_cuda(monkeypatch)
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
    settled = settle(ASKED.model_copy(update={"device": kind}), network())
    assert torch.get_num_threads() == settled.threads == 2
    assert (settled.allocator, settled.cudnn_benchmark) == ("default", False)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == (False, True)
    if kind == "cuda":
        assert settled.tf32 is True
    else:
        assert ", 2 threads, " in describe(settled, 0) and "malloc" not in describe(settled, 0)


def test_the_command_line_sets_up_the_process(monkeypatch, process):
    pretend_cuda(monkeypatch)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    torch.backends.cudnn.benchmark = False
    set_up_process(ASKED)
    settled = settle(ASKED, network())
    assert current == [torch.device("cuda:0")] and torch.get_num_threads() == 3
    assert (settled.threads, settled.allocator, settled.tf32, settled.cudnn_benchmark) == (3, "keep", False, True)
    set_up_process(RuntimeSettings(cudnn_benchmark=False))
    assert torch.backends.cudnn.benchmark is False and torch.get_num_threads() == 3, "null: as it is"
    set_up_process(RuntimeSettings())
    assert torch.backends.cudnn.benchmark is True, "null: on CUDA"


def test_a_gpu_without_a_number_is_the_first_also_after_a_command_that_named_another(monkeypatch, process):
    """A worker of a table carries out many commands."""
    pretend_cuda(monkeypatch)
    current = []
    monkeypatch.setattr(device, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda which: current.append(torch.device(which)))
    for name in ("cuda:1", "cuda"):
        set_up_process(RuntimeSettings(device=name))
    assert current == [torch.device("cuda:1"), torch.device("cuda:0")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        ("MALLOC_TOP_PAD_", "1"),
    ],
)
def test_malloc_that_the_environment_tunes_is_left_alone(monkeypatch, process, name, value):
    def allocator(**said):
        monkeypatch.setattr(device, "_kept", False)
        set_up_process(RuntimeSettings(device="cpu", **said))
        return settle(RuntimeSettings(device="cpu"), network()).allocator

    assert allocator() == "keep"
    monkeypatch.setenv(name, value)
    assert allocator() == "default"
    assert allocator(allocator="keep") == "keep"


@pytest.mark.parametrize(("place", "language", "variable"), [("cpu", r"C\+\+", "CXX"), ("cuda", "C", "CC")])
def test_compile_without_a_compiler_is_refused(monkeypatch, tmp_path, place, language, variable):
    """inductor compiles C++ for CPUs; on CUDA Triton compiles what starts its kernels, in C."""
    compiler = tmp_path / "compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", "")
    if place == "cuda":
        pretend_cuda(monkeypatch)
    settings = RuntimeSettings(device=place, compile=True)
    with pytest.raises(
        UserError, match=rf"runtime\.compile: .*needs a {language} compiler on {place} .*\${variable} names\)"
    ):
        settle(settings, network())
    monkeypatch.setenv(variable, str(compiler))
    assert settle(settings, network()).compile
    monkeypatch.delenv(variable)
    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("mps"))
    assert settle(settings, network()).compile, "Metal is compiled by the system"


def test_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    free = RuntimeSettings()
    assert (loader_workers(free, in_memory=True), loader_workers(free, in_memory=False)) == (0, 8)
    assert loader_workers(RuntimeSettings(workers=3), in_memory=True) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_workers(free, in_memory=False) == 3


def test_the_line_names_what_is_on(monkeypatch, process):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    set_up_process(RuntimeSettings(device="cpu", threads=2))
    settled = settle(RuntimeSettings(device="cpu"), network())
    assert describe(settled, 0) == "cpu, 2 threads, fp32, channels_last, malloc keeps its memory, 0 workers"
    plain = RuntimeSettings(device="cpu", threads=1, channels_last=False, compile=True)
    monkeypatch.setattr(device, "has_compiler", lambda kind: True)
    monkeypatch.setattr(device, "_kept", False)
    torch.set_num_threads(1)
    assert describe(settle(plain, network()), 1) == "cpu, 1 thread, fp32, torch.compile, 1 worker"
    pretend_cuda(monkeypatch)
    set_up_process(RuntimeSettings())
    assert describe(settle(RuntimeSettings(), network()), 8) == (
        "cuda:0 (Tesla X), bf16, predicting in fp32, channels_last, TF32 convolutions, cuDNN benchmark, "
        "fused optimiser, pinned memory, 8 workers"
    )


def test_tf32_is_for_convolutions_and_no_warning_is_raised(monkeypatch, process, recwarn):
    """torch takes the flags without a GPU, so they can be read; what they do needs one.

    Losses and angles promise all bits of fp32, also where the process had said otherwise.
    """
    pretend_cuda(monkeypatch)
    for on in (True, False):
        torch.set_float32_matmul_precision("high")
        set_up_process(RuntimeSettings(tf32=on, cudnn_benchmark=on))
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 is on
        assert torch.backends.cudnn.benchmark is on
    assert not [str(warning.message) for warning in recwarn]


FAULTS = """
import resource
import torch
from uda.training import device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 2**20).mul(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = min(faults() for _ in range(3))
device.keep_memory()
faults()
print(plain, min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(not device._has_glibc(), reason="needs glibc")
def test_malloc_keeps_its_memory(tmp_path):
    """Blocks that were freed are given out again, or come in huge pages: the kernel is asked for next to none."""
    (tmp_path / "faults.py").write_text(FAULTS)
    process = Forked(tmp_path / "faults.py")
    output, error = process.communicate()
    assert process.returncode == 0, error
    plain, kept = map(int, output.split())
    assert 100 * kept < plain


@pytest.mark.cuda
def test_settings_on_a_real_gpu():
    set_up_process(RuntimeSettings(device="cuda"))
    settled = settle(RuntimeSettings(device="cuda"), network())
    assert torch.backends.cudnn.benchmark and settled.fused
    assert torch.cuda.get_device_name(0) in describe(settled, 0)
