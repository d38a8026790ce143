"""HeldThreads: a fixed number of compute threads in a process while a trainer or a worker computes.

Results differ in bits between numbers of threads, because sums are evaluated in a different order. Every mode therefore
uses the same number, regardless of environment variables and the number of CPUs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from threadpoolctl import OpenBLASController, ThreadpoolController

from workers.frameworks import Framework, ThreadControl, available_frameworks, load_framework

__all__ = ["THREAD_VARIABLES", "HeldThreads", "environment_variables", "thread_variables"]

_logger = logging.getLogger("lockstep")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
"""Environment variables for the compute threads of libraries, XLA included, that are loaded later."""

_Changed = list[tuple[Callable[[int], None], int]]


def thread_variables(num_threads: int) -> AbstractContextManager[None]:
    """Set `THREAD_VARIABLES` for libraries that are loaded and processes that are started in the context."""
    return environment_variables(dict.fromkeys(THREAD_VARIABLES, str(num_threads)))


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in the context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Entered(threading.local):
    """What each call changed, innermost last; every Python thread has its own."""

    def __init__(self) -> None:
        self.calls: list[_Changed] = []


class HeldThreads:
    """Context manager that sets the number of compute threads of this process, and restores it on exit.

    It covers torch and the BLAS and OpenMP libraries that are loaded; calls may be nested. A framework that fixes its
    number of threads when it starts is started with this number. BLAS has one number for all Python threads, so
    trainers must not compute in several of them at the same time.
    """

    def __init__(self, framework: Framework, num_threads: int) -> None:
        """Start the framework.

        Args:
            framework: The trainer's framework.
            num_threads: Number of compute threads.
        """
        self._num_threads = num_threads
        self._controls: list[ThreadControl] = []
        self._num_modules = 0
        self._entered = _Entered()
        self._has_said = False
        framework.start(num_threads)

    def _find(self) -> None:
        """Find the libraries to control; this takes a few milliseconds."""
        names = [name for name in available_frameworks() if sys.modules.get(name) is not None]
        controls = [control for name in names if (control := load_framework(name).thread_control()) is not None]
        libraries = [library for library in ThreadpoolController().lib_controllers if library.get_num_threads()]
        self._controls = controls + [(library.get_num_threads, library.set_num_threads) for library in libraries]
        self._num_modules = len(sys.modules)

    def __enter__(self) -> None:
        if len(sys.modules) != self._num_modules:  # imports may have loaded libraries
            self._find()
        num_threads = self._num_threads
        changed: _Changed = []
        self._entered.calls.append(changed)
        try:
            for count, set_count in self._controls:
                if (before := count()) != num_threads:
                    changed.append((set_count, before))
                    set_count(num_threads)
                    if count() != num_threads:
                        self._warn(count())
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        changed = self._entered.calls.pop()
        if changed:
            _restore(changed)
            OpenBLASController.clear_controlling_thread()  # else no other Python thread could set OpenBLAS's number

    def _warn(self, number: int) -> None:
        if not self._has_said:
            self._has_said = True
            _logger.warning(
                "a library computes with %d threads instead of %d, because another Python thread of this program "
                "limits it; results may differ",
                number,
                self._num_threads,
            )


def _restore(changed: _Changed) -> None:
    """Restore all numbers, also if an interrupt arrives meanwhile."""
    try:
        while changed:  # in reverse order: torch and its OpenMP library share one number
            set_count, before = changed[-1]
            set_count(before)
            changed.pop()
    except KeyboardInterrupt:
        _restore(changed)
        raise
