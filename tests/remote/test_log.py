"""What a worker logs travels with its replies, once, and is not printed in the worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.support.processes import python
from tests.support.service import LiveRecordingAgent, spec, tick
from workers.remote import log
from workers.remote.log import LogCollector, LogEntry
from workers.remote.messages import dump_reply, load_reply
from workers.remote.service import Service

WARNING, ERROR = logging.WARNING, logging.ERROR


@pytest.fixture
def collector() -> Iterator[LogCollector]:
    """A collector of a logger that this process does not show."""
    logger = logging.getLogger("lockstep")
    before = logger.handlers[:], logger.level, logger.propagate
    one = LogCollector()
    one.install()
    yield one
    logger.handlers[:], logger.level, logger.propagate = before


def test_warnings_and_errors_are_collected_once(collector: LogCollector):
    logger = logging.getLogger("lockstep")
    assert collector.drain() == ()
    for _ in range(2):
        logger.debug("nothing")
        logger.info("nothing")
        logger.warning("%d rows of %s", 3, "scope 1")
    logger.error("broken")
    assert collector.drain() == (LogEntry(WARNING, "3 rows of scope 1"), LogEntry(ERROR, "broken"))
    logger.warning("%d rows of %s", 3, "scope 1")
    logger.warning("%d rows of %s", 4, "scope 1")
    assert collector.drain() == (LogEntry(WARNING, "4 rows of scope 1"),)
    try:
        raise LookupError("no licence")
    except LookupError:
        logger.exception("failed")
    ((level, message),) = collector.drain()
    assert level == ERROR
    assert message.startswith("failed\nTraceback")
    assert message.endswith("LookupError: no licence")


def test_memory_is_bounded(collector: LogCollector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "_MOST", 3)
    monkeypatch.setattr(log, "_LONGEST", 10)
    for number in range(9):
        logging.getLogger("lockstep").warning("%d%s", number, "x" * 100)
    messages = [message for _, message in collector.drain()]
    assert messages[:3] == [f"{number}xxxxxxxxx" for number in range(3)]
    assert len(messages) == 4
    assert "further messages" in messages[3]


def test_nothing_is_printed_where_it_is_collected():
    done = python(
        "-c",
        "import logging, trainer.torch\n"
        "from workers.remote.log import LogCollector\n"
        "one = LogCollector()\n"
        "one.install()\n"
        "logging.basicConfig()\n"
        "logging.getLogger('lockstep').warning('a word')\n"
        "print(one.drain())",
    )
    assert done.stdout == "(LogEntry(level=30, message='a word'),)\n"
    assert done.stderr == ""


def test_what_was_logged_comes_with_the_next_reply(collector: LogCollector, monkeypatch: pytest.MonkeyPatch):
    """Also with errors, with a reply that is sent again, and with one that replaces another."""
    LiveRecordingAgent.made.clear()
    service = Service(collector_dumps, collector)
    logging.getLogger("lockstep").warning("one")
    assert service.handle(1, "build", (spec(),)).log == (LogEntry(WARNING, "one"),)
    (agent,) = LiveRecordingAgent.made
    agent.post_interaction = (  # type: ignore[method-assign]
        lambda *, timestep, timesteps: logging.getLogger("lockstep").warning("step %d", timestep)
    )
    first, second = LogEntry(WARNING, "step 1"), LogEntry(WARNING, "step 2")
    assert service.handle(2, "tick", (tick(1), 1)).log == (first,)
    assert service.handle(2, "tick", (tick(1), 1)).log == (first,)
    assert service.handle(3, "tick", (tick(1), 1)).log == ()
    assert service.handle(4, "tick", (tick(2), 1)).log == (second,)
    assert service.refuse(4, "reply", ValueError()).log == (second,)
    logging.getLogger("lockstep").error("two")
    assert service.handle(5, "nonsense", ()).log == (LogEntry(ERROR, "two"),)


def collector_dumps(value: object) -> bytes:
    raise AssertionError("nothing is pickled here")


def test_replies_with_and_without_a_log_are_encoded():
    LiveRecordingAgent.made.clear()
    service = Service(collector_dumps)
    built = service.handle(1, "build", (spec(),))
    stepped = service.handle(2, "tick", (tick(1), 1))
    assert dump_reply(stepped)[0] == b""
    for reply in (built, stepped, service.handle(3, "nonsense", ())):
        for entries in ((), (LogEntry(WARNING, "one"), LogEntry(ERROR, "two"))):
            logged = reply._replace(log=entries)
            assert load_reply(reply.seq, *dump_reply(logged)) == logged
