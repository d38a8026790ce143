"""A cluster over SSH gives the numbers of local mode, keeps its secrets, and refuses strangers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cluster.conftest import commands, results, token_of
from tests.cluster.lab import LAPTOP, Lab

SIX = "agents=[" + ", ".join(["{agent: ppo, scope: 16, cfg: {rollouts: 64}}"] * 6) + "]"
SHORT = "trainer.timesteps=600 evaluation.episodes=10"
SIX_SHORT = f"env.num_envs=96 {shlex.quote(SIX)} {SHORT}"
TEAM_SHORT = "trainer.timesteps=100 evaluation.episodes=32"


def places(output: str) -> set[str]:
    """Return the hosts on which the workers live."""
    return set(re.findall(r"^  scope \d+: .* on (\w+) \(pid", output, re.MULTILINE))


@pytest.mark.parametrize(
    ("number", "config", "overrides", "used"),
    [(0, "cartpole", SHORT, 2), (1, "simple_spread", TEAM_SHORT, 1), (0, "cartpole", SIX_SHORT, 3)],
    ids=["two agents on two hosts", "two teams", "six agents on three hosts"],
)
def test_returns_and_digests_equal_those_of_local_mode(
    cluster: Lab, number: int, config: str, overrides: str, used: int
):
    submit = commands("lockstep submit")[number]
    assert f"examples/{config}.yaml" in submit
    if "--set" not in submit:
        submit += " --set"
    spread = "orchestrator.options.strategy=SPREAD" if used > 2 else ""
    done = cluster.run(LAPTOP, f"{submit} {overrides} {spread}", timeout=500)
    placed = places(done.stdout)
    assert len(placed) >= used, done.stdout
    own = f"--set {overrides} logging.directory=/tmp/{config}-{used}"
    local = cluster.run(LAPTOP, f"lockstep train examples/{config}.yaml {own}", timeout=500)
    assert results(done.stdout) == results(local.stdout) != []
    [fetched] = re.findall(r"^run directory: (runs/.*)$", done.stdout, re.MULTILINE)
    trust = "" if config == "cartpole" else "--trust"  # it names code, and is signed by the head's user
    again = cluster.run(LAPTOP, f"lockstep eval {fetched} {trust}", timeout=500)
    assert results(again.stdout) == results(local.stdout)


def test_doctor_tells_one_row_a_node(cluster: Lab):
    [doctor] = commands("lockstep doctor")
    done = cluster.run(LAPTOP, doctor, timeout=300)
    for address in ("10.99.0.2", "10.99.0.3", "10.99.0.4"):
        rows = re.findall(rf"^{address} +h\d +yes +2 +0 .* 0600 .* µs$", done.stdout, re.MULTILINE)
        assert len(rows) == 1, done.stdout
    assert "FAIL" not in done.stdout


@pytest.mark.parametrize("given", ["none", "wrong"])
def test_without_the_token_nobody_comes_in(cluster: Lab, given: str, tmp_path: Path):
    path = cluster.home / f"token-{given}"
    if given == "wrong":
        path.write_text("0" * 64, encoding="utf-8")
        path.chmod(0o600)
    submit = commands("lockstep submit")[0]
    done = cluster.run(LAPTOP, submit, timeout=200, check=False, env={"RAY_AUTH_TOKEN_PATH": str(path)})
    assert done.returncode
    assert "get-auth-token" in done.stdout


def test_a_node_without_the_token_is_refused(cluster: Lab):
    start = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/tmp/none ray start --address=10.99.0.2:6379 --num-cpus=0"
    done = cluster.ssh("h2", start, check=False)
    assert done.returncode
    assert "token" in done.stdout


def test_no_file_but_the_token_itself_holds_the_token(cluster: Lab):
    token = token_of(cluster)
    for host in cluster.servers:
        found = cluster.run(host, f"grep -rlsF {token} /home /tmp /dev/shm || true").stdout.split()
        assert found == ["/home/ubuntu/.ray/auth_token"]
        assert token not in "".join(cluster.processes(host).values())
        mode = cluster.run(host, "stat -c %a /home/ubuntu/.ray/auth_token").stdout.strip()
        assert mode == "600"
    found = cluster.run(LAPTOP, f"grep -rlsF --exclude-dir=.venv {token} {cluster.home} /tmp || true").stdout.split()
    assert {Path(one).name for one in found} <= {"auth_token"}


def test_the_dashboard_listens_on_the_head_only(cluster: Lab):
    listed = cluster.run("h1", "ss -tlnH").stdout
    assert [line.split()[3] for line in listed.splitlines() if line.split()[3].endswith(":8265")] == ["127.0.0.1:8265"]
