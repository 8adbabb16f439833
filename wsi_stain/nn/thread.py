"""One thread for all of torch's work on a device.

libgomp gives every thread that calls torch a team of its own. With two teams it counts more threads than processors,
stops spinning between parallel regions, and every region becomes slower, for good.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import ParamSpec, TypeVar

import numpy as np

from wsi_stain.nn.inference import TorchGenerator

P = ParamSpec("P")
R = TypeVar("R")


def in_torch_thread(device: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in the thread that does all of torch's work on a device, one call after the other.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; devices do not wait for each other.
        function: called with the other arguments; its result is returned, and what it raises is raised.
    """
    return _executor("cuda:0" if device == "cuda" else device).submit(function, *args, **kwargs).result()


class ThreadedGenerator:
    """A `TorchGenerator` that is loaded and run in torch's own thread, whichever thread calls it.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        load: makes the generator; called once, in that thread.
    """

    def __init__(self, device: str, load: Callable[[], TorchGenerator]) -> None:
        self._device = device
        self._generator = in_torch_thread(device, load)
        self.multiple, self.batch = self._generator.multiple, self._generator.batch
        self.device, self.precision = self._generator.device, self._generator.precision

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) H&E → uint8 (N, H, W, 3) stain; see `TorchGenerator`."""
        return in_torch_thread(self._device, self._generator, tiles)


@lru_cache
def _executor(device: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"torch {device}")
