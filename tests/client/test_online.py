"""A gate that was killed is taken for online by the server for a while: the next one waits for just that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from client.gate.online import Online

LIVES = "import sys, time; from pathlib import Path; from client.gate.online import Online; o = Online(Path(sys.argv[1])); o.enter(); print('in', flush=True); time.sleep(60)"


def test_after_a_kill_the_next_one_waits_and_after_leaving_it_does_not(tmp_path):
    assert Online(tmp_path).wait_s() == 0
    child = subprocess.Popen([sys.executable, "-c", LIVES, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"in\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait(30)
    left = Online(tmp_path).wait_s()
    assert 0 < left <= 64
    assert Online(tmp_path).wait_s(time.time() + left + 1) == 0  # and long after it is not waited for
    online = Online(tmp_path)
    online.enter()
    online.leave()
    assert Online(tmp_path).wait_s() == 0


def test_one_that_was_never_let_in_does_not_hide_that_another_was_killed(tmp_path):
    killed = Online(tmp_path)
    killed.enter()
    Online(tmp_path).leave()
    assert Online(tmp_path).wait_s() > 0
    killed.leave()


def test_a_time_of_another_clock_is_no_reason_to_wait(tmp_path):
    (tmp_path / "online").touch()
    os.utime(tmp_path / "online", (time.time() + 9_999, time.time() + 9_999))
    assert Online(tmp_path).wait_s() == 0
