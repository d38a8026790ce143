"""Exception hierarchy.

Every exception that Lockstep raises deliberately is a `LockstepError` and also a subclass of the fitting built-in
exception, so ``except ValueError`` keeps working::

    LockstepError
    ├── ConfigError            (ValueError)    a configuration value is invalid
    ├── ScopeError             (ValueError)    the scopes do not fit the environments or the agents
    ├── EnvError               (ValueError)    an environment lacks a member or breaks the contract
    ├── AgentError             (ValueError)    an agent lacks a member, cannot be sent, or breaks the contract
    ├── CheckpointError        (ValueError)    a checkpoint cannot be written, or does not fit the trainer
    │   └── DamagedCheckpointError             it is incomplete or has been changed
    ├── LifecycleError         (RuntimeError)  a call is not allowed in the current state, such as train() after close()
    ├── ClusterError           (RuntimeError)  Ray cannot be reached, or does not provide what was requested
    ├── EvaluationError        (RuntimeError)  an evaluation during training failed
    ├── DivergedError          (ArithmeticError)  an agent holds NaN or infinity and would replace another one
    └── WorkerError            (RuntimeError)  scopes failed in an iteration; `failures` has one `Failure` per scope

All exceptions can be pickled: they carry only plain data.
"""

from __future__ import annotations

import difflib
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "AgentError",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DamagedCheckpointError",
    "DivergedError",
    "EnvError",
    "EvaluationError",
    "Failure",
    "LifecycleError",
    "LockstepError",
    "ScopeError",
    "WorkerError",
    "build_error",
    "check_keys",
    "close_all",
    "close_or_log",
    "did_you_mean",
    "ends_process",
    "ends_program",
    "mark_row",
    "marked_row",
    "marks_row",
    "message_of",
    "type_name",
    "which_keys",
]

_logger = logging.getLogger("lockstep")


class LockstepError(Exception):
    """Base class of every exception that Lockstep raises deliberately."""


class ConfigError(LockstepError, ValueError):
    """A configuration value is invalid."""


class ScopeError(LockstepError, ValueError):
    """The scopes do not fit the environments or the agents."""


class EnvError(LockstepError, ValueError):
    """An environment lacks a required member or breaks the contract."""


class AgentError(LockstepError, ValueError):
    """An agent lacks a required member, cannot be sent to its worker, or breaks the contract."""


class CheckpointError(LockstepError, ValueError):
    """A checkpoint cannot be written, or does not fit the trainer."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is incomplete or has been changed."""


class LifecycleError(LockstepError, RuntimeError):
    """A call is not allowed in the trainer's current state."""


class ClusterError(LockstepError, RuntimeError):
    """Ray cannot be reached, or does not provide what was requested."""


class EvaluationError(LockstepError, RuntimeError):
    """An evaluation during training failed."""


class DivergedError(LockstepError, ArithmeticError):
    """An agent holds NaN or infinity and would replace one that does not."""


def check_keys(given: Iterable[object], allowed: Sequence[str], owner: str) -> None:
    """Check the names of what a configuration sets.

    Args:
        given: The names.
        allowed: Those that there are.
        owner: The configuration, for the error.

    Raises:
        ConfigError: Some are unknown; the message names them, those that are spelt alike, and all allowed ones.
    """
    if unknown := [key for key in given if key not in allowed]:
        keys = f"key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
        raise ConfigError(f"{owner}: unknown {keys}; {which_keys(unknown, allowed)}")


def which_keys(unknown: Iterable[object], allowed: Sequence[str]) -> str:
    """Return what to use instead of unknown keys, in words."""
    hint = did_you_mean(unknown, allowed)
    return f"{f'{hint} Allowed' if hint else 'allowed'} keys: {', '.join(allowed)}"


def did_you_mean(unknown: Iterable[object], allowed: Sequence[str]) -> str:
    """Return the question whether those were meant that are spelt alike; empty if there are none."""
    alike = [close for key in unknown for close in difflib.get_close_matches(str(key), allowed, n=1)]
    return f"did you mean {', '.join(map(repr, dict.fromkeys(alike)))}?" if alike else ""


