"""The processes of one job, as torchrun starts them: who reads what, and what all of them must agree on.

Every process ("rank") holds the whole network. A training batch is dealt out image by image, a predict pass in
contiguous rows. Gradients are averaged over the ranks. Where a step is one backward pass, they travel while it goes on
(`Ranks.averaged_loss`, torch's DistributedDataParallel). Where a method has several phases, they travel before each
update (`Ranks.average_gradients`). A run by itself is the job of one rank: nothing is sent.
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

#: Gradients travel in pieces of this many bytes, so that the copy made for the journey stays small.
BUCKET_BYTES = 32 << 20
BUCKETS_UNDER_WAY = 2

#: What gloo, NCCL and their store say where another process is gone or does not answer. All else that they say is about
#: something else: a GPU given twice, a full /dev/shm, a network that is not set up, memory, tensors of unlike shapes.
_LOST = re.compile(
    r"connection (?:was likely )?closed|connection reset|broken pipe|ncclRemoteError|remote process exited"
    r"|timed out waiting|pair closure|socket timeout|wait timeout|communicator was aborted|operation timeout",
    re.IGNORECASE,
)
_SHARED = re.compile(r"Duplicate GPU detected.*")

#: How long a rank waits for the others. Rank 0 writes reports meanwhile, so this is generous: a rank that dies is
#: noticed before, by torchrun, and with gloo by its closed connection.
PATIENCE = timedelta(minutes=30)


class RankLostError(UserError):
    """Another process of the job ended, was killed or does not answer."""


class Ranks:
    """This process among all of the job. Every method that sends must be called by all ranks in the same order.

    Args:
        rank: this process, 0..world-1.
        world: number of processes.
        local_rank: this process among those of its machine.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0):
        self.rank = rank
        self.world = world
        self.local_rank = local_rank
        self.in_order = True
        """Whether the job can be taken leave of; after an error that would be to wait for the others."""

    @property
    def is_main(self) -> bool:
        """Rank 0 alone writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This rank's contiguous share of `count` rows; shares differ by one at most."""
        return slice(*(count * edge // self.world for edge in (self.rank, self.rank + 1)))

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all ranks, the same bits on each."""
        if self.world == 1:
            return array
        total = torch.from_numpy(np.array(array, copy=True, ndmin=1))
        with self.together():
            dist.all_reduce(total)
        return total.numpy().reshape(np.shape(array))

    def maximum(self, values: Sequence[float]) -> list[float]:
        """The largest of each number over all ranks."""
        if self.world == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        with self.together():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def gather_rows(self, local: np.ndarray, count: int) -> np.ndarray:
        """All `count` rows on every rank, from each rank's own `rows(count)`."""
        return self._gather(local, count, everywhere=True)

    def gather_rows_to_main(self, local: np.ndarray, count: int) -> np.ndarray:
        """All `count` rows on rank 0; no rows elsewhere."""
        return self._gather(local, count, everywhere=False)

    def _gather(self, local: np.ndarray, count: int, everywhere: bool) -> np.ndarray:
        if self.world == 1:
            return local
        longest = -(-count // self.world)
        padded = np.zeros((longest, *local.shape[1:]), local.dtype)
        padded[: len(local)] = local
        # as bytes: every type that numpy has can travel
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
        """What rank 0 holds."""
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
        """Rank 0's arrays on every rank."""
        if self.world == 1:
            return arrays
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
        content = self.broadcast(buffer.getvalue() if self.is_main else None)
        return {name: array.numpy() for name, array in torch.load(io.BytesIO(content), weights_only=True).items()}

    def broadcast_network(self, network: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.world > 1:
            with self.together():
                for tensor in network.state_dict().values():
                    carried = tensor.detach().contiguous()
                    dist.broadcast(carried, src=0)
                    tensor.copy_(carried)

    def averaged_loss(
        self, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], parameters: Iterable[nn.Parameter]
    ) -> DistributedDataParallel:
        """A loss whose backward pass averages the gradients over the ranks, in buckets, while it still goes on.

        A call whose gradients are to be added to and not averaged yet goes into its `no_sync()`.

        Args:
            loss: gives the scalar to descend and its parts.
            parameters: get the gradients; one that no rank's loss has keeps None. They lose those that they have now.
        """
        _silence_reducer()
        moved = _Loss(loss, parameters)
        for parameter in moved.moved:
            parameter.grad = None  # it may be a view of the buckets of a stage before, and keep their memory
        # A rank's images may leave out what another's use. With this setting the buckets also stay as they are after
        # the first step: a run that is resumed adds up in the same order as one that was not interrupted.
        return DistributedDataParallel(
            moved, find_unused_parameters=True, gradient_as_bucket_view=True, init_sync=False
        )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks; one that no rank has stays None.

        A rank's images may leave out what another's use, so all parameters travel, zeros for a missing gradient, and
        behind them which ones were there.
        """
        if self.world == 1:
            return
        parameters = list(parameters)
        missing = [number for number, parameter in enumerate(parameters) if parameter.grad is None]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = gradients[0].new_ones(len(parameters))
        for number in missing:
            there[number].zero_()  # filled on the device: a copy from the host would wait for the device
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
        if missing:  # looked at in this case alone: reading it makes a GPU wait
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
        """Replace floating tensors by their mean over the ranks, each rank with its weight."""
        if self.world == 1 or not tensors:
            return
        with self.together(), torch.no_grad():
            weights = tensors[0].new_tensor([weight], dtype=torch.float64)
            flat = torch.cat([*(tensor.double().reshape(-1) * weight for tensor in tensors), weights])
            dist.all_reduce(flat)
            for tensor, mean in zip(tensors, (flat[:-1] / flat[-1]).split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather_texts(self, text: str) -> list[str]:
        """Each rank's text, on every rank."""
        if self.world == 1:
            return [text]
        content = np.frombuffer(text.encode(), np.uint8)
        lengths = self.gather_rows(np.array([len(content)]), self.world)
        padded = np.zeros((1, max(int(lengths.max()), 1)), np.uint8)
        padded[0, : len(content)] = content
        gathered = self.gather_rows(padded, self.world)
        return [row[:length].tobytes().decode() for row, length in zip(gathered, lengths, strict=True)]

    def check_same(self, what: str, text: str, difference: Callable[[str, str], str] = lambda first, other: "") -> None:
        """Raise UserError on every rank unless all hold the same text; `difference` says what is not the same."""
        first, *others = self.gather_texts(text)
        for rank, other in enumerate(others, 1):
            if other != first:
                how = difference(first, other)
                raise UserError(
                    f"{what} of process {rank} is not that of process 0{f' ({how})' if how else ''}: start all alike"
                )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what needs the other ranks. Raises RankLostError where one of them is gone."""
        if self.world == 1:
            yield
            return
        try:
            yield
        except RuntimeError as error:  # there is no class of its own for a lost peer
            raise _told(error) from None


def _told(error: Exception) -> Exception:
    """What a user is told in place of an error of gloo or NCCL; the error itself where its own words are the best."""
    text = str(error)
    if shared := _SHARED.search(text):
        return UserError(
            f"NCCL says: {shared[0]}. Each process needs a GPU of its own: start as many as there are GPUs "
            "(--nproc_per_node), and set CUDA_VISIBLE_DEVICES to all of them, or to another one for each process"
        )
    if isinstance(error, torch.OutOfMemoryError) or not (lost := _LOST.search(text)):
        return error
    fate = "does not answer" if "time" in lost[0].lower() else "has ended or was killed"
    return RankLostError(
        f"another process of this job {fate} ({_reason(text)}); what was saved stands: the same command goes on from "
        "there"
    )


def _reason(text: str) -> str:
    """The sentence of an error that says most: NCCL's last one, or the first one without its place in the source."""
    first, *lines = text.strip().split("\n")
    if "Last error:" in lines[:-1]:
        return lines[lines.index("Last error:") + 1].strip()
    return re.sub(r"^\[\S+:\d+\] ", "", first).split(". ")[0].rstrip(".")


class _Loss(nn.Module):
    """A loss as DistributedDataParallel takes it: a module with the parameters that get the gradients.

    It holds no network, so that no tensor of a network gets another name.
    """

    def __init__(self, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], parameters: Iterable[nn.Parameter]):
        super().__init__()
        self.loss = loss
        self.moved = nn.ParameterList(parameters)

    def forward(self, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to descend and its parts."""
        loss, parts = self.loss(batch)
        # A part with a graph would make parameters count as used that the loss gives no gradient.
        return loss, {name: part.detach() for name, part in parts.items()}


@cache
def _silence_reducer() -> None:
    """Keep two warnings from the terminal: that no parameter was unused, and of strides of sides of length 1.

    The first comes once in a process, from C++ to the file of stderr, where Python's filters do not see it. So a
    wrapper that is thrown away gives it to nobody.
    """
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed: nobody would see the warning
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
    """Runs of neighbouring tensors of one type, cut at BUCKET_BYTES."""
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
    """Join the job that torchrun describes in the environment; without one, a job of this process alone.

    Args:
        device: the job's `runtime.device`. This process's GPU is bound to it before it meets the others, so that NCCL
            connects here or says why it cannot.

    Raises:
        UserError: an environment that is not whole, others that cannot be reached, no GPU for this process.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        yield Ranks()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE={world} without {', '.join(missing)}: start several processes with torchrun")
    ranks = Ranks(int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"]))
    # Tensors on the CPU go by gloo also where those on GPUs go by NCCL.
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
