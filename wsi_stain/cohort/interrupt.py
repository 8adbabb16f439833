"""Only the coordinator handles Ctrl-C. Import this module only where a pool starts, since it imports Dask."""

from __future__ import annotations

import signal
import threading
from typing import Any

from distributed import WorkerPlugin


class IgnoreInterrupt(WorkerPlugin):
    """Makes workers ignore SIGINT: local workers share the terminal, and Ctrl-C would end them within a block."""

    def setup(self, worker: Any) -> None:
        """Called in every worker, including replacements of lost workers."""
        if threading.current_thread() is threading.main_thread():  # false where workers are threads
            signal.signal(signal.SIGINT, signal.SIG_IGN)
