"""Devices: which one a name means for this process, and waiting for one."""

import os

import torch

from uda.core.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, then mps, then cpu; `cuda` is this process's own GPU under torchrun.

    Raises:
        UserError: a device that is not there, or a GPU that several processes would share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and "LOCAL_RANK" in os.environ:
        name = _own_gpu(name, int(os.environ["LOCAL_RANK"]))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on with lists of all its backends
        if reason.startswith("Expected one of"):  # torch's list of all devices that there could be
            reason = "give auto, cpu, cuda or mps"
        raise UserError(f"runtime.device: '{name}' is not available here: {reason}") from None
    return device


def _own_gpu(name: str, local_rank: int) -> str:
    """The GPU that `name` means for a process of a job, by its number among the processes of its machine."""
    visible = torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    if visible == 1:  # some launchers show each process its own GPU alone, which is then number 0
        return "cuda:0" if name == "cuda" else name
    if name != "cuda":
        if processes > 1:
            raise UserError(
                f"runtime.device: '{name}' would be the GPU of all {processes} processes of this machine; set it to "
                "cuda, which gives each its own"
            )
        return name
    if 0 < visible <= local_rank:
        raise UserError(
            f"runtime.device: {processes} processes on a machine with {visible} GPUs; start one for each, with "
            f"--nproc_per_node={visible}"
        )
    return f"cuda:{local_rank}"


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given. A CPU has done it when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
