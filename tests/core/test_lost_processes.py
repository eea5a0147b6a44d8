"""What gloo, NCCL and their store say, and what of it a user is told. The messages are real ones."""

import os
import signal
import threading

import pytest
import torch
import torch.distributed as dist

from uda.adaptation.config import AdaptationConfig
from uda.cli.supervise import supervise
from uda.core import distributed
from uda.core.distributed import RankLostError, Ranks, start
from uda.core.errors import UserError

NCCL = "NCCL error in: ../NCCLUtils.hpp:268, {}, NCCL version 2.21.5\n{}\nLast error:\n{}"
USAGE = (
    "invalid usage (run with NCCL_DEBUG=WARN for details)",
    "ncclInvalidUsage: This usually reflects invalid usage.",
)
SYSTEM = ("unhandled system error (run with NCCL_DEBUG=INFO for details)", "ncclSystemError: System call failed.")
REMOTE = (
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
)
DUPLICATE = NCCL.format(*USAGE, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000")


def raised(error):
    """What leaves a meeting of two processes in which `error` comes up."""
    with pytest.raises(Exception) as caught, Ranks(0, 2).together():  # noqa: PT011 (which one is the question)
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
            "[127.0.0.1]:1920. This is typically caused by a remote worker crashing.",
            "has ended or was killed (Connection closed by peer [127.0.0.1]:1920)",
        ),
        (
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [10.0.0.2]:25266: "
            "Connection reset by peer",
            "has ended or was killed (Read error [10.0.0.2]:25266: Connection reset by peer)",
        ),
        (
            "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv "
            "operation to complete",
            "does not answer (Timed out waiting 1800000ms for recv operation to complete)",
        ),
        (
            "Application timeout caused pair closure",
            "has ended or was killed (Application timeout caused pair closure)",
        ),
        (
            "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
            "has ended or was killed (Failed to recv, got 0 bytes)",
        ),
        ("wait timeout after 1800000ms, keys: /default_pg/0//cuda//0", "does not answer (wait timeout after 1800000ms"),
        (
            "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by "
            "key '0', but store->get('0') got error: Connection reset by peer. This may indicate an application crash.",
            "has ended or was killed ([1] is setting up NCCL communicator",
        ),
        (
            NCCL.format(
                *REMOTE, "socketProgressOpt: Call to recv from 10.0.0.2<33759> failed : Connection reset by peer"
            ),
            "has ended or was killed (socketProgressOpt: Call to recv from 10.0.0.2<33759> failed",
        ),
        (
            NCCL.format(
                "internal error", "ncclInternalError: Internal check failed.", "Net : Connection closed by peer"
            ),
            "has ended or was killed (Net : Connection closed by peer)",
        ),
        (
            "NCCL communicator was aborted on rank 2.  Original reason for failure was: [Rank 2] Watchdog caught "
            "collective operation timeout: WorkNCCL(SeqNum=10, OpType=BROADCAST) ran for 1805457 milliseconds.",
            "has ended or was killed (NCCL communicator was aborted on rank 2)",
        ),
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2, OpType=ALLREDUCE) ran for "
            "1800004 milliseconds before timing out.",
            "does not answer ([Rank 0] Watchdog caught collective operation timeout",
        ),
    ],
)
def test_a_lost_process_is_called_so(text, told):
    error = raised(RuntimeError(text))
    assert isinstance(error, RankLostError)
    assert str(error).startswith(f"another process of this job {told}")


@pytest.mark.parametrize(
    "text",
    [
        NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: Call to CUDA function failed.", "Cuda failure 1"),
        NCCL.format(*SYSTEM, "Error while creating shared memory segment /dev/shm/nccl-sLVtkK (size 9637888)"),
        NCCL.format(*SYSTEM, "Call to bind failed : Cannot assign requested address"),
        NCCL.format(*SYSTEM, "socketStartConnect: Connect to 10.0.0.2<52822> failed : No route to host"),
        "[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4",
        "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1",
    ],
)
def test_other_errors_keep_their_own_words(text):
    error = RuntimeError(text)
    assert raised(error) is error


def test_memory_that_runs_out_is_no_lost_process():
    error = torch.OutOfMemoryError("CUDA out of memory while the connection reset by peer was handled")
    assert raised(error) is error


def test_a_process_by_itself_loses_nobody():
    error = RuntimeError("Connection reset by peer")
    with pytest.raises(RuntimeError) as caught, Ranks().together():
        raise error
    assert caught.value is error


def test_a_gpu_given_twice_is_told_in_nccls_words_with_a_cure():
    error = raised(dist.DistBackendError(DUPLICATE))
    assert isinstance(error, UserError) and not isinstance(error, RankLostError)
    assert "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000. Each process needs" in str(error)
    assert "--nproc_per_node" in str(error)


@pytest.fixture
def job_of_two(monkeypatch):
    """The environment of process 1 of 2, and what is called to begin, in order."""
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("bound", str(device))))
    monkeypatch.setattr(
        dist,
        "init_process_group",
        lambda backend, device_id, **_: calls.append((backend, device_id and str(device_id))),
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    return calls


def test_a_gpu_is_bound_before_the_others_are_met(monkeypatch, job_of_two):
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device("cuda:1"))
    with start("cuda") as ranks:
        assert (ranks.rank, ranks.world) == (1, 2)
    assert job_of_two == [("bound", "cuda:1"), ("cpu:gloo,cuda:nccl", "cuda:1"), "left"]


def test_a_job_on_cpus_touches_no_gpu(monkeypatch, job_of_two):
    """Also on a machine that has some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with start("cpu"):
        pass
    assert job_of_two == [("gloo", None), "left"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (dist.DistBackendError(DUPLICATE), "NCCL says: Duplicate GPU detected"),
        (
            dist.DistBackendError(NCCL.format(*SYSTEM, "Connect to 10.0.0.2<1> failed : No route to host")),
            "the processes cannot reach each other: Connect to 10.0.0.2<1> failed : No route to host",
        ),
        (ValueError("Error initializing torch.distributed. Bad port"), "cannot reach each other: Error initializing"),
    ],
)
def test_what_stops_the_job_at_its_start(monkeypatch, job_of_two, error, told):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(dist, "init_process_group", fail)
    with pytest.raises(UserError, match=told.replace("<", ".").replace(">", ".")), start("cpu"):
        pass


@pytest.mark.parametrize("after", [0.0, 0.1])
def test_a_process_lost_by_the_signal_that_ends_the_job_is_no_error(tiny, tmp_path, capsys, after):
    """torchrun signals one process after the other: the first may leave before the second has heard of it."""

    def lose_one(*_):
        threading.Timer(after, os.kill, [os.getpid(), signal.SIGTERM]).start()
        raise RankLostError("another process of this job has ended")

    config = AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}"])
    assert supervise(lambda: [config], lose_one, lambda *_: None) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "interrupted by SIGTERM: nothing was saved yet" in said and "error" not in said
