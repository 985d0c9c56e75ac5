from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skelpipe.errors import UserError
from skelpipe.prepare import child as child_module
from skelpipe.prepare.child import Child, DiedError, run_limited
from skelpipe.prepare.recording import RejectedError


def refuse(kind: str) -> None:
    raise RejectedError(kind, line=3, found="this")


def crash() -> None:
    ctypes.string_at(0)


def spin() -> None:
    while True:
        pass


def allocate(count: int) -> int:
    return len(bytearray(count))


def test_results_come_back() -> None:
    assert run_limited(divmod, 17, 5) == (3, 2)


def test_exceptions_come_back_as_they_are() -> None:
    with Child() as child:
        with pytest.raises(RejectedError) as caught:
            child.call(9, refuse, "bad")
        assert (caught.value.kind, caught.value.reason) == ("bad", "bad: line 3, found this")
        with pytest.raises(ZeroDivisionError):
            child.call(9, divmod, 1, 0)
        assert child.call(9, divmod, 4, 2) == (2, 0)


def test_a_child_makes_many_calls() -> None:
    with Child() as child:
        assert child.call(9, os.getpid) == child.call(9, os.getpid) != os.getpid()


def test_a_crash_is_an_error_and_the_next_call_is_answered() -> None:
    with Child() as child:
        before = child.call(9, os.getpid)
        with pytest.raises(DiedError, match=f"signal {int(signal.SIGSEGV)}"):
            child.call(9, crash)
        assert child.call(9, os.getpid) != before


def test_leaving_without_an_answer_is_an_error() -> None:
    with Child() as child, pytest.raises(DiedError, match="status 7"):
        child.call(9, os._exit, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit address space")
def test_memory_is_limited() -> None:
    with Child(memory=100 << 20) as child:
        with pytest.raises(MemoryError):
            child.call(9, allocate, 200 << 20)
        assert child.call(9, allocate, 50 << 20) == 50 << 20


def test_computing_is_limited() -> None:
    with Child() as child, pytest.raises(DiedError):
        child.call(0.1, spin)


def test_waiting_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_GRACE", 0.0)
    with Child() as child:
        child.call(9, os.getpid)
        with pytest.raises(DiedError, match=r"longer than 0\.1 s"):
            child.call(0.1, time.sleep, 600)


def test_a_death_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended the process") as caught:
        run_limited(crash, file=tmp_path / "bad.h5")
    assert "bad.h5" in str(caught.value)


def test_closing_ends_the_child() -> None:
    with Child() as child:
        pid = child.call(9, os.getpid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


KILLED = """
import os, signal
from skelpipe.prepare.child import Child
print(Child().call(9, os.getpid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_child_does_not_outlive_a_killed_parent() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    for _ in range(200):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        if is_zombie(int(done.stdout)):
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def is_zombie(pid: int) -> bool:
    """Whether a process is dead but for its entry, as where nobody adopts orphans."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"
