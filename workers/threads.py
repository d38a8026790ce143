"""HeldThreads: a fixed number of compute threads in a process while a trainer or a worker computes.

Results differ in bits between numbers of threads, because sums are evaluated in a different order. Every mode therefore
uses the same number, regardless of environment variables and the number of CPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from threadpoolctl import ThreadpoolController

from workers.frameworks import Framework, ThreadControl, available_frameworks, load_framework

__all__ = ["HeldThreads"]


class HeldThreads:
    """Context manager that sets the number of compute threads of this process, and restores it on exit.

    It covers torch and the BLAS and OpenMP libraries, if they are loaded. A framework that fixes its number of threads
    when it starts is started with this number.
    """

    def __init__(self, framework: Framework, num_threads: int) -> None:
        """Start the framework and find the libraries to control.

        Args:
            framework: The trainer's framework.
            num_threads: Number of compute threads.
        """
        self._num_threads = num_threads
        self._controls: list[ThreadControl] = []
        self._before: list[tuple[Callable[[int], None], int]] = []
        framework.start(num_threads)
        self.find()

    def find(self) -> None:
        """Find the libraries to control; call again if others may have been loaded (takes a few milliseconds)."""
        loaded = [load_framework(name) for name in available_frameworks() if name in sys.modules]
        controls = [control for framework in loaded if (control := framework.thread_control()) is not None]
        libraries = ThreadpoolController().lib_controllers
        self._controls = controls + [(library.get_num_threads, library.set_num_threads) for library in libraries]

    def __enter__(self) -> None:
        num_threads = self._num_threads
        for count, set_count in self._controls:
            if (before := count()) != num_threads:
                self._before.append((set_count, before))
                set_count(num_threads)

    def __exit__(self, *_: object) -> None:
        # in reverse order: torch and its OpenMP library share one number
        while self._before:
            set_count, before = self._before.pop()
            set_count(before)
