"""Handshake: both sides know the key, in this connection and in these roles, or neither gets a session."""

from __future__ import annotations

from itertools import product

import pytest

from tests.support.connections import KEY, sessions
from workers.remote.handshake import CONTROL, SERVE, WORK, AuthenticationError, handshake

LENGTH = len(next(handshake(KEY, SERVE))[0])
FLAGS_AT = len(b"lockstep 3\nw")


@pytest.mark.parametrize(("role", "signs_arrays"), list(product((WORK, CONTROL), (False, True))))
def test_both_sides_get_the_same_session_from_their_point_of_view(role: bytes, signs_arrays: bool):
    driver, worker = sessions(role=role, signs_arrays=signs_arrays)
    assert (driver.role, driver.signs_arrays) == (worker.role, worker.signs_arrays) == (role, signs_arrays)
    assert (driver.send_key, driver.receive_key) == (worker.receive_key, worker.send_key)


def test_every_connection_and_direction_has_its_own_key():
    keys = {key for _ in range(10) for session in sessions() for key in (session.send_key, session.receive_key)}
    assert len(keys) == 20
    assert KEY not in keys


def test_another_key_is_refused_by_both_sides():
    """The worker's proof comes last: a driver that has it has been let in."""
    driver, worker = handshake(KEY, WORK), handshake(b"x" * 32, SERVE)
    greeting, answer = next(driver)[0], next(worker)[0]
    assert worker.send(greeting) == (b"", 32)
    proof, count = worker.send(driver.send(answer)[0])
    assert (len(proof), count) == (32, 0)
    for side, last in ((driver, proof), (worker, b"")):
        with pytest.raises(AuthenticationError, match="does not know the key"):
            side.send(last)


@pytest.mark.parametrize("role", [WORK, CONTROL, SERVE])
def test_what_a_side_has_sent_cannot_be_sent_back_to_it(role: bytes):
    side = handshake(KEY, role)
    greeting, count = next(side)
    assert count == len(greeting)
    with pytest.raises(AuthenticationError, match="expected a driver and a worker"):
        side.send(greeting)


def test_what_was_said_in_another_handshake_proves_nothing():
    """A peer repeats everything that one with the key once said, to either side."""
    driver, worker = handshake(KEY, WORK), handshake(KEY, SERVE)
    greeting, answer = next(driver)[0], next(worker)[0]
    worker.send(greeting)
    proof = driver.send(answer)[0]
    last = worker.send(proof)[0]
    victim = handshake(KEY, WORK)
    next(victim)
    victim.send(answer)
    with pytest.raises(AuthenticationError, match="does not know the key"):
        victim.send(last)
    victim = handshake(KEY, SERVE)
    next(victim)
    victim.send(greeting)
    victim.send(proof)
    with pytest.raises(AuthenticationError, match="does not know the key"):
        victim.send(b"")


@pytest.mark.parametrize("place", range(LENGTH))
def test_a_greeting_that_is_changed_on_its_way_is_noticed_by_both_sides(place: int):
    """It may be changed into another role, into other options, or into another number."""
    for changed in (WORK[0], CONTROL[0], 0, 1, 255):
        driver, worker = handshake(KEY, WORK), handshake(KEY, SERVE)
        greeting, answer = next(driver)[0], next(worker)[0]
        if greeting[place] == changed:
            continue
        try:
            worker.send(greeting[:place] + bytes([changed]) + greeting[place + 1 :])
        except AuthenticationError:
            continue
        last = worker.send(driver.send(answer)[0])[0]
        for side, message in ((driver, last), (worker, b"")):
            with pytest.raises(AuthenticationError, match="does not know the key"):
                side.send(message)
