"""Lab: a laptop and bare hosts on this machine, joined by a switch, for ``ray up`` over SSH. Needs root and Linux.

Each host has network, mount, PID and UTS namespaces of its own: an address, a home, processes, shared memory, and
nothing of this machine but its distribution. Hosts have no name that outlives them and no way out of the switch. All
processes of a host end with its first one, which ends with the lab, with this process, or when its time is up.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.processes import ROOT, wait_for

__all__ = ["LAPTOP", "LIFETIME", "Lab", "lab", "missing_tools"]

LAPTOP = "laptop"

_HOST = Path(__file__).with_name("host.sh")
_TOOLS = ("ip", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "unshare", "/usr/sbin/sshd", "/usr/bin/python3.11")
LIFETIME = 5400
"""Seconds after which a host ends by itself."""

_NAMESPACES = ("--mount", "--net", "--pid", "--uts")


def missing_tools() -> str:
    """Return what this machine lacks for a lab; empty if nothing."""
    if os.geteuid():
        return "root"
    return ", ".join(tool for tool in _TOOLS if shutil.which(tool) is None)


class Lab:
    """The running hosts.

    Attributes:
        home: The laptop's home, with the clone of the project in ``lockstep``.
        addresses: The address of each host by name: ``h1``, ``h2``, ... and ``laptop``.
    """

    def __init__(self, folder: Path, pids: Mapping[str, int], addresses: Mapping[str, str]) -> None:
        self.home = folder / LAPTOP / "home"
        self.addresses = addresses
        self._pids = pids

    @property
    def servers(self) -> list[str]:
        """Names of the hosts but the laptop."""
        return [name for name in self.addresses if name != LAPTOP]

    def command(self, host: str, *words: str, env: Mapping[str, str] = {}) -> list[str]:
        """Return a command that runs `words` as root on a host; on the laptop in the clone, with the project's tools.

        Args:
            host: Name of the host.
            words: The command. One word is a line for bash.
            env: Environment variables to set.
        """
        found = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        folder = "/"
        if host == LAPTOP:
            folder = str(self.home / "lockstep")
            tools = Path(sys.executable).parent
            found |= {"HOME": str(self.home), "USER": "root", "PATH": f"{tools}:{found['PATH']}", "TERM": "dumb"}
            found |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        variables = [f"{name}={value}" for name, value in {**found, **env}.items()]
        line = words if len(words) > 1 else ["bash", "-c", words[0]]
        return [
            "nsenter",
            f"--target={self._pids[host]}",
            *_NAMESPACES,
            f"--wdns={folder}",
            "env",
            "-i",
            *variables,
            *line,
        ]

    def run(
        self, host: str, *words: str, timeout: float = 120, check: bool = True, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host; see `command`. Its output is text, with errors in it.

        Raises:
            AssertionError: It failed.
            subprocess.TimeoutExpired: It took longer than `timeout` seconds.
        """
        done = subprocess.run(
            self.command(host, *words, env=env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(words)} on {host} ended with {done.returncode}:\n{done.stdout}")
        return done

    def ssh(
        self, host: str, line: str, *, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of bash in a login shell of the user ubuntu on a host, from the laptop; see `run`."""
        return self.run(
            LAPTOP,
            *_SSH,
            f"ubuntu@{self.addresses[host]}",
            shlex.join(["bash", "-lic", line]),
            timeout=timeout,
            check=check,
        )

    def processes(self, host: str, word: str = "") -> dict[int, str]:
        """Return the command lines that contain `word`, by the pids that the host itself sees."""
        listed = self.run(host, "ps", "-eo", "pid=,stat=,args=").stdout
        found = {}
        for line in listed.splitlines():
            pid, state, args = line.split(maxsplit=2)
            if word in args and not state.startswith("Z"):
                found[int(pid)] = args
        return found

    def kill(self, host: str, pid: int, name: str = "KILL") -> None:
        """Send a signal to a process of a host."""
        self.run(host, "kill", f"-{name}", str(pid))

    def plug(self, host: str, *, connected: bool) -> None:
        """Put a host's cable into the switch, or pull it."""
        _in_namespace(self._pids["switch"], f"ip link set {_port(host)} {'up' if connected else 'down'}")


_SSH = (
    "ssh",
    "-oStrictHostKeyChecking=no",
    "-oUserKnownHostsFile=/dev/null",
    "-oLogLevel=ERROR",
    "-oConnectTimeout=10",
)


@contextmanager
def lab(number: int, folder: Path, *, wheels: Path) -> Iterator[Lab]:
    """Run a laptop and `number` hosts.

    Args:
        number: Number of hosts: h1 to h8.
        folder: A folder in the project for their files, made here and removed at the end.
        wheels: A folder of packages, the only index of pip on the hosts.
    """
    pids: dict[str, int] = {}
    addresses = {f"h{i}": f"10.99.0.{i + 1}" for i in range(1, number + 1)} | {LAPTOP: "10.99.0.10"}
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder)
        (folder / "keys").mkdir(parents=True)
        key = folder / "keys" / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        pids["switch"] = _start(["sleep", str(LIFETIME)], ["--net"], cleanup)
        _in_namespace(pids["switch"], "ip link add br0 type bridge; ip link set br0 up")
        for name, address in addresses.items():
            own = folder / name
            for part in ("home", "tmp", "etc"):
                (own / part).mkdir(parents=True)
            (own / "tmp").chmod(0o1777)
            role = LAPTOP if name == LAPTOP else "server"
            _furnish(own, role, key)
            command = [str(_HOST), str(own), name, role, str(LIFETIME), str(wheels), str(ROOT)]
            pids[name] = _start(command, [*_NAMESPACES, "--fork", "--mount-proc"], cleanup)
            wait_for(own / "ready")
            _connect(pids["switch"], pids[name], name, address)
        yield Lab(folder, pids, addresses)


def _furnish(own: Path, role: str, key: Path) -> None:
    """Put into a host's folder what it has from the start."""
    home = own / "home"
    (home / ".ssh").mkdir(mode=0o700)
    if role == LAPTOP:
        for name in (key.name, f"{key.name}.pub"):
            shutil.copy(key.with_name(name), home / ".ssh")
        _copy_project(home / "lockstep")
        return
    shutil.copy(key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text(
        "[global]\nno-index = true\nfind-links = /home/ubuntu/wheels\ndisable-pip-version-check = true\n"
    )
    for name in (".bashrc", ".profile"):
        shutil.copy(Path("/etc/skel") / name, home)
    for path in (home, *home.rglob("*")):
        os.chown(path, 1000, 1000)


def _copy_project(target: Path) -> None:
    """Copy the files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def _start(command: Sequence[str], namespaces: Sequence[str], cleanup: ExitStack) -> int:
    """Start the first process of new namespaces, and return its pid on this machine."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", "--kill-child", *namespaces, *command],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    cleanup.callback(process.wait, timeout=30)
    if "--fork" not in namespaces:
        cleanup.callback(process.kill)
        _wait_until_apart(process.pid)
        return process.pid
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            # the first process of a host ends when all others have, and `unshare` after it
            cleanup.callback(_kill, int(children[0]))
            return int(children[0])
        time.sleep(0.01)
    raise TimeoutError(f"{command} has not started")


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait_until_apart(pid: int) -> None:
    """Wait until a process has a network namespace of its own."""
    here = os.readlink("/proc/self/ns/net")
    deadline = time.monotonic() + 30
    while os.readlink(f"/proc/{pid}/ns/net") == here:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} has no network of its own")
        time.sleep(0.01)


def _connect(switch: int, host: int, name: str, address: str) -> None:
    """Lay a cable from a host to the switch."""
    port = _port(name)
    _in_namespace(switch, f"ip link add {port} type veth peer name eth0 netns {host}")
    _in_namespace(switch, f"ip link set {port} master br0 up")
    # Ray finds the address of its host by the default route, which leads nowhere here
    _in_namespace(
        host,
        f"ip link set lo up; ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default dev eth0",
    )


def _port(host: str) -> str:
    return f"v-{host}"


def _in_namespace(pid: int, line: str) -> None:
    subprocess.run(["nsenter", f"--target={pid}", "--net", "bash", "-ec", line], check=True)
