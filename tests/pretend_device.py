"""Tensors that compute on the CPU and say that they are on a GPU: tests of code for devices that are not there.

    with pretended("cuda") as device:
        batch = batch.to("cuda")
        loss = step(batch)
    assert not device.waits

Within the context `.to("cuda")` and `device="cuda"` give tensors of the pretended device, and so does every operation
on them. What a device refuses raises: tensors of two devices in one operation, NumPy, float64 on MPS. What makes the
host wait for a device is counted by kind and place.

A tensor is on the device if its storage is known to be: nothing else sets it apart. So autograd (also of second order),
autocast (as on the CPU), torch.func and the optimisers are torch's own, and the values are the CPU's. Streams, memory
and what a device's own kernels do cannot be tested like this.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations whose result has a size that only the device knows, or that go to the host.
WAITS = {"nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "_local_scalar_dense"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Pretended(TorchDispatchMode):
    """The device of a `pretended` context, which knows its tensors and counts waits."""

    def __init__(self, kind: Literal["cuda", "mps"]):
        super().__init__()
        self.kind = kind
        self.device = torch.device(kind, 0)
        self.waits: Counter[str] = Counter()
        """How often the host waited, by `kind at file:line` of the package."""
        self._on_the_way: list[tuple[Tensor, Tensor]] = []
        # Weak references keep the addresses of freed storages from being used again.
        self._storages: dict[int, StorageWeakRef] = {}
        self._anywhere: dict[int, StorageWeakRef] = {}

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on this device."""
        return tensor.untyped_storage()._cdata in self._storages

    def is_meant(self, device: torch.device | str | None) -> bool:
        """Whether `device` is this one."""
        return device is not None and torch.device(device).type == self.kind

    def wait(self, kind: str) -> None:
        """Count a wait."""
        self.waits[f"{kind} at {_place()}"] += 1

    def move(self, tensor: Tensor, here: bool, non_blocking: bool, memory_format: torch.memory_format) -> Tensor:
        """A copy on this device (`here`) or on the host; differentiable.

        What goes to the host without a wait is not there before `arrive`.
        """
        moved = _Move.apply(tensor, self, here, memory_format)
        if not non_blocking:
            self.wait("copy to the device" if here else "copy to the host")
        elif not here:
            self._on_the_way.append((moved, moved.clone()))
            moved.fill_(-1)
        return moved

    def arrive(self) -> None:
        """Wait for all copies that are on their way."""
        self.wait("synchronize")
        for moved, values in self._on_the_way:
            moved.copy_(values)
        self._on_the_way.clear()

    def place(self, tensor: Tensor, here: bool) -> Tensor:
        """The tensor, whose storage is from now on of this device or of the host."""
        storage = tensor.untyped_storage()
        if here:
            if self.kind == "mps" and tensor.dtype == torch.float64:
                raise TypeError(f"MPS has no float64, at {_place()}")
            self._storages[storage._cdata] = StorageWeakRef(storage)
        else:
            self._storages.pop(storage._cdata, None)
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = list(_tensors([*args, *kwargs.values()]))
        here = [tensor for tensor in tensors if self.holds(tensor)]
        made_here = self.is_meant(kwargs.get("device"))
        if made_here:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if here:
            self._check(name, args, tensors)
        elif made_here and tensors:
            self.wait("copy to the device")
        result = func(*args, **kwargs)
        anywhere = torch._C._current_graph_task_id() >= 0 and all(map(self._may_be_here, tensors))
        for tensor in _tensors([result]):
            if tensor.is_meta:
                continue
            if (here and name != "copy_") or made_here:
                self.place(tensor, here=True)
            elif anywhere:
                storage = tensor.untyped_storage()
                self._anywhere[storage._cdata] = StorageWeakRef(storage)
        return result

    def _may_be_here(self, tensor: Tensor) -> bool:
        """Whether a tensor may go with those of this device: a number, or made of zeros that autograd itself has made.

        Autograd makes them on the device that it sees, which is the CPU.
        """
        return not tensor.dim() or tensor.is_meta or self._is_known(tensor)

    def _is_known(self, tensor: Tensor) -> bool:
        key = tensor.untyped_storage()._cdata
        return key in self._storages or key in self._anywhere

    def _check(self, name: str, args: Sequence, tensors: list[Tensor]) -> None:
        """Refuse what a device would, and count the waits."""
        strangers = [tensor for tensor in tensors if not self._may_be_here(tensor)]
        if name == "copy_":
            if strangers:
                if self.kind == "mps" and torch.float64 in (tensors[0].dtype, tensors[1].dtype):
                    raise TypeError(f"MPS has no float64 to copy, at {_place()}")
                if not (len(args) > 2 and args[2]):
                    self.wait("copy to the device" if self.holds(tensors[0]) else "copy to the host")
            return
        if name in INDEXING and self.holds(tensors[0]):
            places = list(_tensors(args[1]))
            for kind, found in (
                ("mask", any(index.dtype == torch.bool for index in places)),
                ("index from the host", any(index is stranger for index in places for stranger in strangers)),
            ):
                if found:
                    self.wait(kind)
            strangers = [tensor for tensor in strangers if all(tensor is not index for index in places)]
        elif name in WAITS:
            self.wait("item" if name == "_local_scalar_dense" else name.removeprefix("_"))
        elif name in ("cat", "stack") or (name.endswith("_") and isinstance(args[0], Tensor)):
            # A number of the host may go into an operation, but not into a list or in the result's place.
            written = args[0] if name in ("cat", "stack") else args[:1]
            strangers += [tensor for tensor in _tensors(written) if not tensor.dim() and not self._is_known(tensor)]
        if strangers:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strangers)
            raise RuntimeError(f"{name} of tensors on {self.device} and on the host ({shapes}), at {_place()}")


