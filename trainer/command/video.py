"""Videos of an evaluation, by Gymnasium's and PettingZoo's own recorders."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from ctypes.util import find_library
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import RecordVideo
from pettingzoo import ParallelEnv
from pettingzoo.utils.wrappers import RecordVideoParallel

from orchestrator.run_dir import RunDirectory
from trainer._redaction import redacted
from trainer.command.evaluation import evaluate
from trainer.command.run import factory_takes
from trainer.command.run_config import RunConfig
from trainer.command.training import report
from trainer.step import StepTrainer
from workers.envs.statistics import layers
from workers.errors import ConfigError, EnvError
from workers.threads import environment_variables

__all__ = ["record"]

_MODE = "rgb_array"
_BACKENDS = ("EGL", "OSMesa")
"""Libraries by which MuJoCo draws without a display, the faster one first."""

_REMEDY = (
    f"for --video, each environment must take render_mode={_MODE!r}, keep it as its attribute render_mode, and return "
    "an RGB picture from render(); a function of env.factory gets it if it has a parameter render_mode"
)


def record(config: RunConfig, directory: RunDirectory, scopes: Sequence[int], *, trust: bool = False) -> Iterator[str]:
    """Evaluate like `evaluate`, and store videos of the first episodes in the run directory.

    The first environment of each scope is recorded, from its reset to the end of its first episode, which counts in the
    results. The frames of all episodes that are recorded are in memory until these end.

    Args:
        config: See `evaluate`.
        directory: See `evaluate`.
        scopes: Indices of the scopes to record; all if there are none.
        trust: See `evaluate`.

    Yields:
        The lines of `report`, and then the place of each video.

    Raises:
        AgentError: See `evaluate`.
        ConfigError: See `evaluate`; or there is no such scope, or the environments take no `render_mode`.
        EnvError: The environments cannot be recorded.
        WorkerError: The environments cannot be rendered.
        OSError: A video cannot be written.
    """
    scopes = _checked(scopes, config)
    with TemporaryDirectory(prefix="lockstep-video-") as folder:
        with environment_variables(_without_display()):
            try:
                results = evaluate(_rendering(config), directory, trust=trust, begin=partial(_attach, scopes, folder))
            except ConfigError as error:
                if "render_mode" in str(error):  # which the environments do not take
                    raise ConfigError(f"{error}; {_REMEDY}") from error
                raise
        yield from report(results, config, directory)
        for scope in scopes:
            for video in Path(folder, str(scope)).iterdir():
                directory.write(f"videos/{video.name}", video.read_bytes())
                yield f"video: {redacted(directory.url)}/videos/{video.name}"


def _checked(scopes: Sequence[int], config: RunConfig) -> Sequence[int]:
    """Return the scopes to record, if videos can be made of them.

    Raises:
        ConfigError: They cannot.
    """
    if find_spec("moviepy") is None:
        raise ConfigError("--video needs 'moviepy', which is not installed; pip install 'lockstep-rl[video]'")
    last = len(config.agents) - 1
    if wrong := [scope for scope in scopes if not 0 <= scope <= last]:
        raise ConfigError(f"--video is given the scope {wrong[0]}; expected numbers from 0 to {last}")
    if not config.evaluation.episodes:
        raise ConfigError("--video records episodes, but evaluation.episodes is 0; --set it to at least 1")
    return list(dict.fromkeys(scopes)) or range(last + 1)


def _rendering(config: RunConfig) -> RunConfig:
    """Return the configuration with environments that give pictures, which only the recorders ask for."""
    env = config.env
    if env.id is not None or "render_mode" in env.kwargs or factory_takes(config, "render_mode"):
        env = dataclasses.replace(env, kwargs=env.kwargs | {"render_mode": _MODE})
    # the recorders write when the environments are closed, if their episodes have not ended
    trainer = dataclasses.replace(config.trainer, headless=True, close_environment_at_exit=True)
    return dataclasses.replace(config, env=env, trainer=trainer)


def _without_display() -> dict[str, str]:
    """Return environment variables by which MuJoCo and pygame draw without a display, unless there is one."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return {}
    values = {"SDL_VIDEODRIVER": "dummy"}
    if backend := next((name for name in _BACKENDS if find_library(name)), None):
        values["MUJOCO_GL"] = backend.lower()
    return {name: value for name, value in values.items() if name not in os.environ}


