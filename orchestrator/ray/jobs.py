"""Jobs: a client of Ray's Jobs API, which runs commands on the head of a cluster and tells their output."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from orchestrator.ray.address import TOKEN_REMEDY
from orchestrator.ray.dashboard import ANSWER, find_token, is_private, surroundings, version_at
from workers.errors import ClusterError

__all__ = ["STOP_SECONDS", "JobState", "Jobs"]

_logger = logging.getLogger("lockstep")

STOP_SECONDS = 60
"""Seconds that a job has to store everything when it is stopped, before Ray kills it."""

_UPLOAD = 1800.0
"""Seconds for packing and sending the working directory."""

_PATIENCE = 120.0
"""Seconds for which a lost connection is tried again."""

_PAUSE = 1.0
"""Seconds between two tries."""

_QUIET = 300.0
"""Seconds without output after which the log is asked for again: its connection may be dead without a sign."""


@dataclass(frozen=True)
class JobState:
    """What Ray knows of a job.

    Attributes:
        status: ``"PENDING"``, ``"RUNNING"``, ``"SUCCEEDED"``, ``"FAILED"`` or ``"STOPPED"``.
        message: What Ray says about it.
        exit_code: Exit code of the command; None if it has not ended by itself.
        metadata: What was stored with the job.
    """

    status: str
    message: str
    exit_code: int | None
    metadata: Mapping[str, str]

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs:
    """A client of the Jobs API of a cluster.

    Typical use::

        jobs = Jobs("http://127.0.0.1:8265")
        jobs.submit("my-job", "lockstep doctor --address auto")
        for line in jobs.follow("my-job"):
            print(line)
        jobs.state("my-job").exit_code

    The token, if this user has one, is sent even where ``RAY_AUTH_MODE`` is not set. No error and no message holds it.

    Attributes:
        address: Address of the dashboard.
        ray_version: Version of Ray on the head.
    """

    def __init__(self, address: str, *, renew: Callable[[], object] = lambda: None) -> None:
        """Connect to a cluster.

        Args:
            address: ``http://HOST:PORT`` of its dashboard.
            renew: Called before every request, which may carry the token: it opens a tunnel again that is lost, or
                raises `ClusterError`.

        Raises:
            ClusterError: It cannot be reached, or refuses the token.
        """
        self.address = address.rstrip("/")
        self._renew = renew
        token = find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if token and not is_private(self.address):
            _logger.warning(
                "the token is sent to %s without encryption; where others can read the network, use --cluster, which "
                "opens a tunnel, or https",
                self.address,
            )
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # its client tells every request
        self._renew()
        with surroundings(self.address):
            self.ray_version = version_at(self.address, headers)
        self._client = self._ask(JobSubmissionClient, self.address, headers=headers)

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        *,
        working_dir: Path | None = None,
        excludes: tuple[str, ...] = (),
        env_vars: Mapping[str, str] = {},
        metadata: Mapping[str, str] = {},
    ) -> None:
        """Start a job on the head.

        Args:
            job_id: A new name for it.
            entrypoint: Its shell command.
            working_dir: A folder that is copied to the nodes and in which the command runs.
            excludes: Patterns, as in a ``.gitignore``, of what is not copied, beside those of ``.gitignore`` and
                ``.rayignore``.
            env_vars: Environment variables of the command and of all its actors.
            metadata: Texts that are stored with the job. Everybody who may read the dashboard can read them.

        Raises:
            ClusterError: The head cannot be reached, or does not take it.
        """
        # Ray's own lines about nodes that join are not needed: a start says what it waits for
        ours = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "RAY_SCHEDULER_EVENTS": "0"}
        runtime_env: dict[str, Any] = {"env_vars": {**ours, **env_vars}}
        if working_dir is not None:
            runtime_env |= {"working_dir": str(working_dir), "excludes": list(excludes)}
        self._ask(
            self._client.submit_job,
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env=runtime_env,
            metadata=dict(metadata),
            seconds=_UPLOAD,
        )

    def state(self, job_id: str) -> JobState:
        """Return the state of a job.

        Raises:
            ClusterError: There is no such job, or the head cannot be reached.
        """
        info = self._ask(self._client.get_job_info, job_id)
        return JobState(
            status=str(info.status.value),
            message=info.message or "",
            exit_code=info.driver_exit_code,
            metadata=info.metadata or {},
        )

    def stop(self, job_id: str) -> bool:
        """Ask a job to end: it gets SIGTERM and, after `STOP_SECONDS`, SIGKILL. Return whether it was running.

        Raises:
            ClusterError: There is no such job, or the head cannot be reached.
        """
        return bool(self._ask(self._client.stop_job, job_id))

    def log(self, job_id: str) -> str:
        """Return the log of a job: everything that the command has written.

        Raises:
            ClusterError: There is no such job, or the head cannot be reached.
        """
        text: str = self._ask(self._client.get_job_logs, job_id, seconds=_PATIENCE)
        return text

    def follow(self, job_id: str, *, seen: int = 0, timeout: float = float("inf")) -> Iterator[str]:
        """Return the lines of a job's log as they come, until the job has ended. A lost connection is made again.

        Args:
            job_id: The job.
            seen: Number of characters of the log to leave out at its start.
            timeout: Seconds within which the job must end.

        Raises:
            ClusterError: There is no such job, which is told at once. Later: the connection cannot be made again, or
                the time is over.
        """
        self.state(job_id)
        return self._followed(job_id, seen, timeout)

    def _followed(self, job_id: str, seen: int, timeout: float) -> Iterator[str]:
        lines, deadline, told = _Lines(seen), monotonic() + timeout, -1
        while True:
            with _Tail(self._client, job_id, self._renew) as tail:
                lines.restart()
                for chunk in tail.chunks(until=deadline):
                    yield from lines.added(chunk)
            state = self._state_again(job_id, tail.error if lines.seen > told else None)
            told = lines.seen
            if state.has_ended:
                if not tail.is_complete:
                    lines.restart()
                    yield from lines.added(self.log(job_id))
                break
            if monotonic() > deadline:
                raise ClusterError(f"job {job_id} is still {state.status} after {timeout:.0f} s")
            threading.Event().wait(_PAUSE)
        yield from lines.rest()

    def _state_again(self, job_id: str, error: Exception | None) -> JobState:
        """Return the state of a job, and connect again if the connection was lost.

        Args:
            job_id: The job.
            error: Sign that the connection was lost.
        """
        lost = 0.0
        while True:
            if error is not None and not lost:
                _logger.warning("the connection was lost; the job goes on. Connecting again ... (%s)", error)
                lost = monotonic()
            try:
                state = self.state(job_id)
            except ClusterError as failure:
                if lost and monotonic() - lost > _PATIENCE:
                    raise
                error = failure
                threading.Event().wait(_PAUSE)
            else:
                if lost:
                    _logger.warning("connected again after %.0f s", monotonic() - lost)
                return state

    def _ask(self, call: Callable[..., Any], *arguments: Any, seconds: float = ANSWER, **options: Any) -> Any:
        self._renew()
        try:
            with surroundings(self.address):
                return _within(seconds, call, *arguments, **options)
        except AuthenticationError as error:
            raise ClusterError(f"{self.address} refuses the request: {error}; {TOKEN_REMEDY}") from None
        except (RuntimeError, ValueError, OSError) as error:
            hint = "; `ray job list` lists the jobs" if "does not exist" in str(error) else ""
            raise ClusterError(f"Ray at {self.address}: {type(error).__name__}: {error}{hint}") from error


class _Lines:
    """Lines of a log that is read again from its start after each lost connection.

    Attributes:
        seen: Number of characters that are not new.
    """

    def __init__(self, seen: int) -> None:
        self.seen = self._skipped = seen
        self._rest = ""

    def restart(self) -> None:
        """Begin at the start of the log."""
        self._skipped = self.seen

    def added(self, chunk: str) -> list[str]:
        """Return the lines that a chunk completes."""
        new = chunk[self._skipped :]
        self._skipped -= len(chunk) - len(new)
        self.seen += len(new)
        *lines, self._rest = (self._rest + new).split("\n")
        return lines

    def rest(self) -> list[str]:
        """Return the last line, if it has no end."""
        return [self._rest] if self._rest else []


class _Tail:
    """A connection that reads the log of a job, in a thread.

    Attributes:
        is_complete: Whether the head has ended the log.
        error: What broke the connection; None if nothing did.
    """

    def __init__(self, client: JobSubmissionClient, job_id: str, renew: Callable[[], object]) -> None:
        self.is_complete = False
        self.error: Exception | None = None
        self._chunks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._renew = renew
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._read(client, job_id))
        self._thread = threading.Thread(target=self._run, name=f"log of {job_id}", daemon=True)

    def chunks(self, *, until: float) -> Iterator[str]:
        """Yield parts of the log, until it ends, the connection is lost or there is nothing new for long."""
        while (left := min(_QUIET, until - monotonic())) > 0:
            try:
                chunk = self._chunks.get(timeout=left)
            except queue.Empty:
                return
            if chunk is None:
                return
            yield chunk

    async def _read(self, client: JobSubmissionClient, job_id: str) -> None:
        async for chunk in client.tail_job_logs(job_id):
            self._chunks.put(chunk)
        self.is_complete = True

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        except Exception as error:  # any error of the network
            self.error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._chunks.put(None)

    def __enter__(self) -> _Tail:
        try:
            self._renew()  # not in the thread: a tunnel is closed by this one
        except ClusterError as error:
            self.error = error
            self._task.cancel()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(ANSWER)


def _within(seconds: float, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function, whose requests have no deadline of their own, in a thread.

    Raises:
        TimeoutError: It takes longer.
        Exception: What the function raises.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(*arguments, **options), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result
