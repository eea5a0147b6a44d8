"""A training step of two gloo processes with resnet18: the cost of averaging gradients.

Each process has one thread and half of the batch. The measured process is one of the two. Only its memory is counted.
"""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from benchmarks.contest import BENCHMARKS, Contest, at_first_call
from benchmarks.network import AUTOMATIC, LOOP_BAR, SUBJECTS, bare_training, our_training, training_batches
from uda.core.distributed import Ranks

RUNTIME = AUTOMATIC.model_copy(update={"threads": 1})


def _during(ranks: Ranks, scale: float) -> Callable[[], object]:
    return our_training(SUBJECTS["resnet18"].scaled(scale), RUNTIME, _batches(scale), ranks)


def _after(ranks: Ranks, scale: float) -> Callable[[], object]:
    return our_training(SUBJECTS["resnet18"].scaled(scale), RUNTIME, _batches(scale), ranks, during=False)


def _bare(ranks: Ranks, scale: float) -> Callable[[], object]:
    return bare_training(SUBJECTS["resnet18"].scaled(scale), RUNTIME, _batches(scale), parallel=True)


def _batches(scale: float) -> list:
    """One process's half of every batch."""
    return [batch.dealt(2)[0] for batch in training_batches(SUBJECTS["resnet18"].scaled(scale))]


#: Ways to average gradients: functions that build one process's part of the training.
WAYS = {"during": _during, "after": _after, "bare": _bare}


@BENCHMARKS.register("ddp_resnet18_2p")
def ddp(scale: float) -> Contest:
    """A step of two processes, resnet18: gradients sent during the backward pass, against sending after it."""
    return _contest("during", "after", scale, None)


@BENCHMARKS.register("ddp_resnet18_2p_vs_bare")
def ddp_vs_bare(scale: float) -> Contest:
    """A step of two processes, resnet18, against a bare loop with DistributedDataParallel and the same settings."""
    return _contest("during", "bare", scale, LOOP_BAR)


def _contest(ours: str, floor: str, scale: float, bar: float | None) -> Contest:
    steps = SUBJECTS["resnet18"].scaled(scale).steps
    return Contest(
        at_first_call(lambda: _together(ours, scale)), at_first_call(lambda: _together(floor, scale)), steps, bar
    )


@cache  # the other process prepares each way once
def _together(way: str, scale: float) -> Callable[[], object]:
    """A call in which both processes do their part."""
    partner = _partner()
    partner.send((way, scale))
    work = _part(0, way, scale)
    partner.recv()

    def call() -> None:
        partner.send((way, scale))
        work()

    return call


@cache
def _partner() -> Connection:
    """The other process. It prepares a way at the first request and runs it at later requests.

    It ends with this process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    context.Process(target=_serve, args=(store.port, theirs), daemon=True).start()
    theirs.close()  # so that this process notices the end of the other one
    _join(store, 0)
    return ours


def _serve(port: int, orders: Connection) -> None:
    _join(dist.TCPStore("127.0.0.1", port, 2), 1)
    parts: dict[tuple[str, float], Callable[[], object]] = {}
    with suppress(EOFError):
        while order := orders.recv():
            if order in parts:
                parts[order]()
            else:
                parts[order] = _part(1, *order)
                orders.send("ready")


def _join(store: dist.Store, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)


def _part(rank: int, way: str, scale: float) -> Callable[[], object]:
    return WAYS[way](Ranks(rank, 2, rank), scale)
