"""A crash in a C library is a sentence, and the process that the user started stays the one to signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a child with its parent")

CODE = """
import os, signal, sys, time
import wsi_stain.slide.slide as module
from wsi_stain.cli import main

def open_backend(*_):
    print("opened", flush=True)
    {act}

module.open_backend = open_backend
sys.argv = ["wsi-stain", *sys.argv[1:]]
main()
"""
SLEEP = "time.sleep(120)"


def command(act: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", CODE.format(act=act), *arguments]


@pytest.fixture
def slide(tmp_path) -> Path:
    path = tmp_path / "a.svs"
    path.write_bytes(b"II*\0" + bytes(100))
    return path


@pytest.mark.parametrize(("name", "words"), [("SIGSEGV", "crashed"), ("SIGABRT", "crashed"), ("SIGKILL", "memory")])
@pytest.mark.parametrize("verb", ["convert", "info"])
def test_a_crash_is_a_sentence_and_exit_code_1(slide, name, words, verb):
    crash = command(f"os.kill(os.getpid(), signal.{name})", verb, str(slide))
    done = subprocess.run(crash, capture_output=True, text=True, timeout=120, check=False, cwd=slide.parent)
    assert done.returncode == 1
    sentence = done.stderr.splitlines()[-1]  # `convert` has told its stage before
    assert sentence.startswith(f"wsi-stain: the process was ended by {name}, ")
    assert words in sentence
    assert "Traceback" not in done.stderr


def test_exit_codes_and_sentences_of_the_child_are_those_of_the_command(slide):
    refusal = "from wsi_stain.errors import {0}; raise {0}('x is wrong')"
    for error, code in (("SlideError", 1), ("ConfigError", 2)):
        child = command(refusal.format(error), "info", str(slide))
        done = subprocess.run(child, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (code, "wsi-stain: x is wrong\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("is_to_group", [False, True], ids=["to the process", "to its group"])
def test_signals_to_the_started_process_end_both(slide, number, code, is_to_group):
    """A scheduler signals the process alone; a terminal, its whole group."""
    process = subprocess.Popen(
        command(SLEEP, "info", str(slide)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline() == b"opened\n"
    (child,) = psutil.Process(process.pid).children()
    if is_to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(timeout=60) == code
    process.stdout.close()
    end = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child goes on without its parent"
        time.sleep(0.05)
