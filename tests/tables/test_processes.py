"""What becomes of a table's runs when it is asked to stop."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from uda.core.interruption import Interrupted
from uda.tables.processes import Processes

SAVES_AND_LEAVES = ["sh", "-c", 'trap "exit 7" INT TERM; echo ready; while :; do sleep 0.02; done']


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_to_every_run_and_nothing_starts_after_it(number, tmp_path):
    outputs = [tmp_path / f"{i}.out" for i in range(2)]
    before = signal.getsignal(number)

    def run(path):
        with open(path, "w") as file:
            return processes.run(SAVES_AND_LEAVES, file)

    with Processes() as processes, ThreadPoolExecutor(2) as pool:
        codes = [pool.submit(run, path) for path in outputs]
        until = time.monotonic() + 30
        while not all(path.exists() and path.read_text() for path in outputs):
            assert time.monotonic() < until
            time.sleep(0.02)
        processes.leave()  # nothing has come yet
        os.kill(os.getpid(), number)
        assert [code.result(timeout=30) for code in codes] == [7, 7]
        with open(tmp_path / "late.out", "w") as file:
            assert processes.run(["touch", str(tmp_path / "late")], file) is None
    assert not (tmp_path / "late").exists()
    assert signal.getsignal(number) is before
    with pytest.raises(Interrupted) as asked:
        processes.leave()
    assert asked.value.exit_code == 128 + number


def test_exit_codes_and_outputs_without_a_signal(tmp_path):
    with Processes() as processes, open(tmp_path / "out", "w") as file:
        assert processes.run(["sh", "-c", "echo said; echo wrong >&2; exit 3"], file) == 3
    assert (tmp_path / "out").read_text() == "said\nwrong\n"
    processes.leave()
