"""Which device a run uses, and the settings that are best on it.

`settle` decides what a config leaves open, and `describe` says it in one line. Threads, malloc, TF32 and cuDNN's
benchmark belong to the whole process: the command line sets them by `set_up_process`, a library call never does.
CUDA and MPS are decided by what their makers document; the CPU's settings by measurement (`uda bench`).
"""

import ctypes
import os
import platform
import shutil
import warnings
from pathlib import Path

import torch
from torch import nn

from uda.core.devices import pick_device
from uda.core.errors import UserError
from uda.training.settings import RuntimeSettings

#: Networks with fewer parameters stay in fp32: their casts cost more than half precision saves.
FEW_PARAMETERS = 1_000_000


def settle(settings: RuntimeSettings, network: nn.Module) -> RuntimeSettings:
    """The settings with every `auto` and null decided for this machine and network, except `workers`.

    What the user has set stays as it is, except what belongs to the whole process: `threads`, `allocator`, `tf32` and
    `cudnn_benchmark` come back as they are in this process. `workers` depends on where the images lie: see
    `loader_workers`.

    Raises:
        UserError: a device that is not there, or `compile` without the compiler that torch needs for it.
    """
    device = pick_device(settings.device)
    cuda, cpu = device.type == "cuda", device.type == "cpu"
    if settings.compile and not has_compiler(device.type):
        language, variable, names = _COMPILERS[device.type]
        raise UserError(
            f"runtime.compile: torch.compile needs a {language} compiler on {device.type} ({names[0]}, or one named by "
            f"${variable}), and none was found; install one, or set it to false"
        )
    parameters = sum(p.numel() for p in network.parameters())
    best = {
        "precision": _precision(device, parameters),
        "channels_last": _channels_last(device, network),
        "fused": cuda,
        "pin_memory": cuda,
        "predict_batch_size": _predict_batch_size(cpu, parameters),
    }
    decided = {name: value for name, value in best.items() if getattr(settings, name) in (None, "auto")}
    # Asked for where they cannot be had: a config should run on every machine.
    if not cuda:
        decided["pin_memory"] = False
    return settings.model_copy(update={**decided, **_of_this_process(device), "device": str(device)})


def _of_this_process(device: torch.device) -> dict[str, object]:
    """The settings of the whole process as they are, whatever was asked for."""
    found = {"threads": torch.get_num_threads(), "allocator": "keep" if _kept else "default"}
    found["cudnn_benchmark"] = device.type == "cuda" and torch.backends.cudnn.benchmark
    if device.type == "cuda":
        with warnings.catch_warnings(action="ignore"):
            found["tf32"] = torch.backends.cudnn.allow_tf32
    return found


def set_up_process(settings: RuntimeSettings) -> None:
    """Put into force what is the whole process's: threads, malloc, TF32, cuDNN's benchmark and the current GPU.

    null and `auto` are decided for this machine. Only the command line, benchmarks and checks call it.

    Raises:
        UserError: a device that is not there.
    """
    device = pick_device(settings.device)
    if settings.threads and settings.threads != torch.get_num_threads():
        torch.set_num_threads(settings.threads)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        # torch 2.9 warns of newer names. After those, other code that reads the older ones may meet an error.
        with warnings.catch_warnings(action="ignore"):
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = settings.tf32
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark in (None, True)
    automatic = settings.allocator == "auto" and device.type == "cpu" and not _malloc_is_chosen()
    if settings.allocator == "keep" or automatic:
        keep_memory()


