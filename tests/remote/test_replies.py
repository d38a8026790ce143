"""Replies and requests: what does not fit the request is a named error on either side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.service import Client, spec, tick
from workers.errors import Failure
from workers.frameworks import load_framework
from workers.pickling import dumps
from workers.remote.layout import DamagedError
from workers.remote.log import LogEntry
from workers.remote.messages import check_reply, dump_request, load_request
from workers.remote.replies import PAYLOADS, Reply
from workers.remote.service import Service
from workers.remote.wire import to_wire
from workers.storage.export import ExportedAgent
from workers.storage.snapshot import Part, Snapshot
from workers.types import Description

FAILURE = Failure(scope=1, rows=(3, 5), phase="act", timestep=7, node="here", kind="ValueError", message="oh no")
PACKED = to_wire((np.zeros(3),), load_framework("numpy"))
RESULTS: dict[str, list[Any]] = {
    "build": [Description("an agent", "here", 1)],
    "tick": [PACKED, None],
    "act": [PACKED],
    "learn": [None],
    "collect": [{"a": 1.0}],
    "store": [("state.safetensors", b""), None],
    "load": [None],
    "hyperparameters": [{"a": 1.0}],
    "set_hyperparameters": [None],
    "statistics": [PACKED],
    "restart": [None],
    "export": [ExportedAgent("pickle", b"")],
    "snapshot": [Snapshot((Part(b"", b""),), {}), Snapshot((Part(b"", b""),), {(3, 5): Part(b"", b"")})],
    "stage": [None],
    "restore": [True, False],
    "lose": [None],
    "close": [None],
}


def lacking(name: str) -> Failure:
    one = replace(FAILURE)
    del one.__dict__[name]
    return one


@pytest.mark.parametrize("method", PAYLOADS)
def test_a_reply_holds_what_its_method_returns(method: str):
    assert RESULTS.keys() == PAYLOADS.keys()
    for results in RESULTS.values():
        for result in results:
            reply = Reply("ok", 1, result, (LogEntry(30, "a warning"),))
            if type(result) in {type(one) for one in RESULTS[method]}:
                check_reply(reply, method)
            else:
                with pytest.raises(DamagedError, match=f"the reply to '{method}' is 'ok' with a "):
                    check_reply(reply, method)
    check_reply(Reply("error", 1, (FAILURE, replace(FAILURE, scope=None, timestep=None))), method)


@pytest.mark.parametrize(
    "reply",
    [
        Reply("maybe", 1, None),  # type: ignore[arg-type]
        Reply(["ok"], 1, None),  # type: ignore[arg-type]
        Reply(lacking("scope"), 1, None),  # type: ignore[arg-type]
        Reply("error", 1, ()),
        Reply("error", 1, [FAILURE]),
        Reply("error", 1, (FAILURE, "oh no")),
        Reply("error", 1, (replace(FAILURE, rows=(1,)),)),  # type: ignore[arg-type]
        Reply("error", 1, (replace(FAILURE, rows=(1, 2.5)),)),  # type: ignore[arg-type]
        Reply("error", 1, (replace(FAILURE, timestep="7"),)),  # type: ignore[arg-type]
        Reply("error", 1, (replace(FAILURE, message=None),)),  # type: ignore[arg-type]
        Reply("error", 1, (lacking("scope"),)),
        Reply("ok", 1, None, [LogEntry(30, "a warning")]),  # type: ignore[arg-type]
        Reply("ok", 1, None, (LogEntry("30", "a warning"),)),  # type: ignore[arg-type]
        Reply("ok", 1, None, ((30, "a warning"),)),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_reply_is_named(reply: Reply):
    with pytest.raises(DamagedError, match="the reply to 'close' is "):
        check_reply(reply, "close")


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot([Part(b"")], {}),  # type: ignore[arg-type]
        Snapshot((Part("", b""),), {}),  # type: ignore[arg-type]
        Snapshot(((b"", b""),), {}),  # type: ignore[arg-type]
        Snapshot((Part(b""),), []),  # type: ignore[arg-type]
        Snapshot((Part(b""),), {(3,): Part(b"")}),  # type: ignore[dict-item]
        Snapshot((Part(b""),), {(3, 5): b""}),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_snapshot_is_named(snapshot: Snapshot):
    with pytest.raises(DamagedError, match="the reply to 'snapshot' is 'ok' with a "):
        check_reply(Reply("ok", 1, snapshot), "snapshot")


@pytest.mark.parametrize("request_", [5, (), ("collect",), ["collect", (), None], ("collect", [], None), (5, (), None)])
def test_what_is_no_request_is_named(request_: Any):
    with pytest.raises(DamagedError, match="a request is a "):
        load_request(dumps(request_))


def test_damaged_iterations_are_named():
    plain = dump_request("tick", (tick(3), 1))
    assert load_request(plain) == ("tick", (tick(3), 1), None)
    for damaged in (b"", plain[:-1], plain + b"x", b"\1" + plain[1:]):
        with pytest.raises(Exception, match=r"damaged|a request is a"):
            load_request(damaged)


def test_a_number_that_is_far_ahead_does_not_end_the_order():
    client = Client(spec())
    for seq in (2**62, 1002):
        assert "arrived after 1; requests must be in order" in client.failure("collect", seq=seq).message
        client.service.refuse(seq, "request", ValueError("unreadable"))
        client.service.halt(seq)
    assert client.ok("tick", tick(1), 3) is not None  # neither halted nor refused
    assert client.send("collect", seq=1000).status == "ok"


def test_only_methods_of_requests_are_called():
    client = Client(spec())
    for method in ("keep", "build_scope", "failure", "_collect", "no such"):
        failure = client.failure(method)
        assert (failure.kind, failure.phase) == ("ValueError", method)
        assert "no worker has the method" in failure.message
    assert {f"_{method}" for method in PAYLOADS} <= set(dir(Service))


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("build", Description("an agent", None, 1)),  # type: ignore[arg-type]
        ("build", Description("an agent", "here", 1, ("a", 5))),  # type: ignore[arg-type]
        ("collect", {1: 2.0}),
        ("collect", {"a": []}),
        ("store", (1, b"")),
        ("store", ("state.safetensors", b"", 3)),
        ("export", ExportedAgent("pickle", "x")),  # type: ignore[arg-type]
    ],
)
def test_the_content_of_a_reply_is_checked(method: str, payload: Any):
    with pytest.raises(DamagedError, match=f"the reply to '{method}' is 'ok' with a "):
        check_reply(Reply("ok", 1, payload), method)
