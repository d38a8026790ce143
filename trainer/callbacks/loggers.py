"""Loggers of W&B, MLflow and trackio: callbacks that log metrics through these libraries."""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from trainer._redaction import redacted
from trainer.callbacks.loop import Callback, Loop
from trainer.evaluation import Evaluated
from workers.errors import ConfigError

__all__ = ["Logger", "MlflowLogger", "TrackioLogger", "WandbLogger"]

_logger = logging.getLogger("lockstep")

Kind = Literal["training", "evaluation"]
Ending = Literal["finished", "failed", "killed"]

_PAUSE = 10.0
"""After a failed call, how many times as long as it took no other call is made: an outage costs a tenth of the time."""


class Logger(Callback):
    """Base of the loggers.

    Metrics are named ``scope_0/Loss / Policy loss``: the simultaneous agent, and the tag of
    `StepTrainer.collect_metrics` or `Evaluation.scalars`. Their step is the number of timesteps that were done; the
    results of an evaluation have the timestep of its agents, even if they come late.

    A resumed loop goes on with the same run of the library, and does not log again what that run has already. A library
    that fails during training does not end it: the logger says so once, keeps what it could not log, and tries again.
    At the end, the library's run is finished, failed (after an error) or killed (after Ctrl-C, or if the loop was left
    early; `Loop.stop` ends it as finished).

    A subclass defines `library`, `_open`, `_write` and `_close`.

    Attributes:
        library: Name of the module, and of the extra that installs it.
        run_id: What the library knows its run by; None before the start.
    """

    library: ClassVar[str]

    def __init__(self, *, config: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Take what is needed; the library is not imported yet.

        Args:
            config: Plain data to store as the run's configuration. What looks like a secret in it is stored as ``***``.
            options: Keyword arguments of the library's function that starts a run.

        Raises:
            ConfigError: The library is not installed.
        """
        if importlib.util.find_spec(self.library) is None:
            raise ConfigError(
                f"{type(self).__name__} needs {self.library}, which is not installed; "
                f"run pip install 'lockstep-rl[{self.library}]'"
            )
        self.run_id: str | None = None
        self._config, self._options = redacted(config or {}), options
        self._last: dict[Kind, int] = {"training": 0, "evaluation": -1}  # agents may be evaluated before they train
        self._waiting: list[tuple[Kind, int, dict[str, float]]] = []
        self._next_try = 0.0
        self._is_open = self._has_failed = False

    def on_start(self, loop: Loop) -> None:
        """Start a run of the library, or go on with that of the checkpoint.

        Raises:
            ConfigError: The library cannot.
        """
        try:
            logged = self._open()
        except Exception as error:
            raise ConfigError(f"{type(self).__name__} cannot start: {error}") from error
        self._is_open = True
        self._last |= {kind: int(timestep) for kind in self._last if (timestep := logged.get(_mark(kind))) is not None}

    def on_step(self, loop: Loop) -> None:
        """Log the scalars of this step, if there are any."""
        self._log("training", loop.timestep, loop.scalars)

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Log the results."""
        self._log("evaluation", evaluation.timestep, [result.scalars for result in evaluation.results])

    def on_end(self, loop: Loop) -> None:
        """Log what is left, and end the library's run."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            if _ending(loop) == "finished" and not loop.stop_reason:
                # otherwise the loop may be resumed, and then the scalars of this interval come as a whole
                self._log("training", loop.timestep, loop.rest())
        finally:
            self._send()
            if self._waiting:
                _logger.error("%s could not log %d points", type(self).__name__, len(self._waiting))
            try:
                self._close(_ending(loop))
            except Exception as error:
                _logger.error("%s could not end its run: %s", type(self).__name__, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the library's run."""
        return {} if self.run_id is None else {"run_id": self.run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the library's run of a state."""
        self.run_id = state["run_id"]

    def _open(self) -> Mapping[str, Any]:
        """Start a run and set `run_id`, or go on with the run `run_id`.

        Returns:
            The last timestep of each kind that is logged, by `_mark`, as far as the library knows.
        """
        raise NotImplementedError

    def _write(self, metrics: Mapping[str, float], timestep: int, mark: str) -> None:
        """Log metrics, and `timestep` under the name `mark`."""
        raise NotImplementedError

    def _close(self, ending: Ending) -> None:
        """End the run."""
        raise NotImplementedError

    def _log(self, kind: Kind, timestep: int, scopes: Sequence[Mapping[str, float]]) -> None:
        metrics = {
            f"scope_{scope}/{tag}": float(value) for scope, one in enumerate(scopes) for tag, value in one.items()
        }
        if metrics and timestep > self._last[kind]:
            self._last[kind] = timestep
            self._waiting.append((kind, timestep, metrics))
            if time.perf_counter() >= self._next_try:
                self._send()

    def _send(self) -> None:
        """Log what is waiting. An error is told once."""
        began = time.perf_counter()
        try:
            while self._waiting:
                kind, timestep, metrics = self._waiting[0]
                self._write(metrics, timestep, _mark(kind))
                del self._waiting[0]
        except Exception as error:
            now = time.perf_counter()
            self._next_try = now + _PAUSE * (now - began)
            if not self._has_failed:
                _logger.warning("%s failed and will try again; training continues: %s", type(self).__name__, error)
            self._has_failed = True


class WandbLogger(Logger):
    """Logger of Weights & Biases, with ``timestep`` as the axis of all charts.

    In its offline mode, W&B cannot tell what has been logged: after a kill, what came after the last checkpoint is
    there twice.

    Example::

        WandbLogger(project="mine", name="baseline", config={"learning_rate": 1e-3})

    Options are keyword arguments of ``wandb.init``.
    """

    library = "wandb"

    def _open(self) -> Mapping[str, Any]:
        import wandb

        resumed = {} if self.run_id is None else {"id": self.run_id, "resume": "allow"}
        self._run = wandb.init(config=self._config, **self._options | resumed)
        self.run_id = self._run.id
        self._run.define_metric("timestep", hidden=True)
        self._run.define_metric("*", step_metric="timestep")  # W&B's own steps may not decrease
        return dict(self._run.summary) if resumed else {}

    def _write(self, metrics: Mapping[str, float], timestep: int, mark: str) -> None:
        self._run.log({**metrics, "timestep": timestep})
        self._run.summary[mark] = timestep

    def _close(self, ending: Ending) -> None:
        self._run.finish(exit_code={"finished": 0, "failed": 1, "killed": 255}[ending])  # 255 is W&B's own for Ctrl-C


class MlflowLogger(Logger):
    """Logger of MLflow.

    MLflow allows few characters in names: of ``Return (mean)``, ``Return mean`` is left, and others become ``_``. The
    small package of the extra can log to a server; a local database needs ``pip install mlflow``.
    MLflow tries for four minutes to reach a server, unless ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` is set to less than 7.

    Example::

        MlflowLogger(experiment="mine", tracking_uri="http://127.0.0.1:5000", run_name="baseline")

    Other options are keyword arguments of ``mlflow.start_run``.
    """

    library = "mlflow"

    def __init__(self, *, experiment: str | None = None, tracking_uri: str | None = None, **options: Any) -> None:
        """Take what is needed.

        Args:
            experiment: Name of the experiment; it is created if it does not exist. None: MLflow's default.
            tracking_uri: Where MLflow stores. None: as MLflow's environment variables say.
            options: See `Logger`.

        Raises:
            ConfigError: The library is not installed.
        """
        super().__init__(**options)
        self._experiment, self._tracking_uri = experiment, tracking_uri

    def _open(self) -> Mapping[str, Any]:
        import mlflow

        if self._tracking_uri is not None:
            mlflow.set_tracking_uri(self._tracking_uri)
        if self._experiment is not None:
            mlflow.set_experiment(self._experiment)
        if self.run_id is not None:
            tags: Mapping[str, str] = mlflow.start_run(**self._options | {"run_id": self.run_id}).data.tags
            return tags
        self.run_id = mlflow.start_run(**self._options).info.run_id
        try:
            mlflow.log_params({_allowed(key): value for key, value in _flat(self._config)})
        except BaseException:
            mlflow.end_run("FAILED")
            raise
        return {}

    def _write(self, metrics: Mapping[str, float], timestep: int, mark: str) -> None:
        import mlflow
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        points = [Metric(_allowed(name), value, now, timestep) for name, value in metrics.items()]
        mlflow.MlflowClient().log_batch(self.run_id, points, tags=[RunTag(mark, str(timestep))])

    def _close(self, ending: Ending) -> None:
        import mlflow

        mlflow.end_run(ending.upper())


class TrackioLogger(Logger):
    """Logger of trackio, on this machine, or in a Space or on a server of its own.

    It looks on this machine for what has been logged: in a Space or on a server, after a kill, what came after the last
    checkpoint is there twice. Trackio does not record how a run ended.

    Example::

        TrackioLogger(project="mine", name="baseline", config={"learning_rate": 1e-3})

    Options are keyword arguments of ``trackio.init``; `project` is required.
    """

    library = "trackio"

    def _open(self) -> Mapping[str, Any]:
        import trackio

        resumed = {} if self.run_id is None else {"name": self.run_id, "resume": "allow"}
        self._run = trackio.init(config=self._config, **self._options | resumed)
        self.run_id = self._run.name
        logged: dict[str, Any] = {}
        if resumed:
            for point in trackio.SQLiteStorage.get_logs(self._run.project, run_id=self._run.id):
                logged |= point
        return logged

    def _write(self, metrics: Mapping[str, float], timestep: int, mark: str) -> None:
        self._run.log({**metrics, mark: timestep}, step=timestep)

    def _close(self, ending: Ending) -> None:
        import trackio

        trackio.finish()


def _mark(kind: Kind) -> str:
    return f"lockstep/{kind}"


def _ending(loop: Loop) -> Ending:
    if loop.error is not None:
        return "killed" if isinstance(loop.error, (KeyboardInterrupt, SystemExit)) else "failed"
    return "finished" if loop.is_over else "killed"


def _allowed(name: str) -> str:
    """Return a name that MLflow allows, which may not look like another path, either."""
    parts = re.sub(r"[^\w\-. :/]", "_", re.sub(r"[()]", "", name)).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250].rstrip("/")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the scalars of plain data with their keys, such as ``agents.0.cfg.rollouts``."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _flat(item, f"{key}.{name}" if key else str(name))
    if not isinstance(value, (Mapping, list)):
        yield key, value
