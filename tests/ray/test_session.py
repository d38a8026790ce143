"""What a session does with the replies of its workers."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.ray.patience import StepPatience
from orchestrator.ray.session import RaySession
from workers.errors import WorkerError
from workers.frameworks import load_framework
from workers.remote.replies import Reply
from workers.remote.wire import Packed, to_wire
from workers.types import Mode, Outcome, Scope, Tick

TORCH = load_framework("torch")
SCOPES = [Scope(0, 0, 3), Scope(1, 3, 6)]


class Replies:
    """Streams whose workers reply with given payloads."""

    def __init__(self, payloads: list[Any]) -> None:
        self.payloads = payloads

    def send(self, *_: Any) -> int:
        return 1

    def request(self, *_: Any, **__: Any) -> list[Any]:
        return self.payloads

    def receive(self, seq: int, *_: Any, **__: Any) -> list[Reply]:
        return [Reply("ok", seq, payload) for payload in self.payloads]


def outcome(columns: int, *, rows: int = 3) -> Packed:
    ones = np.ones((rows, columns), np.float32)
    return to_wire(Outcome(ones, ones[:, :1], ones[:, :1] > 2, ones[:, :1] > 2, {}), TORCH)


def session_of(payloads: list[Any]) -> RaySession:
    plan: Any = SimpleNamespace(env=None, framework=TORCH, scopes=SCOPES)
    streams: Any = Replies(payloads)
    recovery: Any = SimpleNamespace(until_next=100, is_due=lambda count: False, note_outcomes=lambda *_: None)
    return RaySession(plan, None, streams, recovery, patience=partial(StepPatience, 1), release=lambda: None)


def result_of(payloads: list[Any]) -> Outcome:
    session = session_of(payloads)
    session.submit(Tick(Mode.TRAIN, 7, 9))
    return session.result()


def test_outcomes_are_merged():
    assert result_of([outcome(4), outcome(4)]).observations.shape == (6, 4)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (outcome(4)._replace(data=b"short"), "a message cannot be read: TypeError: buffer is too small"),
        (to_wire((1, 2), TORCH), "a worker has sent something else than the outcome of 3 rows"),
        (None, "a worker has sent something else than the outcome of 3 rows"),
    ],
)
def test_outcomes_that_cannot_be_read_name_their_scope(payload: Any, message: str):
    with pytest.raises(WorkerError) as caught:
        result_of([outcome(4), payload])
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase, failure.timestep) == (1, (3, 6), "step", 7)
    assert message in f"{failure.kind}: {failure.message}"
    with pytest.raises(WorkerError) as caught:
        result_of([payload, payload])
    assert [one.scope for one in caught.value.failures] == [0, 1]


def test_outcomes_that_do_not_fit_each_other_are_named():
    with pytest.raises(WorkerError, match="all scopes") as caught:
        result_of([outcome(4), outcome(5)])
    assert caught.value.failures[0].timestep == 7


def statistics(rows: int, **held: Any) -> Packed:
    fields = {name: np.full(2, value) for name, value in {"mean": 1.0, "var": 2.0, "count": 3.0, **held}.items()}
    return to_wire(({"obs_rms": fields},) * rows, TORCH)


def test_statistics_of_all_rows_are_read():
    rows = session_of([statistics(3), statistics(3, mean=7.0)]).statistics()
    assert [row["obs_rms"]["mean"].tolist() for row in rows] == [[1.0, 1.0]] * 3 + [[7.0, 7.0]] * 3


@pytest.mark.parametrize("bad", [statistics(2), statistics(3, var=-1.0), to_wire((1, 2, 3), TORCH), to_wire(5, TORCH)])
def test_statistics_that_are_none_name_their_scope(bad: Packed):
    with pytest.raises(WorkerError) as caught:
        session_of([statistics(3), bad]).statistics()
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase) == (1, (3, 6), "store")