def loader_workers(settings: RuntimeSettings, in_memory: bool) -> int:
    """Loader processes: none for images in memory, else up to 8 and at most this process's share of the cores."""
    if settings.workers is not None:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return 0 if in_memory else max(1, min(8, cores // processes))


def processor() -> str:
    """The CPU's name, the widest instructions that torch uses, and whether it computes in bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    known = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = any(known.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}{', bf16 units' * bf16})"


def describe(settings: RuntimeSettings, workers: int) -> str:
    """Settled settings in a line, such as `cpu, 2 threads, fp32, channels_last, malloc keeps its memory, 0 workers`."""
    device = torch.device(settings.device)
    if device.type == "cuda":
        words = [f"{device} ({torch.cuda.get_device_name(device)})"]
    else:
        words = [str(device)]
    if device.type == "cpu":
        words.append(_count(settings.threads, "thread"))
    words.append(settings.precision)
    if settings.predict_precision != settings.precision:
        words.append(f"predicting in {settings.predict_precision}")
    words += [
        text
        for text, on in (
            ("channels_last", settings.channels_last),
            ("TF32 convolutions", settings.tf32 and device.type == "cuda"),
            ("cuDNN benchmark", settings.cudnn_benchmark and device.type == "cuda"),
            ("fused optimiser", settings.fused),
            ("torch.compile", settings.compile),
            ("pinned memory", settings.pin_memory),
            ("malloc keeps its memory", settings.allocator == "keep"),
        )
        if on
    ]
    return ", ".join([*words, _count(workers, "worker")])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _precision(device: torch.device, parameters: int) -> str:
    """bf16 on GPUs that compute in it, for a network that is large enough to gain; fp32 elsewhere.

    On CPUs that compute in bf16 it depends on the layers whether it gains (ResNet-18 does, EfficientNet-Lite0 loses),
    and timing a step would let the machine's load decide a result's digits.
    """
    if device.type != "cuda" or parameters < FEW_PARAMETERS:
        return "fp32"
    with torch.cuda.device(device):  # torch asks the current one
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _predict_batch_size(cpu: bool, parameters: int) -> int:
    """On a CPU what fits its caches: larger batches take up to twice as long an image, smaller ones cost calls."""
    return 256 if not cpu else 128 if parameters < FEW_PARAMETERS else 32


def _channels_last(device: torch.device, network: nn.Module) -> bool:
    """For convolutional networks on CUDA, and on CPUs by way of oneDNN; on MPS it gains nothing that is known."""
    if not any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        return False
    return device.type == "cuda" or (device.type == "cpu" and torch.backends.mkldnn.is_available())


#: By device what torch.compile's backend compiles besides (inductor its CPU code, Triton its launchers): the language,
#: the variable that may name a compiler, and the names that are looked for.
_COMPILERS = {"cpu": ("C++", "CXX", ("g++", "clang++", "cl")), "cuda": ("C", "CC", ("gcc", "clang", "cl"))}


def has_compiler(device: str) -> bool:
    """Whether there is a compiler that torch.compile needs for a type of device; on others it needs none."""
    if device not in _COMPILERS:
        return True
    _, variable, names = _COMPILERS[device]
    return any(shutil.which(name) for name in (os.environ.get(variable), *names) if name)


# malloc. Each training step frees and takes some hundred blocks of megabytes. By default glibc gets each of them from
# the kernel anew, which hands out zeroed pages, 4 KiB at a time: for EfficientNet-Lite0 a tenth of the step.


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows, musl
        return False


def _malloc_is_chosen() -> bool:
    """Whether the environment says how to allocate: another malloc, or glibc's with settings of its own."""
    return (
        "malloc" in os.environ.get("LD_PRELOAD", "")
        or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
        or any(name.startswith("MALLOC_") for name in os.environ)
    )


# From glibc's malloc.h and Linux's mman.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _MADV_HUGEPAGE = -1, -2, -4, 14
_TOP_PAD = 64 * 2**20
_HUGE_PAGES = 4 * 2**30

_kept = False


def keep_memory() -> None:
    """Tell glibc's malloc to keep what it has: no mmap for large blocks, no trim, growth by 64 MiB, huge pages.

    Cannot be undone, so the process stays as large as it has ever been. With another C library nothing happens.
    """
    global _kept
    if _kept or not _has_glibc():
        return
    _kept = True
    libc = ctypes.CDLL(None)
    libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD)):
        libc.mallopt(parameter, value)
    if _may_reserve():
        _advise_huge_pages(libc)


def _may_reserve() -> bool:
    """Whether address space that is not used costs nothing here."""
    import resource  # not on Windows, which has no glibc either

    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    strict = Path("/proc/sys/vm/overcommit_memory")
    return all(limit == resource.RLIM_INFINITY for limit in limits) and (
        not strict.is_file() or strict.read_text().strip() != "2"
    )


def _advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask for huge pages for the heap's next 4 GiB.

    The heap grows once by a block that nothing ever touches. As nothing is trimmed, its addresses stay with the
    heap when the block is freed, and with them the advice; memory is taken only where later blocks are written.
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(_HUGE_PAGES)
    if not block:
        return
    page = os.sysconf("SC_PAGESIZE")
    start = -(-block // page) * page
    libc.madvise(start, (block + _HUGE_PAGES - start) // page * page, _MADV_HUGEPAGE)  # refused by some kernels: well
    libc.free(block)
