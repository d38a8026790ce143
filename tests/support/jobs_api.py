"""A stand-in for the Jobs API of a Ray dashboard, with faults: Ray's own client speaks to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from aiohttp import WSCloseCode, web

from tests.support.processes import PATIENCE

__all__ = ["TOKEN", "JobsAPI", "jobs_api"]

TOKEN = "token-of-the-cluster"


class JobsAPI:
    """State and faults of the stand-in.

    Attributes:
        address: Where it listens.
        log: Log of every job.
        status: Status of every job, once its whole log has been sent.
        exit_code: Exit code of every job.
        cuts: Numbers of characters after which the next connections to the log break; -1: end as if complete.
        quiet: Whether the connections to the log say nothing.
        fails: Number of questions for the state of a job that fail.
        at_end: Called when a log has been sent, before the job ends.
        submitted: What was submitted, by job.
        stopped: The jobs that were stopped.
        headers: Headers of all requests.
        packages: Sizes of what was uploaded.
        largest: Most bytes that it takes.
    """

    def __init__(self) -> None:
        self.address = ""
        self.log = "Running entrypoint for job x: lockstep train --set token=hunter2\nfirst line\nsecond line\n"
        self.status, self.message = "SUCCEEDED", "Job finished successfully."
        self.exit_code: int | None = 0
        self.cuts: list[int] = []
        self.quiet = False
        self.fails = 0
        self.at_end: Callable[[], object] = lambda: None
        self.submitted: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.ended: set[str] = set()
        self.headers: list[Any] = []
        self.packages: dict[str, int] = {}
        self.largest = 10**6

    def routes(self) -> list[web.RouteDef]:
        """All that Ray's client asks for."""
        return [
            web.get("/api/version", self._version),
            web.get("/api/packages/{protocol}/{name}", self._package),
            web.put("/api/packages/{protocol}/{name}", self._upload),
            web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/{job}", self._state),
            web.post("/api/jobs/{job}/stop", self._stop),
            web.get("/api/jobs/{job}/logs", self._logs),
            web.get("/api/jobs/{job}/logs/tail", self._tail),
        ]

    @web.middleware
    async def check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse requests as Ray does."""
        self.headers.append(dict(request.headers))
        if "Authorization" not in request.headers:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        if (job := request.match_info.get("job")) and job not in self.submitted:
            return web.Response(status=404, text=f"Job {job} does not exist")
        reply: web.StreamResponse = await handler(request)
        return reply

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _upload(self, request: web.Request) -> web.Response:
        size = len(await request.read())
        if size > self.largest:
            return web.Response(status=413, text=f"Maximum request body size {self.largest} exceeded.")
        self.packages[request.match_info["name"]] = size
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        self.submitted[job["submission_id"]] = job
        return web.json_response({"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    async def _state(self, request: web.Request) -> web.Response:
        if self.fails:
            self.fails -= 1
            return web.Response(status=503, text="starting")
        job = self.submitted[request.match_info["job"]]
        ended = job["submission_id"] in self.ended
        state = {
            "type": "SUBMISSION",
            "submission_id": job["submission_id"],
            "entrypoint": job["entrypoint"],
            "status": self.status if ended else "RUNNING",
            "message": self.message if ended else "Job is currently running.",
            "driver_exit_code": self.exit_code if ended else None,
            "metadata": job["metadata"],
        }
        return web.json_response(state)

    async def _stop(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        self.stopped.append(job)
        if running := job not in self.ended:
            self.status, self.message, self.exit_code = "STOPPED", "Job was intentionally stopped.", None
            self.log += "stored\n"
        return web.json_response({"stopped": running})

    async def _logs(self, _: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        reply = web.WebSocketResponse()
        await reply.prepare(request)
        cut = self.cuts.pop(0) if self.cuts else None
        if cut == -1:
            await reply.close()
            return reply
        if self.quiet:
            await asyncio.wait_for(reply.receive(), PATIENCE)  # until the client leaves
            return reply
        for start in range(0, len(self.log[:cut]), 7):
            await reply.send_str(self.log[:cut][start : start + 7])
        if cut is not None:
            assert request.transport is not None
            request.transport.close()
            return reply
        await asyncio.get_running_loop().run_in_executor(None, self.at_end)
        self.ended.add(request.match_info["job"])
        await reply.close(code=WSCloseCode.OK)
        return reply


@contextmanager
def jobs_api() -> Iterator[JobsAPI]:
    """Serve the stand-in from a thread."""
    api, ready = JobsAPI(), threading.Event()
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        app = web.Application(middlewares=[api.check], client_max_size=10**9)
        app.add_routes(api.routes())
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        api.address = f"http://{host}:{port}"
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        ready.set()
        await end.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield api
    finally:
        ends[0]()
        thread.join(PATIENCE)
        assert not thread.is_alive()
