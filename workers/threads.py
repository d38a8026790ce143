"""HeldThreads: the compute threads of a process, held to one number while a trainer or a worker computes.

Results of two numbers of threads differ in bits: sums are taken in another order. So every mode holds them to the
same number, whatever the environment variables and the number of CPUs are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from threadpoolctl import ThreadpoolController

from workers.frameworks import Framework, ThreadControl, available_frameworks, load_framework

__all__ = ["HeldThreads"]


class HeldThreads:
    """Holds the compute threads of this process to a number inside ``with``, and gives them back after it.

    Held are those of torch, where it is loaded, and of the BLAS and OpenMP libraries, where they are. A framework that
    takes its threads when it starts is started with them.
    """

    def __init__(self, framework: Framework, num_threads: int) -> None:
        """Start the framework, and find what is to be held.

        Args:
            framework: The framework that computes.
            num_threads: Number of compute threads.
        """
        self._num_threads = num_threads
        self._controls: list[ThreadControl] = []
        self._before: list[tuple[Callable[[int], None], int]] = []
        framework.start(num_threads)
        self.find()

    def find(self) -> None:
        """Find what is to be held, again where libraries may have been loaded since: it takes a few milliseconds."""
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
        # backwards: torch and its OpenMP library have one number between them
        while self._before:
            set_count, before = self._before.pop()
            set_count(before)
