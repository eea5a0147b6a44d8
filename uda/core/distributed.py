"""The processes of a job that torchrun starts: their shares of the work, and what they exchange.

Every process holds the whole network. Its number is its rank. A training batch is divided image by image, and a
predict pass is divided into contiguous rows. Gradients are averaged over all processes. If a step is one backward pass,
they are sent during that pass (`Ranks.averaged_loss`, torch's DistributedDataParallel). If a method has several phases,
they are sent before each update (`Ranks.average_gradients`). A run without torchrun is a job of one process and sends
nothing.
"""

import io
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uda.core.devices import pick_device
from uda.core.errors import UserError

#: Gradients are sent in buckets of this many bytes, so that the copies for sending stay small.
BUCKET_BYTES = 32 << 20
BUCKETS_UNDER_WAY = 2

#: Messages of gloo, NCCL and their store when another process has ended or does not answer. Their other messages have
#: other causes: a GPU used twice, a full /dev/shm, a network that is not set up, memory, tensors of different shapes.
_LOST = re.compile(
    r"connection (?:was likely )?closed|connection reset|broken pipe|ncclRemoteError|remote process exited"
    r"|timed out waiting|pair closure|socket timeout|wait timeout|communicator was aborted|operation timeout",
    re.IGNORECASE,
)
_SHARED = re.compile(r"Duplicate GPU detected.*")

#: How long a process waits for the others. It is long because the others wait while rank 0 writes reports. A process
#: that dies is noticed earlier, by torchrun, and with gloo by its closed connection.
PATIENCE = timedelta(minutes=30)


class RankLostError(UserError):
    """Another process of the job ended, was killed or does not answer."""


