"""The message when memory runs out: how much was requested, and how much there is."""

import re

import torch

#: CUDA raises torch.OutOfMemoryError. Its libraries, MPS and the CPU's allocators raise a RuntimeError with this text.
_SHORTAGE = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED")

_AMOUNT = r"([\d.]+ (?:bytes|[KMGT]i?B))"
_ASKED = re.compile(rf"tried to allocate {_AMOUNT}", re.IGNORECASE)
_CUDA = re.compile(rf"total capacity of {_AMOUNT} of which {_AMOUNT} is free")
_MPS = re.compile(rf"max allowed: {_AMOUNT}")


def shortage(error: Exception) -> str | None:
    """A sentence about memory that has run out, from an error; None if the error has another cause."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not _SHORTAGE.search(text):
        return None
    told = []
    if asked := _ASKED.search(text):
        told.append(f"{_readable(asked[1])} more were requested")
    if has := _CUDA.search(text):
        told.append(f"the GPU has {has[1]}, of which {has[2]} are free")
    if allowed := _MPS.search(text):
        told.append(f"at most {allowed[1]} are allowed")
    return ", ".join(["out of memory", *told])


def _readable(amount: str) -> str:
    number, unit = amount.split()
    return amount if unit != "bytes" else f"{float(number) / 2**30:,.2f} GiB"