def mark_row(error: BaseException, row: int, owner: object) -> None:
    """Record in which copy an exception was raised, in a note for people and for `Failure`; the last mark counts.

    Args:
        error: The exception.
        row: Index of the copy among those of `owner`.
        owner: The environment that steps the copies.
    """
    before, note = getattr(error, "_lockstep_mark", (None, ""))[1], f"in copy {row} of {owner}"
    if before in getattr(error, "__notes__", ()):
        error.__notes__.remove(before)
    error.add_note(note)
    error._lockstep_mark = row, note  # type: ignore[attr-defined]


@contextmanager
def marks_row(row: int, owner: object) -> Iterator[None]:
    """Mark an exception of the body with a row; see `mark_row`."""
    try:
        yield
    except BaseException as error:
        mark_row(error, row, owner)
        raise


def marked_row(error: BaseException) -> int | None:
    """Return the row that `mark_row` recorded last; None if there is none."""
    row: int | None = getattr(error, "_lockstep_mark", (None, ""))[0]
    return row


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failure of one scope, as plain data that can be sent between processes.

    Attributes:
        scope: Index of the scope, or None if the environments of all scopes failed together.
        rows: Affected environments ``[start, stop)``.
        phase: Phase in which it happened, such as ``"act"`` (see `workers.types.Phase`).
        timestep: Timestep of the iteration; None outside an iteration.
        node: Host name and process id of the process in which it happened.
        kind: Qualified name of the exception's type.
        message: The exception's message.
        traceback: The original traceback as text; empty if there is none (the process died).
    """

    scope: int | None
    rows: tuple[int, int]
    phase: str
    timestep: int | None
    node: str
    kind: str
    message: str
    traceback: str = ""

    @classmethod
    def of(
        cls,
        error: BaseException,
        *,
        scope: int | None,
        rows: tuple[int, int],
        phase: str,
        timestep: int | None,
        node: str,
    ) -> Failure:
        """Build a failure from `error`, with its traceback as text.

        Args:
            error: The exception. A row that `mark_row` recorded narrows `rows` to that environment.
            scope: See `Failure`.
            rows: See `Failure`.
            phase: See `Failure`.
            timestep: See `Failure`.
            node: See `Failure`.
        """
        row = marked_row(error)
        if row is not None:
            rows = (rows[0] + row, rows[0] + row + 1)
        return cls(
            scope=scope,
            rows=rows,
            phase=phase,
            timestep=timestep,
            node=node,
            kind=type_name(type(error)),
            message=message_of(error),
            traceback=_traceback_of(error),
        )

    def __str__(self) -> str:
        return _text([self])


def _text(failures: Sequence[Failure], omit: str = "") -> str:
    """Return all tracebacks but `omit`, and last what happened where. An exception that scopes share is told once."""
    shared: dict[tuple[object, ...], list[Failure]] = {}
    for one in failures:
        shared.setdefault((one.phase, one.timestep, one.kind, one.message, one.traceback), []).append(one)
    groups = list(shared.values())
    numbers = [""] if len(groups) == 1 else [f"[{number + 1}] " for number in range(len(groups))]
    texts = [group[0].traceback for group in groups]
    parts = [f"{number}{text.rstrip()}" for number, text in zip(numbers, texts, strict=True) if text not in ("", omit)]
    headlines = [f"{number}{_headline(group)}" for number, group in zip(numbers, groups, strict=True)]
    if len(groups) > 1:
        headlines.insert(0, f"{len(groups)} different failures in the workers")
    return "\n\n".join([*parts, "\n".join(headlines)])


def _headline(group: Sequence[Failure]) -> str:
    one = group[0]
    when = "" if one.timestep is None else f", timestep {one.timestep}"
    nodes = " and ".join(dict.fromkeys(failure.node for failure in group))
    return f"{' and '.join(map(_scope, group))}, phase {one.phase}{when}, on {nodes}: {one.kind}: {one.message}"


def _scope(failure: Failure) -> str:
    start, stop = failure.rows
    rows = f"environment {start}" if stop - start == 1 else f"environments {start}:{stop}"
    return f"{'all scopes' if failure.scope is None else f'scope {failure.scope}'} ({rows})"


def type_name(kind: type) -> str:
    """Return the qualified name of a type, without the module of a built-in one."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """Return the message of an exception, whatever its ``str()`` does."""
    try:
        return "".join([str(error)])  # of an instance of a subclass of str, its characters
    except BaseException as another:
        return f"(str() of the exception failed: {type(another).__name__})"


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # attributes of a user's exception may fail, too
        return "Traceback (most recent call last):\n" + "".join(traceback.format_tb(error.__traceback__))


def ends_process(error: BaseException) -> bool:
    """Return whether Ray raised `error` to end this process, on SIGTERM."""
    return isinstance(error, SystemExit) and hasattr(error, "ray_terminate_msg")


def ends_program(error: BaseException) -> bool:
    """Return whether `error` ends this program: Ctrl-C, or Ray."""
    return isinstance(error, KeyboardInterrupt) or ends_process(error)


class WorkerError(LockstepError, RuntimeError):
    """One or more scopes failed; all of them are reported.

    The text has the original tracebacks first and says last what happened where, once for all scopes that share an
    exception. In local mode the original exception is the ``__cause__``: Python shows it, so its traceback is not
    repeated in ``str(error)``; `report` has all of them.

    Attributes:
        failures: One `Failure` per failed scope.
    """

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        super().__init__(self.failures)

    @property
    def report(self) -> str:
        """The text with all tracebacks."""
        return _text(self.failures)

    def __str__(self) -> str:
        cause = self.__cause__
        return _text(self.failures, omit="" if cause is None else _traceback_of(cause))


def build_error(failures: Sequence[Failure]) -> LockstepError:
    """Return the error for a failed request: what all workers raised of our kinds below, else a `WorkerError`."""
    ours = {type_name(kind): kind for kind in (AgentError, EnvError, ConfigError, CheckpointError)}
    kinds = {failure.kind for failure in failures}
    if len(kinds) == 1 and (kind := ours.get(kinds.pop())):
        nodes: dict[str, list[str]] = {}
        for failure in failures:
            nodes.setdefault(failure.message, []).append(failure.node)
        return kind("; ".join(f"{message} [on {', '.join(dict.fromkeys(on))}]" for message, on in nodes.items()))
    return WorkerError(failures)


def close_all(closers: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Close everything, even if some of it raises, and raise one error at the end.

    Args:
        closers: What is closed, for the error, and the function that closes it.

    Raises:
        Exception: The only error, with a note that says what was being closed.
        WorkerError: All failures, if there are several errors and each is a `WorkerError`.
        ExceptionGroup: Several errors, each with such a note. The message names all of them.
        BaseException: The first exception that is not an `Exception`, such as KeyboardInterrupt.
    """
    errors: list[Exception] = []
    told: list[str] = []
    interrupts: list[BaseException] = []
    for what, close in closers:
        try:
            close()
        except Exception as error:
            errors.append(error)
            if not isinstance(error, WorkerError):  # which names the place itself
                error.add_note(f"while closing {what}")
            told.append(f"{what}: {type(error).__name__}: {message_of(error)}")
        except BaseException as interrupt:
            interrupts.append(interrupt)
    if interrupts:
        raise interrupts[0]
    if len(errors) == 1:
        raise errors[0]
    of_workers = [error for error in errors if isinstance(error, WorkerError)]
    if errors and len(of_workers) == len(errors):
        raise WorkerError([failure for error in of_workers for failure in error.failures])
    if errors:
        raise ExceptionGroup("; ".join(told), errors)


def close_or_log(what: str, close: Callable[[], object]) -> None:
    """Close something. An error is logged, because it must not hide an earlier one or end a program that is complete.

    Args:
        what: What is closed, for the log.
        close: The function that closes it.
    """
    try:
        close()
    except Exception as error:
        text = getattr(error, "report", None) or error  # with all tracebacks, as has the text of a WorkerError
        _logger.error("%s could not be closed: %s", what, text, exc_info=not isinstance(error, WorkerError))
