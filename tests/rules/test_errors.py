"""Exception hierarchy: built-in base classes, pickling, and the text of failures."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import pytest
from ray import cloudpickle

from workers import errors
from workers.errors import AgentError, EnvError, Failure, LockstepError, WorkerError, build_error, mark_row

KINDS: dict[str, type[Exception]] = {
    "ConfigError": ValueError,
    "ScopeError": ValueError,
    "EnvError": ValueError,
    "AgentError": ValueError,
    "CheckpointError": ValueError,
    "LifecycleError": RuntimeError,
    "EvaluationError": RuntimeError,
    "ClusterError": RuntimeError,
    "DivergedError": ArithmeticError,
    "WorkerError": RuntimeError,
}


def failure(scope: int | None = 1, **changes: Any) -> Failure:
    values: dict[str, Any] = {
        "rows": (4, 8),
        "phase": "act",
        "timestep": 17,
        "node": "node-3 (pid 4711)",
        "kind": "KeyError",
        "message": "'policy'",
        "traceback": "Traceback (most recent call last):\n  line\nKeyError: 'policy'\n",
    }
    return Failure(scope=scope, **{**values, **changes})


def test_the_tree():
    exported = {name: value for name in errors.__all__ if isinstance(value := getattr(errors, name), type)}
    assert set(exported) == {*KINDS, "DamagedCheckpointError", "Failure", "LockstepError"}
    assert exported["DamagedCheckpointError"].__bases__ == (errors.CheckpointError,)
    for name, kind in KINDS.items():
        assert exported[name].__bases__ == (LockstepError, kind)
        assert f"── {name} " in (errors.__doc__ or "")
        assert f"({kind.__name__})" in (errors.__doc__ or "")
    assert LockstepError.__bases__ == (Exception,)


@pytest.mark.parametrize(
    "carry", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, lambda e: cloudpickle.loads(cloudpickle.dumps(e))]
)
@pytest.mark.parametrize("name", [*KINDS, "DamagedCheckpointError", "LockstepError"])
def test_every_error_survives_pickling(name: str, carry: Any):
    kind = getattr(errors, name)
    error = kind([failure(0), failure(1)]) if name == "WorkerError" else kind("scopes [1, 2] add up to 3")
    carried = carry(error)
    assert type(carried) is kind
    assert str(carried) == str(error)
    assert carried.args == error.args
    if name == "WorkerError":
        assert carried.failures == (failure(0), failure(1))


def test_text_of_a_failure():
    assert str(failure(traceback="")) == (
        "scope 1 (environments 4:8), phase act, timestep 17, on node-3 (pid 4711): KeyError: 'policy'"
    )
    assert str(failure()) == (
        "Traceback (most recent call last):\n  line\nKeyError: 'policy'\n\n"
        "scope 1 (environments 4:8), phase act, timestep 17, on node-3 (pid 4711): KeyError: 'policy'"
    )
    assert str(failure(None, timestep=None, phase="build", traceback="")).startswith(
        "all scopes (environments 4:8), phase build, on node-3"
    )
    assert "scope 0 " in str(failure(0))
    assert "timestep 0," in str(failure(timestep=0))


def test_text_of_a_worker_error():
    """The tracebacks come first and the headlines last; an exception that scopes share is told once."""
    one, other = failure(0), failure(2, phase="step", message="other", traceback="Traceback of the other")
    assert str(WorkerError([one])) == str(one)
    where = "phase act, timestep 17, on node-3 (pid 4711): KeyError: 'policy'"
    assert str(WorkerError([one, other, failure(1, rows=(8, 9))])) == (
        "[1] Traceback (most recent call last):\n  line\nKeyError: 'policy'\n\n"
        "[2] Traceback of the other\n\n"
        "2 different failures in the workers\n"
        f"[1] scope 0 (environments 4:8) and scope 1 (environment 8), {where}\n"
        "[2] scope 2 (environments 4:8), phase step, timestep 17, on node-3 (pid 4711): KeyError: other"
    )


def test_a_traceback_that_python_shows_is_not_repeated():
    cause = raised(ValueError("the reason"))
    failures = [Failure.of(cause, scope=0, rows=(0, 4), phase="act", timestep=3, node="here"), failure(1)]
    error = WorkerError(failures)
    error.__cause__ = cause
    assert "the reason" in failures[0].traceback
    for text in ("".join(traceback.format_exception(error)), error.report):
        assert text.count("ValueError: the reason") == 2  # at the end of its traceback, and in the headline
        assert text.count("in raised\n    raise error from cause") == 1


def test_a_marked_row_narrows_a_failure():
    error = raised(ValueError("the reason"))
    mark_row(error, 1, "the samples")
    mark_row(error, 3, "SyncVectorEnv")
    described = Failure.of(error, scope=2, rows=(8, 16), phase="step", timestep=3, node="here")
    assert described.rows == (11, 12)
    assert "scope 2 (environment 11), phase step" in str(described)
    assert error.__notes__ == ["in copy 3 of SyncVectorEnv"]


class UnpicklableError(Exception):
    """An exception of a user, with a constructor that pickle cannot call and data that it cannot carry."""

    def __init__(self, first: str, second: Any) -> None:
        super().__init__(f"{first} and more")
        self.second = second


def raised(error: Exception) -> Exception:
    try:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise error from cause
    except Exception as caught:
        return caught


def test_failure_of_an_exception():
    described = Failure.of(
        raised(UnpicklableError("unlucky", lambda: None)), scope=3, rows=(6, 9), phase="record", timestep=5, node="here"
    )
    assert described.kind == "tests.rules.test_errors.UnpicklableError"
    assert described.message == "unlucky and more"
    assert "KeyError: 'the cause'" in described.traceback
    assert "in raised\n    raise error from cause" in described.traceback
    assert (described.scope, described.rows, described.phase, described.timestep, described.node) == (
        3, (6, 9), "record", 5, "here",
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(described)) == described
    assert (
        Failure.of(raised(KeyError("x")), scope=None, rows=(0, 1), phase="act", timestep=None, node="").kind
        == "KeyError"
    )


def test_errors_of_building():
    ours = [failure(i, kind="workers.errors.EnvError", message=f"row {i}", node=f"node {i}") for i in range(2)]
    error = build_error(ours)
    assert type(error) is EnvError
    assert str(error) == "row 0 [on node 0]; row 1 [on node 1]"
    shared = [failure(i, kind="workers.errors.EnvError", message="no sensor", node=f"node {i}") for i in range(2)]
    assert str(build_error(shared)) == "no sensor [on node 0, node 1]"
    assert type(build_error([failure(kind="workers.errors.AgentError")])) is AgentError
    for mixed in ([ours[0], failure(1)], [failure(1)], [failure(1, kind="elsewhere.EnvError")]):
        error = build_error(mixed)
        assert isinstance(error, WorkerError)
        assert list(error.failures) == mixed


def raises(error: BaseException) -> Any:
    def close() -> None:
        raise error

    return close


def test_everything_is_closed_and_one_error_tells_of_all():
    closed: list[int] = []
    broken = {1: RuntimeError("one"), 3: OSError("three")}

    def close(row: int) -> None:
        closed.append(row)
        if row in broken:
            raise broken[row]

    def copies(*rows: int) -> Any:
        return ((f"copy {row}", lambda row=row: close(row)) for row in rows)

    errors.close_all(copies(0, 2))
    with pytest.raises(RuntimeError, match="one") as single:
        errors.close_all(copies(0, 1, 2))
    assert single.value.__notes__ == ["while closing copy 1"]
    with pytest.raises(ExceptionGroup, match="copy 1: RuntimeError: one; copy 3: OSError: three") as several:
        errors.close_all(copies(0, 1, 2, 3, 4))
    assert several.value.exceptions == (broken[1], broken[3])
    assert closed == [0, 2, 0, 1, 2, 0, 1, 2, 3, 4]


def test_an_interrupt_in_closing_closes_the_rest():
    closed: list[str] = []
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        errors.close_all([("a", raises(ValueError())), ("b", raises(interrupt)), ("c", lambda: closed.append("c"))])
    assert caught.value is interrupt
    assert closed == ["c"]


def test_failures_of_several_workers_are_one_error():
    with pytest.raises(WorkerError) as caught:
        errors.close_all(
            [("a", raises(WorkerError([failure(0)]))), ("b", raises(WorkerError([failure(1), failure(2)])))]
        )
    assert caught.value.failures == (failure(0), failure(1), failure(2))


def test_an_error_in_closing_is_logged_where_it_would_hide_another(caplog: pytest.LogCaptureFixture):
    errors.close_or_log("the trainer", lambda: None)
    assert not caplog.records
    errors.close_or_log("the trainer", raises(RuntimeError("boom")))
    errors.close_or_log("the trainer", raises(WorkerError([failure(0)])))
    first, second = caplog.records
    assert first.getMessage() == "the trainer could not be closed: boom"
    assert first.exc_info
    assert not second.exc_info
    assert "KeyError: 'policy'" in second.getMessage()
