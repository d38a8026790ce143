"""Writers of checkpoints that are killed or refused at every call of the system, and several writers at once."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.support.processes import python
from tests.support.schedule import full_or_short

PROGRAM = """
import errno, os, shutil, signal, sys, tempfile
from pathlib import Path
from orchestrator import checkpoint_folder
from orchestrator.checkpoint import read_checkpoint, write_checkpoint
from workers.errors import CheckpointError
from workers.storage.snapshot import Part, Snapshot

os.fsync = lambda descriptor: None  # it takes long, and what a killed process has written is not lost
CALLS = {"open", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.scandir", "fcntl.flock", "shutil.rmtree"}

def snapshot(number):
    return Snapshot((Part(b"%d" % number, b"p" * number),), {(0, number + 1): Part(b"%d" % number)})

def number_at(path):
    try:
        about, found = read_checkpoint(path, allow_pickle=True)
    except CheckpointError as error:
        assert "there is no checkpoint" in str(error), error
        return None
    assert found == snapshot(about["number"])
    return about["number"]

def write(path, number):
    write_checkpoint(path, {"number": number}, snapshot(number))

calls = 0

def arm(last, act):
    '''Act at the call with this number.'''
    def hook(event, args):
        global calls
        if event in CALLS:
            calls += 1
            if calls == last:
                act()
    os.fsync = lambda descriptor: hook("open", ())
    sys.addaudithook(hook)

def prepare(folder, state):
    path = folder / "target"
    if state != "nothing":
        write(path, 1)
    if state == "killed between its renames":
        path.rename(folder / ".target.replaced")
    if state == "killed twice":
        shutil.copytree(path, folder / ".target.replaced")
        shutil.copytree(path, folder / ".target.partial" / "new")
    return path

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def refuse():
    raise OSError(errno.ENOSPC, "No space left on device")

def run(path, last, act):
    '''Return how a writer ends that is struck at a call: -9 killed, 1 refused, 4 done all the same, 0 not struck.'''
    child = os.fork()
    if not child:
        code = 3
        try:
            arm(last, act)
            write(path, 2)
            code = 4 if calls >= last else 0
        except CheckpointError as error:
            code = 1 if isinstance(error.__cause__, (OSError, CheckpointError)) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

STRIKES = """
def strike_everywhere(state, act, code):
    outcomes, last = [], 0
    while True:
        last += 1
        folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))
        path = prepare(folder, state)
        ended = run(path, last, act)
        found = number_at(path)
        outcomes.append(found)
        if ended == 0:
            assert found == 2
            return outcomes
        assert ended in (code, 4), (ended, last)
        assert ended == code or act is refuse and found == 2
        if way == "exchanges" and state in ("old", "killed twice"):
            assert path.exists(), last  # whoever asks for it finds one at any moment
        old = None if state == "nothing" else 1
        assert found in (old, 2), (found, last)
        left = sorted(entry.name for entry in folder.iterdir())
        if act is refuse and found == old and state in ("nothing", "old"):
            assert left == ["target"] * (old is not None), (left, last)
        if act is refuse and found is not None and state != "killed between its renames":
            assert "target" in left, last
        write(path, 3)
        assert number_at(path) == 3
        assert [entry.name for entry in folder.iterdir()] == ["target"], last

act, state, way = sys.argv[2:]
if way == "renames":
    checkpoint_folder._exchanged = lambda one, other: False
outcomes = strike_everywhere(state, *{"kill": (kill, -9), "refuse": (refuse, 1)}[act])
changes = sum(one != other for one, other in zip(outcomes, outcomes[1:]))
print(len(outcomes), outcomes[0], outcomes[-1], changes)
"""
STATES = ("nothing", "old", "killed between its renames", "killed twice")
STRUCK = list(product(("kill", "refuse"), STATES, ("exchanges", "renames")))


@pytest.mark.parametrize(
    ("act", "state", "way"),
    full_or_short(
        STRUCK,
        [
            ("kill", "old", "exchanges"),
            ("kill", "old", "renames"),
            ("kill", "killed between its renames", "exchanges"),
            ("refuse", "old", "renames"),
        ],
    ),
)
def test_a_writer_that_is_struck_at_any_call_leaves_a_whole_checkpoint(act: str, state: str, way: str, tmp_path: Path):
    done = python("-c", PROGRAM + STRIKES, tmp_path, act, state, way)
    assert done.returncode == 0, done.stderr
    calls, first, last, changes = done.stdout.split()
    assert int(calls) > 25
    assert last == "2"
    if act == "kill":  # from the old one to the new one, once
        assert (first, changes) == ("None" if state == "nothing" else "1", "1")
    else:  # os.makedirs ignores the first error, of a folder that is there
        assert (first, changes) == ("2", "2")


RACE = """
def race(path, first):
    for number in range(first, first + 20):
        try:
            write(path, number)
        except CheckpointError as error:
            assert "another process is writing" in str(error), error

path = Path(sys.argv[1]) / "target"
children = []
for first in (0, 20, 40):
    child = os.fork()
    if not child:
        code = 1
        try:
            race(path, first)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert codes == [0, 0, 0], codes
print(number_at(path), [entry.name for entry in path.parent.iterdir()])
"""


def test_several_writers_at_once(tmp_path: Path):
    done = python("-c", PROGRAM + RACE, tmp_path)
    assert done.returncode == 0, done.stderr
    number, names = done.stdout.split(" ", 1)
    assert int(number) in range(60)
    assert names == "['target']\n"


FULL = """
import resource
path = prepare(Path(sys.argv[1]), "old")
large = Snapshot((Part(bytes(100_000)),), {(0, 1): Part(bytes(100_000), bytes(200_000))})
for limit in (0, 1000, 150_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_checkpoint(path, {}, large)
    except CheckpointError as error:
        told = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print(told.removeprefix(f"the checkpoint {str(path)!r} "), number_at(path), os.listdir(path.parent))
write_checkpoint(path, {}, large)
assert read_checkpoint(path, allow_pickle=True)[1] == large
"""


def test_a_file_that_the_system_does_not_let_grow(tmp_path: Path):
    done = python("-c", PROGRAM + FULL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["cannot be written: OSError: [Errno 27] File too large 1 ['target']"] * 3


BETWEEN = """
path = prepare(Path(sys.argv[1]), "killed between its renames")
print(path.exists(), number_at(path))
"""


def test_the_old_checkpoint_is_found_after_a_kill_between_two_renames(tmp_path: Path):
    done = python("-c", PROGRAM + BETWEEN, tmp_path)
    assert (done.returncode, done.stdout) == (0, "False 1\n"), done.stderr
