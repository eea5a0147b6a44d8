"""Picks the device that a name means for this process, and waits for a device."""

import os

import torch

from uda.core.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of a name. `auto` is cuda if available, else mps, else cpu.

    Under torchrun, `cuda` is this process's own GPU.

    Raises:
        UserError: the device is not available, or several processes would share a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and "LOCAL_RANK" in os.environ:
        name = _own_gpu(name, int(os.environ["LOCAL_RANK"]))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # the rest of torch's message lists all its backends
        if reason.startswith("Expected one of"):  # torch lists all its kinds of devices
            reason = "give auto, cpu, cuda or mps"
        raise UserError(f"runtime.device: '{name}' is not available on this machine: {reason}") from None
    return device


def _own_gpu(name: str, local_rank: int) -> str:
    """The GPU that `name` means for a process of a job. `local_rank` is its number among the machine's processes."""
    visible = torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    if visible == 1:  # some launchers show each process only its own GPU, which then has number 0
        return "cuda:0" if name == "cuda" else name
    if name != "cuda":
        if processes > 1:
            raise UserError(
                f"runtime.device: '{name}' would be shared by all {processes} processes of this machine; set it to "
                "cuda, which gives each process its own GPU"
            )
        return name
    if 0 < visible <= local_rank:
        raise UserError(
            f"runtime.device: there are {processes} processes on a machine with {visible} GPUs; start one process for "
            f"each GPU, with --nproc_per_node={visible}"
        )
    return f"cuda:{local_rank}"


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished all its work. A CPU needs no wait."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
