"""The device of a run, and the best settings for it.

`settle` resolves the open settings of a config, and `describe` shows them in one line. Threads, malloc, TF32 and
cuDNN's benchmark apply to the whole process. The command line sets them with `set_up_process`; a library call never
does. The settings for CUDA and MPS follow their documentation, those for CPUs follow measurements
(`uda bench`).
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

#: Networks with fewer parameters use fp32, because casts cost more than half precision saves.
FEW_PARAMETERS = 1_000_000


def settle(settings: RuntimeSettings, network: nn.Module) -> RuntimeSettings:
    """The settings with every `auto` and null resolved for this machine and network, except `workers`.

    The user's values are kept, with one exception: `threads`, `allocator`, `tf32` and `cudnn_benchmark` apply to the
    whole process and are returned as they are in this process. `workers` depends on whether the images are in memory;
    see `loader_workers`.

    Raises:
        UserError: the device does not exist, or `compile` lacks the compiler that torch needs.
    """
    device = pick_device(settings.device)
    cuda, cpu = device.type == "cuda", device.type == "cpu"
    if settings.compile and not has_compiler(device.type):
        language, variable, names = _COMPILERS[device.type]
        raise UserError(
            f"runtime.compile: torch.compile needs a {language} compiler on {device.type} ({names[0]}, or one that "
            f"${variable} names), but none was found; install one, or set it to false"
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
    # Page-locked memory needs CUDA. It is no error elsewhere, because a config should run on every machine.
    if not cuda:
        decided["pin_memory"] = False
    return settings.model_copy(update={**decided, **_of_this_process(device), "device": str(device)})


def _of_this_process(device: torch.device) -> dict[str, object]:
    """The current settings of the whole process."""
    found = {"threads": torch.get_num_threads(), "allocator": "keep" if _kept else "default"}
    found["cudnn_benchmark"] = device.type == "cuda" and torch.backends.cudnn.benchmark
    if device.type == "cuda":
        with warnings.catch_warnings(action="ignore"):
            found["tf32"] = torch.backends.cudnn.allow_tf32
    return found


def set_up_process(settings: RuntimeSettings) -> None:
    """Apply the settings of the whole process: threads, malloc, TF32, cuDNN's benchmark and the current GPU.

    null and `auto` are resolved for this machine. Only the command line, benchmarks and checks call it.

    Raises:
        UserError: the device does not exist.
    """
    device = pick_device(settings.device)
    if settings.threads and settings.threads != torch.get_num_threads():
        torch.set_num_threads(settings.threads)
    if device.type == "cuda":
        torch.cuda.set_device(torch.device("cuda", device.index or 0))  # an earlier command may have set another
        # torch 2.9 warns that there are newer names. With those, code that reads the older names may fail.
        with warnings.catch_warnings(action="ignore"):
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = settings.tf32
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark in (None, True)
    automatic = settings.allocator == "auto" and device.type == "cpu" and not _malloc_is_chosen()
    if settings.allocator == "keep" or automatic:
        keep_memory()


def loader_workers(settings: RuntimeSettings, in_memory: bool) -> int:
    """Number of loader processes: 0 for images in memory, else at most 8 and at most this process's share of cores."""
    if settings.workers is not None:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return 0 if in_memory else max(1, min(8, cores // processes))


def processor() -> str:
    """The CPU's name, the widest instructions that torch uses, and whether it has bf16 units."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    known = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = any(known.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}{', bf16 units' * bf16})"


def describe(settings: RuntimeSettings, workers: int) -> str:
    """One line for settled settings, like `cpu, 2 threads, fp32, channels_last, malloc keeps its memory, 0 workers`."""
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
    """bf16 on GPUs with bf16 units if the network is large enough to gain; else fp32.

    On CPUs with bf16 units the gain depends on the layers: ResNet-18 becomes faster, EfficientNet-Lite0 slower. Timing
    a step is no solution, because then the machine's load would decide the digits of a result.
    """
    if device.type != "cuda" or parameters < FEW_PARAMETERS:
        return "fp32"
    with torch.cuda.device(device):  # torch asks the current device
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _predict_batch_size(cpu: bool, parameters: int) -> int:
    """Images per batch. On a CPU they fit its caches: larger batches take up to twice as long per image."""
    return 256 if not cpu else 128 if parameters < FEW_PARAMETERS else 32


def _channels_last(device: torch.device, network: nn.Module) -> bool:
    """True for convolutional networks on CUDA and on CPUs with oneDNN. On MPS no gain is known."""
    if not any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        return False
    return device.type == "cuda" or (device.type == "cpu" and torch.backends.mkldnn.is_available())


#: The compiler that torch.compile needs (inductor for CPU code, Triton for launchers), by device: the language, the
#: variable that may name a compiler, and the names to look for.
_COMPILERS = {"cpu": ("C++", "CXX", ("g++", "clang++", "cl")), "cuda": ("C", "CC", ("gcc", "clang", "cl"))}


def has_compiler(device: str) -> bool:
    """Whether the compiler that torch.compile needs for a type of device is installed; True if it needs none."""
    if device not in _COMPILERS:
        return True
    _, variable, names = _COMPILERS[device]
    return any(shutil.which(name) for name in (os.environ.get(variable), *names) if name)


# malloc. Each training step frees and allocates some hundred blocks of megabytes. By default glibc requests each of
# them from the kernel, which gives zeroed pages of 4 KiB. For EfficientNet-Lite0 this takes a tenth of the step.


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows, musl
        return False


def _malloc_is_chosen() -> bool:
    """Whether the environment configures malloc: another library, or settings of glibc's malloc."""
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
    """Make glibc's malloc keep freed memory: no mmap for large blocks, no trim, growth by 64 MiB, huge pages.

    This cannot be undone, so the process never shrinks. With another C library nothing happens.
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
    """Whether unused address space costs nothing on this system."""
    import resource  # does not exist on Windows, which has no glibc either

    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    strict = Path("/proc/sys/vm/overcommit_memory")
    return all(limit == resource.RLIM_INFINITY for limit in limits) and (
        not strict.is_file() or strict.read_text().strip() != "2"
    )


def _advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Request huge pages for the next 4 GiB of the heap.

    The heap grows once by a block that is never written. Nothing is trimmed, so its addresses stay in the heap when the
    block is freed, and the advice stays with them. Memory is used only when later blocks are written.
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(_HUGE_PAGES)
    if not block:
        return
    page = os.sysconf("SC_PAGESIZE")
    start = -(-block // page) * page
    # Some kernels refuse, which does no harm.
    libc.madvise(start, (block + _HUGE_PAGES - start) // page * page, _MADV_HUGEPAGE)
    libc.free(block)
