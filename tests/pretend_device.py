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

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import uda

PACKAGE = Path(uda.__file__).parent
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
        """Whether a tensor may go with those of this device; a number of the host may."""
        return not tensor.dim() or tensor.is_meta or self._is_known(tensor)

    def _is_known(self, tensor: Tensor) -> bool:
        """Whether a tensor is on this device, or made of zeros that autograd has made: it took the device for a CPU."""
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

    def record(self, stream: None = None) -> None:
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
    device = Pretended(kind)
    cudnn = torch.backends.cudnn
    with warnings.catch_warnings(action="ignore"):  # torch 2.9 warns of newer names for the first two
        precision, tf32, benchmark = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        for name, method in _tensor_methods(device).items():
            patch.setattr(Tensor, name, method)
        for module, name, function in [*_torch_functions(device), *(_cuda if kind == "cuda" else _mps)(device)]:
            patch.setattr(module, name, function)
        try:
            with device:
                yield device
        finally:
            with warnings.catch_warnings(action="ignore"):
                torch.set_float32_matmul_precision(precision)
                cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark


def _tensor_methods(device: Pretended) -> dict[str, object]:
    """What no operation of a tensor shows: where it is, where it goes, and what Python reads of it."""

    def to(tensor, *args, copy=False, **kwargs):
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        where, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        here = device.holds(tensor)
        target = here if where is None else device.is_meant(where)
        if target != here and device.kind == "mps" and torch.float64 in (tensor.dtype, dtype):
            raise TypeError(f"MPS has no float64 to copy, at {_place()}")
        if dtype is not None or copy:
            tensor = torchs["to"](tensor, dtype or tensor.dtype, copy=copy)
        if target != here:
            return device.move(tensor, target, non_blocking, memory_format or torch.preserve_format)
        if where is not None and not (target or where.type == "cpu"):
            return torchs["to"](tensor, where)
        return tensor if memory_format is None else torchs["to"](tensor, memory_format=memory_format)

    def new_tensor(tensor, values, **kwargs):
        made = torchs["new_tensor"](tensor, values, **kwargs)
        return to(made, device.device) if device.holds(tensor) else made

    def numpy(tensor, **kwargs):
        if device.holds(tensor):
            raise TypeError(f"a tensor on {device.device} has no NumPy array, at {_place()}")
        return torchs["numpy"](tensor, **kwargs)

    def tolist(tensor):
        if device.holds(tensor):
            device.wait("tolist")
        return torchs["tolist"](tensor)

    def pin_memory(tensor):
        if device.holds(tensor):
            raise RuntimeError(f"a tensor on {device.device} cannot be pinned, at {_place()}")
        return tensor.clone()

    def place(tensor):
        return device.device if device.holds(tensor) else torchs["device"].__get__(tensor)

    methods = {
        "to": to,
        "cpu": lambda tensor: to(tensor, "cpu"),
        "cuda": lambda tensor: to(tensor, "cuda"),
        "new_tensor": new_tensor,
        "numpy": numpy,
        "__array__": lambda tensor, *_: numpy(tensor),
        "tolist": tolist,
        "pin_memory": pin_memory,
        "device": property(place),
        "is_cuda": property(lambda tensor: device.kind == "cuda" and device.holds(tensor)),
        "is_mps": property(lambda tensor: device.kind == "mps" and device.holds(tensor)),
        "is_cpu": property(lambda tensor: not device.holds(tensor)),
    }
    torchs = {name: getattr(Tensor, name) for name in methods}
    return methods


def _torch_functions(device: Pretended) -> list[tuple[object, str, object]]:
    """Functions that would look for the device in torch itself: module, name, what stands in its place."""

    def from_the_host(make):
        def made(values, *, device=None, **kwargs):
            if not pretend.is_meant(device):
                return make(values, device=device, **kwargs)
            return make(values, **kwargs).to(device)

        return made

    def grouped(lists, with_indices=False):
        return {
            (pretend.device if pretend.holds(found[0][0][0]) else where, dtype): found
            for (where, dtype), found in group(lists, with_indices).items()
        }

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu" if device_type == pretend.kind else device_type, *args, **kwargs)

    def is_autocast_enabled(device_type):
        return enabled("cpu" if device_type == pretend.kind else device_type)

    pretend, enabled, group = device, torch.is_autocast_enabled, torch._C._group_tensors_by_device_and_dtype
    return [
        (torch, "tensor", from_the_host(torch.tensor)),
        (torch, "as_tensor", from_the_host(torch.as_tensor)),
        (torch, "autocast", Autocast),
        (torch, "is_autocast_enabled", is_autocast_enabled),
        (torch._C, "_group_tensors_by_device_and_dtype", grouped),
        (torch.accelerator, "current_accelerator", lambda check_available=False: None),
    ]


def _cuda(device: Pretended) -> list[tuple[object, str, object]]:
    functions = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: SimpleNamespace(name="pretended", total_memory=24 << 30),
        "max_memory_reserved": lambda device=None: 1 << 30,
        "set_device": lambda device: None,
        "device": contextlib.nullcontext,
        "current_stream": lambda device=None: None,
        "synchronize": lambda _=None: device.arrive(),
        "Event": lambda: _Event(device),
    }
    if not torch.cuda.is_available():
        functions["_lazy_init"] = lambda: None
    return [(torch.cuda, name, function) for name, function in functions.items()]


def _mps(device: Pretended) -> list[tuple[object, str, object]]:
    return [
        (torch.cuda, "is_available", lambda: False),
        (torch.backends.mps, "is_available", lambda: True),
        (torch.mps, "manual_seed", lambda seed: None),
        (torch.mps, "get_rng_state", lambda: None),
        (torch.mps, "set_rng_state", lambda state: None),
        (torch.mps, "synchronize", device.arrive),
    ]


def _tensors(values: Sequence) -> Iterator[Tensor]:
    """The tensors among some values and in the lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _place() -> str:
    """The line of the package that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE.parent)}:{frame.f_lineno}"
        frame = frame.f_back
    return "no line of uda"
