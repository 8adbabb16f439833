"""Ctrl-C is for the coordinator. Imported only where a pool starts: it imports Dask."""

from __future__ import annotations

import signal
import threading
from typing import Any

from distributed import WorkerPlugin


class IgnoreInterrupt(WorkerPlugin):
    """Workers of this machine share the terminal: Ctrl-C reaches them too, and would end them amid their blocks."""

    def setup(self, worker: Any) -> None:
        """Called in every worker, those that replace lost ones included."""
        if threading.current_thread() is threading.main_thread():  # it is not where workers are threads
            signal.signal(signal.SIGINT, signal.SIG_IGN)
