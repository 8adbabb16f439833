"""Runs a command in a child process, so that a crash inside a C library ends in a sentence and not in silence.

Slides come from strangers, and codecs written in C can crash on them; a process that runs out of memory is killed. The
child is forked before anything large is imported, which takes milliseconds, and does the whole work.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

COMMANDS = frozenset({"convert", "info", "measure", "validate"})
"""Those that read one slide; a cohort has worker processes."""
PR_SET_PDEATHSIG = 1


def is_wanted(arguments: Sequence[str]) -> bool:
    """Whether a command runs in a child: only on Linux, where the child of a killed process can be killed, too."""
    return sys.platform == "linux" and bool(COMMANDS.intersection(arguments[:2])) and "--debug" not in arguments


def run_in_child() -> tuple[int, str] | None:
    """Fork; the child gets None at once, and this process the child's exit code and a sentence when it has ended.

    The sentence is empty unless a signal ended the child.
    """
    parent = os.getpid()
    child = os.fork()
    if not child:
        _end_with(parent)
        return None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child, too
    signal.signal(signal.SIGTERM, lambda *_: _send(child, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (code, "") if code >= 0 else (1, _sentence(-code))


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
