"""What is told where memory runs out: how much was asked for, and how much there is."""

import re

import torch

#: CUDA raises torch.OutOfMemoryError; its libraries, MPS and the CPU's allocators raise a RuntimeError that says so.
_SHORTAGE = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED")

_AMOUNT = r"([\d.]+ (?:bytes|[KMGT]i?B))"
_ASKED = re.compile(rf"tried to allocate {_AMOUNT}", re.IGNORECASE)
_CUDA = re.compile(rf"total capacity of {_AMOUNT} of which {_AMOUNT} is free")
_MPS = re.compile(rf"max allowed: {_AMOUNT}")


def shortage(error: Exception) -> str | None:
    """What an error says about memory that has run out, in a sentence; None where it is about something else."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not _SHORTAGE.search(text):
        return None
    told = []
    if asked := _ASKED.search(text):
        told.append(f"{_readable(asked[1])} more was asked for")
    if has := _CUDA.search(text):
        told.append(f"the GPU has {has[1]}, {has[2]} of it free")
    if allowed := _MPS.search(text):
        told.append(f"{allowed[1]} is allowed in all")
    return ", ".join(["out of memory", *told])


def _readable(amount: str) -> str:
    number, unit = amount.split()
    return amount if unit != "bytes" else f"{float(number) / 2**30:,.2f} GiB"
