"""One lock for each device of this process."""

from __future__ import annotations

import threading

_device_locks: dict[str, threading.Lock] = {}


def device_lock(device: str) -> threading.Lock:
    """The lock of a device, held by the thread that generates.

    Two threads on one device are not faster and may exhaust its memory; two devices do not wait for each other.
    """
    return _device_locks.setdefault("cuda:0" if device == "cuda" else device, threading.Lock())
