"""Gradients averaged over processes: while the backward pass runs, and by our own averaging after it."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.forked import forked_job
from tests.pretend_device import pretended
from uda.core.distributed import Ranks
from uda.core.resources import CHECKOUT


def test_two_processes_come_to_the_same_bits_by_either_way(tmp_path):
    """Every method of one backward pass, and settings, parameters that are left out, stages and a resume."""
    codes, output = forked_job(2, CHECKOUT / "tests" / "averaging_script.py", tmp_path)
    assert codes == [0, 0], output
    assert {path.name for path in tmp_path.iterdir()} == {"0.done", "1.done"}
    assert "find_unused_parameters" not in output and "bucket view" not in output, "no warnings of torch's reducer"


@pytest.mark.parametrize(("missing", "waits"), [(False, 0), (True, 1)])
def test_a_gpu_is_waited_for_only_where_a_gradient_is_missing(monkeypatch, missing, waits):
    """The other process has gradients of 0: of ours the mean is half, of a missing one it stays missing."""
    monkeypatch.setattr(dist, "all_reduce", lambda flat, async_op: SimpleNamespace(wait=lambda: None))
    with pretended("cuda") as device:
        parameters = [nn.Parameter(torch.ones(3).to("cuda")) for _ in range(2)]
        for parameter in parameters[missing:]:
            parameter.grad = torch.ones(3).to("cuda")
        device.waits.clear()
        Ranks(0, 2).average_gradients(parameters)
        assert device.waits.total() == waits, device.waits
        found = [None if p.grad is None else p.grad.cpu().tolist() for p in parameters]
    assert found == [None if missing else [0.5] * 3, [0.5] * 3]
