"""Headers: one that no healthy peer sends ends the connection before anything is allocated or waited for."""

from __future__ import annotations

import pickle

import pytest

from tests.support.connections import HEADER, pair, sessions
from tests.support.processes import PATIENCE
from workers.remote.channel import Channel
from workers.remote.layout import DamagedError, Layout

GOOD = {"seq": 1, "ack": 1, "slot": -1, "number": -1, "plain": 0, "spec": 0, "others": 0, "size": 0, "is_here": 0}
KNOWN = {"number": 3, "size": 128, "is_here": 1}
"""A message with arrays of a known layout."""

BAD = [
    {"seq": 2**63},
    {"ack": 2**64 - 1},
    {"number": -2},
    *({name: 2**40} for name in ("plain", "spec", "others", "size")),
    *({name: 1} for name in ("spec", "others", "size", "is_here")),  # without a layout
    {"number": 64, "spec": 5},
    {"number": 4},  # an unknown layout
    {**KNOWN, "is_here": 2},
    {**KNOWN, "size": 64},
    {**KNOWN, "others": 2**40},
    {**KNOWN, "plain": 2**63},
]


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_a_header_that_no_healthy_peer_sends(changes: dict[str, int]):
    victim, peer = pair()
    channel = Channel(victim, sessions()[0], pickle.dumps)
    channel._received[3] = Layout((), 128, 0)
    peer.sendall(bytes(16) + HEADER.pack(*{**GOOD, **changes}.values()))
    with pytest.raises(DamagedError, match="which no healthy peer sends"):
        channel.receive(PATIENCE)
    channel.close()
    peer.close()


@pytest.mark.parametrize("changes", [{}, KNOWN], ids=str)
def test_any_other_is_judged_by_its_tag(changes: dict[str, int]):
    victim, peer = pair()
    channel = Channel(victim, sessions()[0], pickle.dumps)
    channel._received[3] = Layout((), 128, 0)
    peer.sendall(bytes(16) + HEADER.pack(*{**GOOD, **changes}.values()) + bytes(128))
    with pytest.raises(DamagedError, match="not what the peer has sent"):
        channel.receive(PATIENCE)
    channel.close()
    peer.close()
