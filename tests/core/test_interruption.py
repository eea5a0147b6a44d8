"""Signals: at once, deferred, and in the end by force."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from uda.core.interruption import Interrupted, Interruption
from uda.core.resources import CHECKOUT


def send_to_self(number):
    with Interruption():
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_at_once(number):
    with pytest.raises(Interrupted) as caught:
        send_to_self(number)
    assert caught.value.exit_code == 128 + number and str(caught.value) == signal.Signals(number).name


def send_while_deferred(reached):
    with Interruption() as interruption:
        with interruption.deferred():
            with interruption.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                assert interruption.requested == signal.SIGTERM
            reached.append("what the outer block has to save")
        reached.append("after it")


def test_a_deferred_signal_waits_for_the_end_of_the_outermost_block():
    reached = []
    with pytest.raises(Interrupted):
        send_while_deferred(reached)
    assert reached == ["what the outer block has to save"]


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_outside_the_main_thread_it_does_nothing():
    worked = []
    thread = threading.Thread(target=lambda: [Interruption().__enter__().leave(), worked.append(True)])
    thread.start()
    thread.join()
    assert worked == [True]


STUCK = """
import ctypes, sys, time
from uda.core.interruption import Interruption
with Interruption(grace=float(sys.argv[1])) as interruption, interruption.deferred():
    print("stuck", flush=True)
    {stuck_in}
"""
PYTHON, NATIVE = "time.sleep(60)", "ctypes.CDLL(None).pause(); ctypes.CDLL(None).pause(); ctypes.CDLL(None).pause()"


def stuck(grace, signals, stuck_in=PYTHON, between=0.3):
    """Seconds, exit code and last words of a process that comes to no place to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(stuck_in=stuck_in), str(grace)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    started = time.monotonic()
    for number in signals[:-1]:
        process.send_signal(number)
        time.sleep(between)
    process.send_signal(signals[-1])
    _, error = process.communicate(timeout=30)
    return time.monotonic() - started, process.returncode, error


def test_a_process_that_cannot_stop_ends_when_its_time_is_up():
    seconds, code, error = stuck(1.0, [signal.SIGTERM])
    assert code == 143 and "no place to stop within 1 s" in error and "the same command resumes from there" in error
    assert 0.9 < seconds < 3


def test_a_main_thread_deep_in_native_code_ends_too():
    seconds, code, _ = stuck(1.0, [signal.SIGTERM], NATIVE)
    assert code == 143 and seconds < 3


def test_a_second_signal_ends_it_now():
    seconds, code, error = stuck(20.0, [signal.SIGINT, signal.SIGINT], between=1.3)
    assert code == 130 and "a second signal" in error and seconds < 5


def test_one_signal_that_comes_twice_is_one():
    """A scheduler tells every process of a group, and torchrun passes it on."""
    seconds, code, error = stuck(2.0, [signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], between=0.1)
    assert code == 143 and "no place to stop within 2 s" in error and 1.9 < seconds < 4
