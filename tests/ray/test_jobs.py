"""The client of Ray's Jobs API: tokens, lost connections and deadlines, against a stand-in for the dashboard."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ray import dashboard, jobs
from orchestrator.ray.jobs import Jobs
from tests.support.jobs_api import TOKEN, JobsAPI, jobs_api
from workers.errors import ClusterError

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # by Ray's client


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JobsAPI]:
    monkeypatch.setattr(jobs, "_PAUSE", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with jobs_api() as api:
        api.submitted["job"] = {"submission_id": "job", "entrypoint": "", "metadata": {"key": "value"}}
        yield api


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lockstep"]


def test_a_log_is_followed_and_the_state_is_told(api: JobsAPI):
    client = Jobs(f"{api.address}/")
    assert list(client.follow("job")) == api.log.splitlines()
    state = client.state("job")
    assert (state.status, state.exit_code, state.metadata, state.has_ended) == ("SUCCEEDED", 0, {"key": "value"}, True)
    assert client.log("job") == api.log


@pytest.mark.parametrize(("cuts", "told"), [([0], 1), ([5, 5, 80], 2), ([-1, 80], 1), ([8, 200], 2)])
def test_nothing_is_repeated_or_lost_where_connections_break(
    cuts: list[int], told: int, api: JobsAPI, caplog: pytest.LogCaptureFixture
):
    """A connection that brings nothing new before it breaks again tells nothing new."""
    api.cuts = cuts
    client = Jobs(api.address)
    assert list(client.follow("job")) == api.log.splitlines()
    said = warnings(caplog)
    assert sum("the connection was lost; the job goes on" in one for one in said) == told
    assert sum("connected again after" in one for one in said) == told


def test_a_head_that_answers_again_is_waited_for(api: JobsAPI, caplog: pytest.LogCaptureFixture):
    renewed = []
    client = Jobs(api.address, renew=lambda: renewed.append(True))
    api.cuts = [80]
    lines = client.follow("job")
    got = [next(lines)]
    api.fails = 3
    assert [*got, *lines] == api.log.splitlines()
    assert len(renewed) >= 4
    assert len(warnings(caplog)) == 2


def test_every_request_waits_for_the_tunnel(api: JobsAPI):
    """A port that somebody else has taken gets no request, which would have the token."""
    failure: list[ClusterError] = []

    def renew() -> None:
        if failure:
            raise failure[0]

    client = Jobs(api.address, renew=renew)
    lines = client.follow("job")
    failure.append(ClusterError("taken"))
    asked = len(api.headers)
    calls = [client.state, client.stop, client.log, client.follow, lambda job: client.submit(job, "true")]
    for call in calls:
        with pytest.raises(ClusterError, match="taken"):
            call("job")
    with jobs._Tail(client._client, "job", renew) as tail:
        assert list(tail.chunks(until=float("inf"))) == []
    assert tail.error is failure[0]
    assert len(api.headers) == asked
    failure.clear()
    assert list(lines) == api.log.splitlines()


def test_a_head_that_does_not_answer_again_is_an_error(api: JobsAPI, monkeypatch: pytest.MonkeyPatch):
    client = Jobs(api.address)
    api.cuts = [80]
    lines = client.follow("job")
    next(lines)
    api.fails = 10**6
    monkeypatch.setattr(jobs, "_PATIENCE", 0.05)
    with pytest.raises(ClusterError, match="503"):
        list(lines)


def test_a_quiet_log_is_asked_for_again(api: JobsAPI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "_QUIET", 0.05)
    api.quiet = True
    client = Jobs(api.address)
    lines = client.follow("job")
    asked = len(api.headers)
    threading.Timer(0.3, setattr, (api, "quiet", False)).start()
    assert list(lines) == api.log.splitlines()
    assert len(api.headers) > asked + 4


def test_a_job_that_does_not_end_in_time_is_an_error(api: JobsAPI):
    api.quiet = True
    with pytest.raises(ClusterError, match="job job is still RUNNING after 0 s"):
        list(Jobs(api.address).follow("job", timeout=0.05))


def test_an_unknown_job_is_told_at_once(api: JobsAPI):
    client = Jobs(api.address)
    for call in (client.state, client.stop, client.log, lambda job: list(client.follow(job))):
        with pytest.raises(ClusterError, match=r"Job nothing does not exist.*`ray job list`"):
            call("nothing")


def test_a_head_that_never_answers_has_a_deadline(api: JobsAPI, monkeypatch: pytest.MonkeyPatch):
    client = Jobs(api.address)
    go_on = threading.Event()
    monkeypatch.setattr(client._client, "get_job_logs", lambda job: go_on.wait())
    monkeypatch.setattr(jobs, "_PATIENCE", 0.05)
    with pytest.raises(ClusterError, match="no answer within 0 s"):
        client.log("job")
    go_on.set()


@pytest.mark.parametrize(
    ("environment", "file", "told"),
    [
        ({}, None, r"401|Missing authentication token; this machine has no token: "),
        ({"RAY_AUTH_MODE": "disabled"}, TOKEN, "Missing authentication token; this machine has no token"),
        ({"RAY_AUTH_MODE": "token"}, None, r"there is no token at .*\.ray/auth_token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/where"}, None, "there is no token at /no/where"),
        ({"RAY_AUTH_TOKEN": "another"}, None, "Invalid authentication token; the token of this machine is not that"),
        ({}, "another", "Invalid authentication token; the token of this machine is not that"),
        ({"RAY_AUTH_TOKEN": "an\nother"}, None, "RAY_AUTH_TOKEN holds no token"),
        ({}, "an other", r"auth_token holds no token"),
        ({}, "", r"auth_token holds no token"),
    ],
)
def test_a_missing_or_wrong_token_is_told_with_the_remedy(
    environment: dict[str, str],
    file: str | None,
    told: str,
    api: JobsAPI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write_token(tmp_path, file)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=told) as caught:
        Jobs(api.address)
    assert "mode 600" in str(caught.value)
    assert "ray get-auth-token --generate" in str(caught.value)
    for secret in (file, environment.get("RAY_AUTH_TOKEN")):
        assert not secret or secret not in str(caught.value).replace("for another", "")


def write_token(home: Path, text: str | None) -> Path:
    path = home / ".ray" / "auth_token"
    if text is not None:
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o600)
    return path


def test_the_token_of_the_file_is_sent_without_a_mode(
    api: JobsAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    path = write_token(tmp_path, f"{TOKEN}\n")
    assert list(Jobs(api.address).follow("job"))
    assert {one["Authorization"] for one in api.headers} == {f"Bearer {TOKEN}"}
    assert warnings(caplog) == []
    path.chmod(0o640)
    Jobs(api.address)
    assert warnings(caplog) == [f"{path} can be read by others, who can run code in the cluster: chmod 600 {path}"]


def test_the_address_that_is_given_is_used(api: JobsAPI, monkeypatch: pytest.MonkeyPatch):
    """Ray's client prefers these variables to its argument, and would send the token there, or to a proxy."""
    elsewhere = "http://127.0.0.1:9"
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, elsewhere)
    before = dict(os.environ)
    assert list(Jobs(api.address).follow("job")) == api.log.splitlines()
    assert dict(os.environ) == before