def _attach(scopes: Sequence[int], folder: str, trainer: StepTrainer[Any]) -> None:
    """Put a recorder around the first environment of each scope."""
    copies: Any = next((layer for layer in layers(trainer.env) if hasattr(layer, "wrap_copy")), None)
    if copies is None:
        *_, inner = layers(trainer.env)
        raise EnvError(
            f"--video records single environments, but {type(inner).__qualname__} steps all rows as one; let "
            "env.factory return a list of single environments, of Gymnasium or PettingZoo, if it is given a render_mode"
        )
    for scope in scopes:
        copies.wrap_copy(trainer.scopes[scope][0], partial(_recorder, scope=scope, folder=folder))


def _recorder(env: Any, *, scope: int, folder: str) -> Any:
    """Return a recorder of the first episode of an environment.

    Raises:
        EnvError: The environment gives no pictures, or is of another kind.
    """
    mode = getattr(env, "render_mode", None)
    if mode in (None, "human", "ansi"):
        raise EnvError(f"the environments have the render_mode {mode!r}; {_REMEDY}")
    kind: Any = RecordVideo if isinstance(env, gymnasium.Env) else RecordVideoParallel
    if kind is RecordVideoParallel and not isinstance(env, ParallelEnv):
        raise EnvError(f"--video cannot record {type(env).__qualname__}; expected a pettingzoo.ParallelEnv or AECEnv")
    env.render = partial(_picture, env.render, env)
    recorder = kind(
        env,
        video_folder=str(Path(folder, str(scope))),
        name_prefix=f"scope_{scope}",
        episode_trigger=lambda episode: episode == 0,
        gc_trigger=None,
    )
    recorder.stop_recording = partial(_write, recorder)
    return recorder


def _write(recorder: Any) -> None:
    """Write the video of a recorder. Its own method would lose the last frame, by rounding, at many lengths.

    Raises:
        EnvError: The pictures are of several sizes.
        OSError: The video cannot be written.
    """
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    frames, recorder.recorded_frames, recorder.recording = recorder.recorded_frames, [], False
    if not frames:  # the first picture failed
        return
    shape, *others = dict.fromkeys(frame.shape for frame in frames)
    if others:
        raise EnvError(f"render() of {recorder.env} gave pictures of shapes {[shape, *others]}; expected one shape")
    path = f"{recorder.video_folder}/{recorder.name_prefix}-episode-0.mp4"
    with FFMPEG_VideoWriter(path, (shape[1], shape[0]), recorder.frames_per_sec) as writer:
        for frame in frames:
            writer.write_frame(frame)


def _picture(render: Callable[[], Any], env: Any) -> Any:
    """Return a picture of an environment, which may draw the next one into the same array, in an even size.

    Of an odd size, videos would have a pixel format that many players refuse.

    Raises:
        EnvError: It cannot be rendered, or gives something else.
    """
    try:
        picture = render()
    except Exception as error:
        message = f"{env} cannot be rendered: {type(error).__name__}: {error}"
        if any("mujoco" in kind.__module__ for kind in type(env.unwrapped).__mro__):
            message += (
                f"; MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}: set it to egl or osmesa, and install that library of "
                "the system (libegl1 or libosmesa6)"
            )
        raise EnvError(message) from error
    if not isinstance(picture, np.ndarray) or picture.shape[2:] != (3,) or picture.dtype != np.uint8:
        given = f"a {type(picture).__qualname__}"
        if isinstance(picture, np.ndarray):
            given = f"an array of shape {picture.shape} and dtype {picture.dtype}"
        raise EnvError(f"render() of {env} gave {given}; expected an RGB picture, an array (height, width, 3) of uint8")
    height, width, _ = picture.shape
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