class Ranks:
    """This process and the other processes of its job.

    All processes must call the methods that send, in the same order.

    Args:
        rank: number of this process, 0..world-1.
        world: number of processes.
        local_rank: number of this process among the processes of its machine.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0):
        self.rank = rank
        self.world = world
        self.local_rank = local_rank
        self.in_order = True
        """Whether the process group can be shut down. After an error that would wait for the other processes."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0. Only rank 0 writes files."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's contiguous share of `count` rows. Shares differ by at most one row."""
        return slice(*(count * edge // self.world for edge in (self.rank, self.rank + 1)))

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all processes, the same bits on each process."""
        if self.world == 1:
            return array
        total = torch.from_numpy(np.array(array, copy=True, ndmin=1))
        with self.together():
            dist.all_reduce(total)
        return total.numpy().reshape(np.shape(array))

    def maximum(self, values: Sequence[float]) -> list[float]:
        """The largest value of each number over all processes."""
        if self.world == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        with self.together():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def gather_rows(self, local: np.ndarray, count: int) -> np.ndarray:
        """All `count` rows on every process, from the `rows(count)` of each process."""
        return self._gather(local, count, everywhere=True)

    def gather_rows_to_main(self, local: np.ndarray, count: int) -> np.ndarray:
        """All `count` rows on rank 0, and no rows on the other processes."""
        return self._gather(local, count, everywhere=False)

    def _gather(self, local: np.ndarray, count: int, everywhere: bool) -> np.ndarray:
        if self.world == 1:
            return local
        longest = -(-count // self.world)
        padded = np.zeros((longest, *local.shape[1:]), local.dtype)
        padded[: len(local)] = local
        # As bytes, so that every numpy type can be sent.
        sent = torch.from_numpy(padded.reshape(-1).view(np.uint8))
        receives = everywhere or self.is_main
        pieces = [torch.empty_like(sent) for _ in range(self.world)] if receives else None
        with self.together():
            if everywhere:
                dist.all_gather(pieces, sent)
            else:
                dist.gather(sent, pieces, dst=0)
        if not receives:
            return local[:0]
        whole = np.empty((count, *local.shape[1:]), local.dtype)
        for rank, piece in enumerate(pieces):
            rows = Ranks(rank, self.world).rows(count)
            whole[rows] = piece.numpy().view(local.dtype).reshape(padded.shape)[: rows.stop - rows.start]
        return whole

    def broadcast(self, content: bytes | None) -> bytes | None:
        """The content of rank 0, on every process."""
        if self.world == 1:
            return content
        size = torch.tensor([-1 if content is None else len(content)])
        with self.together():
            dist.broadcast(size, src=0)
            if size < 0:
                return None
            carried = torch.empty(int(size), dtype=torch.uint8)
            if self.is_main:
                carried.numpy()[:] = np.frombuffer(content, np.uint8)
            dist.broadcast(carried, src=0)
        return carried.numpy().tobytes()

    def broadcast_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of rank 0, on every process."""
        if self.world == 1:
            return arrays
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
        content = self.broadcast(buffer.getvalue() if self.is_main else None)
        return {name: array.numpy() for name, array in torch.load(io.BytesIO(content), weights_only=True).items()}

    def broadcast_network(self, network: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        if self.world > 1:
            with self.together():
                for tensor in network.state_dict().values():
                    carried = tensor.detach().contiguous()
                    dist.broadcast(carried, src=0)
                    tensor.copy_(carried)

    def averaged_loss(
        self, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], parameters: Iterable[nn.Parameter]
    ) -> DistributedDataParallel:
        """A loss whose backward pass averages the gradients over the processes, in buckets, during that pass.

        Make a call within `no_sync()` if its gradients are only added to, and averaged later.

        Args:
            loss: gives the scalar to minimise and its parts.
            parameters: get the gradients. Their current gradients are dropped. The gradient of a parameter that no
                process's loss uses stays None.
        """
        _silence_reducer()
        moved = _Loss(loss, parameters)
        for parameter in moved.moved:
            parameter.grad = None  # it may be a view of an earlier stage's buckets and keep their memory
        # The images of one process may not use a parameter that those of another use. This setting also keeps the
        # buckets unchanged after the first step. So a resumed run adds in the same order as an uninterrupted one.
        return DistributedDataParallel(
            moved, find_unused_parameters=True, gradient_as_bucket_view=True, init_sync=False
        )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes. A gradient that no process has stays None.

        The images of one process may not use a parameter that those of another use. So each process sends a gradient
        for every parameter, zeros for a missing one, and then which gradients were present.
        """
        if self.world == 1:
            return
        parameters = list(parameters)
        missing = [number for number, parameter in enumerate(parameters) if parameter.grad is None]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = gradients[0].new_ones(len(parameters))
        for number in missing:
            there[number].zero_()  # set on the device, because a copy from the host would wait for the device
        gradients.append(there)
        with self.together(), torch.no_grad():
            under_way: deque[tuple[list[Tensor], Tensor, dist.Work]] = deque()
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
                if len(under_way) > BUCKETS_UNDER_WAY:
                    self._take_back(*under_way.popleft())
            while under_way:
                self._take_back(*under_way.popleft())
        if missing:  # only read in this case, because reading waits for the GPU
            somewhere = (there > 0).tolist()
            for number in missing:
                if somewhere[number]:
                    parameters[number].grad = gradients[number]

    def _take_back(self, bucket: list[Tensor], flat: Tensor, work: dist.Work) -> None:
        work.wait()
        flat.div_(self.world)
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def average(self, tensors: Sequence[Tensor], weight: float = 1.0) -> None:
        """Replace floating tensors by their weighted mean over the processes. `weight` is this process's weight."""
        if self.world == 1 or not tensors:
            return
        with self.together(), torch.no_grad():
            weights = tensors[0].new_tensor([weight], dtype=torch.float64)
            flat = torch.cat([*(tensor.double().reshape(-1) * weight for tensor in tensors), weights])
            dist.all_reduce(flat)
            for tensor, mean in zip(tensors, (flat[:-1] / flat[-1]).split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather_texts(self, text: str) -> list[str]:
        """The text of each process, on every process."""
        if self.world == 1:
            return [text]
        content = np.frombuffer(text.encode(), np.uint8)
        lengths = self.gather_rows(np.array([len(content)]), self.world)
        padded = np.zeros((1, max(int(lengths.max()), 1)), np.uint8)
        padded[0, : len(content)] = content
        gathered = self.gather_rows(padded, self.world)
        return [row[:length].tobytes().decode() for row, length in zip(gathered, lengths, strict=True)]

    def check_same(self, what: str, text: str, difference: Callable[[str, str], str] = lambda first, other: "") -> None:
        """Raise UserError on every process unless all have the same text. `difference` says what differs."""
        first, *others = self.gather_texts(text)
        for rank, other in enumerate(others, 1):
            if other != first:
                how = difference(first, other)
                raise UserError(
                    f"{what} of process {rank} is not that of process 0{f' ({how})' if how else ''}: start all "
                    "processes in the same way"
                )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Context for what needs the other processes. Raises RankLostError if one of them is lost."""
        if self.world == 1:
            yield
            return
        try:
            yield
        except RuntimeError as error:  # torch has no own class for a lost process
            raise _told(error) from None


def _told(error: Exception) -> Exception:
    """A clearer error in place of an error of gloo or NCCL, or the error itself if there is none."""
    text = str(error)
    if shared := _SHARED.search(text):
        return UserError(
            f"NCCL says: {shared[0]}. Each process needs its own GPU: start as many processes as there are GPUs "
            "(--nproc_per_node), and set CUDA_VISIBLE_DEVICES to all GPUs, or to a different GPU for each process"
        )
    if isinstance(error, torch.OutOfMemoryError) or not (lost := _LOST.search(text)):
        return error
    fate = "does not answer" if "time" in lost[0].lower() else "has ended or was killed"
    return RankLostError(
        f"another process of this job {fate} ({_reason(text)}); what was saved is kept, and the same command resumes "
        "from there"
    )


def _reason(text: str) -> str:
    """The most useful sentence of an error: NCCL's last error, or the first sentence without its source location."""
    first, *lines = text.strip().split("\n")
    if "Last error:" in lines[:-1]:
        return lines[lines.index("Last error:") + 1].strip()
    return re.sub(r"^\[\S+:\d+\] ", "", first).split(". ")[0].rstrip(".")


class _Loss(nn.Module):
    """A loss for DistributedDataParallel: a module with the parameters that get the gradients.

    It does not hold the network, so the network's tensors keep their names.
    """

    def __init__(self, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], parameters: Iterable[nn.Parameter]):
        super().__init__()
        self.loss = loss
        self.moved = nn.ParameterList(parameters)

    def forward(self, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its parts."""
        loss, parts = self.loss(batch)
        # Detached, because a part with a graph would make parameters count as used that get no gradient from the loss.
        return loss, {name: part.detach() for name, part in parts.items()}


@cache
def _silence_reducer() -> None:
    """Hide two warnings: that no parameter was unused, and about strides of dimensions of length 1.

    C++ writes the first one to stderr, once in a process, and Python's filters do not see it. So a temporary wrapper
    triggers it while stderr is discarded.
    """
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        stderr = os.dup(2)
    except OSError:  # stderr is closed, so nobody would see the warning
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        DistributedDataParallel(nn.Linear(1, 1), find_unused_parameters=True, init_sync=False)(torch.zeros(1, 1))
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of neighbouring tensors of the same type, of about BUCKET_BYTES each."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


@contextmanager
def start(device: str = "cpu") -> Iterator[Ranks]:
    """Join the job that torchrun describes in the environment. Without torchrun, it is a job of one process.

    Args:
        device: the job's `runtime.device`. The process binds to its GPU before it connects to the others, so that NCCL
            connects in this call or says why it cannot.

    Raises:
        UserError: the environment is not complete, the other processes cannot be reached, or there is no GPU for this
            process.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        yield Ranks()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world} is set without {', '.join(missing)}: start several processes with torchrun"
        )
    ranks = Ranks(int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"]))
    # Tensors on the CPU are always sent with gloo, and tensors on GPUs with NCCL.
    backend, picked = "gloo", pick_device(device)
    gpu = picked if picked.type == "cuda" else None
    if gpu is not None:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(gpu)
    try:
        dist.init_process_group(backend, timeout=PATIENCE, device_id=gpu)
    except (RuntimeError, ValueError) as error:
        told = _told(error)
        if told is error:
            told = UserError(f"the processes cannot reach each other: {_reason(str(error))}")
        raise told from None
    yield ranks
    if ranks.in_order:
        dist.destroy_process_group()
