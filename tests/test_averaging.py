"""Gradients averaged over processes while the backward pass goes on, against our averaging after it."""

from tests.forked import forked_job
from uda.config_files import ROOT


def test_two_processes_come_to_the_same_bits_by_either_way(tmp_path):
    """Every method of one backward pass, and settings, parameters that are left out, stages and a resume."""
    codes, output = forked_job(2, ROOT / "tests" / "averaging_script.py", tmp_path)
    assert codes == [0, 0], output
    assert {path.name for path in tmp_path.iterdir()} == {"0.done", "1.done"}
    assert "find_unused_parameters" not in output and "bucket view" not in output, "no warnings of torch's reducer"
