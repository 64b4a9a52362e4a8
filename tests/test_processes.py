"""A test's own processes: an end to each, whatever it does."""

from __future__ import annotations

import time
from subprocess import PIPE, TimeoutExpired

import psutil
import pytest

from tests import processes

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session={apart})
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("apart", [False, True])
def test_a_program_ends_with_its_block_and_its_children_with_it(apart):
    with processes.start(processes.PYTHON, "-c", PARENT.format(apart=apart), stdout=PIPE) as process:
        child = psutil.Process(int(process.stdout.readline()))
        assert child in processes.children()
    assert process.returncode is not None
    psutil.wait_procs([child], timeout=10)
    assert child not in processes.children()


def test_a_program_that_hangs_is_an_error_in_time():
    begun = time.monotonic()
    with pytest.raises(TimeoutExpired):
        processes.run(processes.PYTHON, "-c", "import time; time.sleep(600)", limit=0.1)
    assert time.monotonic() - begun < 60


def test_one_that_fails_says_what_it_printed():
    with pytest.raises(AssertionError, match="luckless"):
        processes.run(processes.PYTHON, "-c", "raise SystemExit('luckless')", check=True)
