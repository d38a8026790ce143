"""W&B, MLflow and trackio themselves, without a network, each in a process of its own.

W&B is in its offline mode, trackio has a local folder, and MLflow stores files: its small package has no database.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import python

QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
}

RUN = """
import json
from types import SimpleNamespace
from trainer import callbacks
from trainer.evaluation import Evaluated, Evaluation


def train(logger, timesteps, error=None):
    rest = [{"Loss / Policy loss": 99.0}]
    loop = SimpleNamespace(timestep=0, timesteps=9, scalars=[], stop_reason="", error=error, rest=lambda: rest)
    logger.on_start(loop)
    for loop.timestep in timesteps:
        loop.scalars = [{"Episode / Return (mean)": float(loop.timestep + 100 * scope)} for scope in range(2)]
        logger.on_step(loop)
        if loop.timestep == 4:
            logger.on_evaluation(loop, Evaluated(3, [Evaluation([7.0], [5]), Evaluation()], known_by=4))
    loop.is_over = loop.timestep == loop.timesteps
    logger.on_end(loop)
    return logger.state_dict()


def run(kind, **options):
    state = train(kind(config={"a": [{"api_key": "hunter22"}], "seed": 3}, **options), [2, 4], KeyboardInterrupt())
    ended = look(state)
    resumed = kind(**options)
    resumed.load_state_dict(state)
    assert train(resumed, [2, 4, 6, 9]) == state
    print(json.dumps([ended, look(state)]))
"""

MLFLOW = """
import mlflow
from trainer.callbacks.loggers import _allowed

for name in ["Info / ../x", "/a//b/", "./é, [%]", "x" * 249 + "/y", ".. / .", "Return (mean)"]:
    mlflow.utils.validation._validate_metric_name(_allowed(f"scope_0/{name}"))


def look(state):
    client = mlflow.MlflowClient()
    run = client.get_run(state["run_id"])
    history = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return [run.info.status, run.data.params, history]


run(callbacks.MlflowLogger, experiment="mine", tracking_uri="store", run_name="first")
assert not mlflow.active_run()
"""

TRACKIO = """
import trackio


def look(state):
    points = trackio.SQLiteStorage.get_logs("mine", run=state["run_id"])
    names = {name for point in points for name in point if name.startswith("scope")}
    history = {name: [(point["step"], point[name]) for point in points if name in point] for name in names}
    config = trackio.SQLiteStorage.get_run_config("mine", state["run_id"])
    return ["", config, history]


run(callbacks.TrackioLogger, project="mine")
assert len(trackio.Api().runs("mine")) == 1
"""

WANDB = """
import wandb

seen = []


class Looking(callbacks.WandbLogger):
    def _close(self, ending):
        seen.append([dict(self._run.summary), self._run.step, dict(self._run.config)])
        super()._close(ending)


def look(state):
    return seen[-1]


run(Looking, project="mine")
"""


def printed(program: str, folder: Path) -> Any:
    done = python("-W", "error", "-c", RUN + program, cwd=folder, env={**QUIET, "TRACKIO_DIR": str(folder / "trackio")})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["mlflow", "trackio"])
def test_a_run_is_killed_and_resumed(kind: str, tmp_path: Path):
    (killed, params, before), (finished, _, after) = printed({"mlflow": MLFLOW, "trackio": TRACKIO}[kind], tmp_path)
    mean = "mean" if kind == "mlflow" else "(mean)"
    returns, evaluated = f"Episode / Return {mean}", f"scope_0/Evaluation / Return {mean}"
    assert before[f"scope_0/{returns}"] == [[2, 2.0], [4, 4.0]]
    assert after[f"scope_0/{returns}"] == [[2, 2.0], [4, 4.0], [6, 6.0], [9, 9.0]]
    assert after[f"scope_1/{returns}"] == [[2, 102.0], [4, 104.0], [6, 106.0], [9, 109.0]]
    assert before[evaluated] == after[evaluated] == [[3, 7.0]]
    assert not any("Loss" in name for name in after)  # at 9 there is a point already
    if kind == "mlflow":
        assert (killed, finished) == ("KILLED", "FINISHED")
        assert params == {"a.0.api_key": "***", "seed": "3"}
    else:
        assert (params["a"], params["seed"]) == ([{"api_key": "***"}], 3)


def test_wandb_offline(tmp_path: Path):
    (summary, steps, config), (after, _, _) = printed(WANDB, tmp_path)
    evaluation = {f"scope_0/Evaluation / Return ({of})": 7.0 for of in ("mean", "min", "max")}
    assert {name: value for name, value in summary.items() if not name.startswith("_")} == {
        "scope_0/Episode / Return (mean)": 4.0,
        "scope_1/Episode / Return (mean)": 104.0,
        **evaluation,
        "scope_0/Evaluation / Length (mean)": 5.0,
        "timestep": 3,
        "lockstep/training": 4,
        "lockstep/evaluation": 3,
    }
    assert (steps, config) == (3, {"a": [{"api_key": "***"}], "seed": 3})
    assert after["timestep"] == 9
    stored = [path.stem for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(stored) == 2
    assert len({*stored}) == 1  # the id of the run
