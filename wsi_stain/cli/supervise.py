"""Runs a command in a child process, so that a crash inside a C library ends in a sentence and not in silence.

Slides come from strangers, and codecs written in C can crash on them; a process that runs out of memory is killed. The
child is forked before anything large is imported, which takes milliseconds, and does the whole work.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

COMMANDS = frozenset({"convert", "info", "measure", "seams", "validate"})
"""Those that read one slide; a cohort has worker processes."""
PASSED_ON = frozenset(
    {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set[signal.Signals]())
)
"""Signals that other processes send to end a command."""
SAME_S = 0.5
"""Signals that follow each other faster than this are one request to stop."""
INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""
PR_SET_PDEATHSIG = 1


def is_wanted(arguments: Sequence[str]) -> bool:
    """Whether a command runs in a child: only on Linux, where the child of a killed process can be killed, too."""
    return sys.platform == "linux" and bool(COMMANDS.intersection(arguments[:2])) and "--debug" not in arguments


def run_in_child() -> tuple[int, str] | None:
    """Fork; the child gets None at once, and this process the child's exit code and a sentence when it has ended.

    The sentence is empty unless a signal ended the child.
    """
    parent = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    child = os.fork()
    if not child:
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    status, received = _wait_for(child)
    code = os.waitstatus_to_exitcode(status)
    if -code in received:
        return INTERRUPTED, ""  # while it was ending on the first signal; it has said so
    return (code, "") if code >= 0 else (1, _sentence(-code))


def _wait_for(child: int) -> tuple[int, set[int]]:
    """The status of the child when it has ended, and the signals received; those of a process are passed on to it.

    Those that the kernel sent (Ctrl-C) reach the whole process group, so the child has them already.
    """
    received: set[int] = set()
    while True:
        event = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if event.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, received
            continue
        received.add(event.si_signo)
        if event.si_code <= 0:  # SI_USER, SI_QUEUE, SI_TKILL
            _send(child, event.si_signo)


def interrupt_once() -> Callable[[int, object], None]:
    """A handler of signals that raises KeyboardInterrupt, but not a second time within `SAME_S`.

    A batch system signals each process of a job, and the parent passes its signal on: together they are one.
    """
    last = -math.inf

    def interrupt(number: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > SAME_S:
            raise KeyboardInterrupt

    return interrupt


def _end_with(parent: int) -> None:
    """Let this process be killed when its parent is: it must not go on working after `kill -9`."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os.kill(os.getpid(), signal.SIGKILL)


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _sentence(number: int) -> str:
    if number == signal.SIGKILL:
        why = "usually because the memory ran out; free some, or use smaller tiles (--set grid.tile=256)"
    else:
        why = "a library that reads slides crashed: the file may be damaged or made to do harm; copy it again"
    with suppress(ValueError):
        return f"the process was ended by {signal.Signals(number).name}, {why}, and re-run the same command to resume"
    return f"the process was ended by signal {number}, {why}"