def test_a_token_that_others_can_read_on_its_way_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(jobs, "version_at", lambda address, headers: "1")
    monkeypatch.setattr(jobs, "JobSubmissionClient", lambda address, headers: None)
    for address in ("https://head:8265", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
        Jobs(address)
    assert warnings(caplog) == []
    Jobs("http://head:8265")
    assert "the token is sent to http://head:8265 without encryption" in warnings(caplog)[0]


def test_something_else_at_the_address_is_told(api: JobsAPI, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ClusterError, match=r"cannot be reached .*check that the cluster runs"):
        Jobs("http://127.0.0.1:9")
    monkeypatch.setattr(dashboard, "ANSWER", 20)
    with pytest.raises(ClusterError, match="answers with status 404, but not as Ray does"):
        Jobs(f"{api.address}/elsewhere")


@given(
    st.text(alphabet="ab\n", max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_lines_of_a_log_that_is_read_again(text: str, cuts: list[int], size: int, seen: int):
    lines, got = jobs._Lines(min(seen, len(text))), []
    for cut in (*cuts, len(text)):
        lines.restart()
        for start in range(0, len(text[:cut]), size):
            got += lines.added(text[:cut][start : start + size])
    got += lines.rest()
    rest = text[min(seen, len(text)) :]
    assert "\n".join(got) == rest.removesuffix("\n")