class _Event:
    """One that is recorded after all copies that are on their way."""

    def __init__(self, device: Pretended):
        self.device = device

    def record(self) -> None:
        """Nothing to do: `synchronize` waits for everything."""

    def synchronize(self) -> None:
        """Wait for the copies."""
        self.device.arrive()


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, device: Pretended, here: bool, memory_format: torch.memory_format) -> Tensor:
        ctx.device, ctx.here = device, here
        return device.place(tensor.clone(memory_format=memory_format), here)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.device.move(gradient, not ctx.here, False, torch.preserve_format), None, None, None


@contextmanager
def pretended(kind: Literal["cuda", "mps"]) -> Iterator[Pretended]:
    """A context in which there is a device of some kind; torch says so too.

    Tensors of the device are not to be used after it. Settings of torch that a device's users change are put back.
    """
    pretend = Pretended(kind)
    own = torch.Tensor

    def to(tensor, *args, copy=False, **kwargs):
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        where, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        here = pretend.holds(tensor)
        target = here if where is None else pretend.is_meant(where)
        if target != here and pretend.kind == "mps" and torch.float64 in (tensor.dtype, dtype):
            raise TypeError(f"MPS has no float64 to copy, at {_place()}")
        if dtype is not None:
            tensor = original["to"](tensor, dtype, copy=copy)
        if target != here:
            return pretend.move(tensor, target, non_blocking, memory_format or torch.preserve_format)
        if where is not None and not (target or where.type == "cpu"):
            return original["to"](tensor, where)
        return tensor if memory_format is None else original["to"](tensor, memory_format=memory_format)

    def new_tensor(tensor, values, **kwargs):
        made = original["new_tensor"](tensor, values, **kwargs)
        return pretend.move(made, True, False, torch.preserve_format) if pretend.holds(tensor) else made

    def numpy(tensor, **kwargs):
        if pretend.holds(tensor):
            raise TypeError(f"a tensor on {pretend.device} has no NumPy array, at {_place()}")
        return original["numpy"](tensor, **kwargs)

    def tolist(tensor):
        if pretend.holds(tensor):
            pretend.wait("tolist")
        return original["tolist"](tensor)

    def pin_memory(tensor):
        if pretend.holds(tensor):
            raise RuntimeError(f"a tensor on {pretend.device} cannot be pinned, at {_place()}")
        return tensor.clone()

    methods = {
        "to": to,
        "cpu": lambda tensor: to(tensor, "cpu"),
        "cuda": lambda tensor: to(tensor, "cuda"),
        "new_tensor": new_tensor,
        "numpy": numpy,
        "__array__": lambda tensor, *_: numpy(tensor),
        "tolist": tolist,
        "pin_memory": pin_memory,
        "device": property(
            lambda tensor: pretend.device if pretend.holds(tensor) else original["device"].__get__(tensor)
        ),
        "is_cuda": property(lambda tensor: kind == "cuda" and pretend.holds(tensor)),
        "is_mps": property(lambda tensor: kind == "mps" and pretend.holds(tensor)),
        "is_cpu": property(lambda tensor: not pretend.holds(tensor)),
    }
    original = {name: getattr(own, name) for name in methods}

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu" if device_type == kind else device_type, *args, **kwargs)

    def made_on_the_host_first(make):
        def made(values, *, device=None, **kwargs):
            if not pretend.is_meant(device):
                return make(values, device=device, **kwargs)
            return make(values, **kwargs).to(device)

        return made

    def grouped(lists, with_indices=False):
        groups = group(lists, with_indices)
        return {
            (pretend.device if pretend.holds(found[0][0][0]) else where, dtype): found
            for (where, dtype), found in groups.items()
        }

    group = torch._C._group_tensors_by_device_and_dtype
    is_autocast_enabled = torch.is_autocast_enabled
    cudnn = torch.backends.cudnn
    with warnings.catch_warnings(action="ignore"):  # torch 2.9 warns of newer names for the first two
        precision, tf32, benchmark = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        for name, method in methods.items():
            patch.setattr(own, name, method)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, made_on_the_host_first(getattr(torch, name)))
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
        patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(
            torch, "is_autocast_enabled", lambda name=kind: is_autocast_enabled("cpu" if name == kind else name)
        )
        if kind == "cuda":
            patch.setattr(torch.cuda, "_lazy_init", lambda: None)
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
            patch.setattr(torch.cuda, "get_device_name", lambda device=None: "pretended")
            patch.setattr(torch.cuda, "set_device", lambda device: None)
            patch.setattr(torch.cuda, "Event", lambda: _Event(pretend))
            patch.setattr(torch.cuda, "synchronize", lambda device=None: pretend.arrive())
        else:
            patch.setattr(torch.backends.mps, "is_available", lambda: True)
            patch.setattr(torch.mps, "manual_seed", lambda seed: None)
            patch.setattr(torch.mps, "synchronize", pretend.arrive)
        try:
            with pretend:
                yield pretend
        finally:
            with warnings.catch_warnings(action="ignore"):
                torch.set_float32_matmul_precision(precision)
                cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark


def _tensors(values: Sequence) -> Iterator[Tensor]:
    """The tensors among some values and in the lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _place() -> str:
    """The line of the package that is at work, else that of the test."""
    frame = sys._getframe(1)
    while frame is not None:
        folder, _, file = frame.f_code.co_filename.rpartition("/uda/")
        if folder:
            return f"uda/{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "no line of uda"
