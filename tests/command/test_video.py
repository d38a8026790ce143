"""Videos of evaluations: of the very episodes that count, with nothing else changed; and clear refusals."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from gymnasium.envs.classic_control import CartPoleEnv
from imageio_ffmpeg import get_ffmpeg_exe

from tests.support.processes import ROOT
from tests.support.rendered import PLAYERS, Pictured, PicturedTeam
from tests.support.schedule import full_or_short
from trainer.command import video
from trainer.command.run_config import RunConfig, load_config
from workers.errors import EnvError

ENVS = "tests.support.rendered"
PPO = {"rollouts": 4, "mini_batches": 1, "learning_epochs": 1}


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)


def trained(command: Any, tmp_path: Path, env: dict[str, Any], *agents: dict[str, Any], **trainer: Any) -> Path:
    """Return the run directory of a short run, evaluated with two episodes for each agent."""
    config = {
        "env": env,
        "agents": [{"cfg": PPO} | agent for agent in agents],
        "trainer": {"timesteps": 4, "headless": True, "disable_progressbar": True} | trainer,
        "logging": {"directory": str(tmp_path / "run")},
        "evaluation": {"episodes": 2},
        "checkpoint": {"keep_last": 0},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, _, messages = command.run("train", path)
    assert code == 0, messages
    return tmp_path / "run"


def lengths(run: Path, scope: int) -> list[int]:
    found: list[int] = yaml.safe_load((run / "evaluation.json").read_text(encoding="utf-8"))[scope]["lengths"]
    return found


def digests(run: Path) -> dict[str, str]:
    """Return the digests of all files but videos."""
    files = [path for path in run.rglob("*") if path.is_file() and path.parent.name != "videos"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def frames_of(run: Path, scope: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the frames of a video, ``(frames, height, width, 3)``."""
    video = run / "videos" / f"scope_{scope}-episode-0.mp4"
    arguments = ["-v", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run([get_ffmpeg_exe(), *arguments], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def bands(run: Path, scope: int) -> list[list[int]]:
    """Return what each frame says; see `Pictured`."""
    frames = frames_of(run, scope, 48, 64)
    return [[round(float(frame[top : top + 12].mean()) / 20) for top in (2, 18, 34)] for frame in frames]


@pytest.mark.parametrize("kind", [Pictured, PicturedTeam])
@pytest.mark.parametrize(("rate", "steps"), [(5, 7), (20, 10), (50, 11), (60, 5)])
def test_no_frame_is_lost_at_lengths_that_rounding_would_cut(kind: Any, rate: int, steps: int, tmp_path: Path):
    assert int(sum([1 / rate] * (steps + 1)) * rate) == steps  # as moviepy counts the frames of a clip
    env = kind(length=steps, render_mode="rgb_array")
    env.metadata = env.metadata | {"render_fps": rate}
    recorder = video._recorder(env, scope=0, folder=str(tmp_path))
    recorder.reset()
    for _ in range(steps):
        recorder.step(dict.fromkeys(PLAYERS, 0) if kind is PicturedTeam else 0)
    recorder.close()
    (tmp_path / "videos").symlink_to(tmp_path / "0")
    assert bands(tmp_path, 0) == [[0, 0, step] for step in range(steps + 1)]


def recorded(folder: Path, *pictures: npt.NDArray[Any]) -> str:
    """Record an episode with these pictures; return what ffmpeg says of the video."""
    env = Pictured(length=9, render_mode="rgb_array")
    recorder = video._recorder(env, scope=0, folder=str(folder))
    for number, picture in enumerate(pictures):
        env.image = picture
        recorder.step(0) if number else recorder.reset()
    recorder.close()
    name = folder / "0" / "scope_0-episode-0.mp4"
    return subprocess.run([get_ffmpeg_exe(), "-i", str(name)], capture_output=True, text=True).stderr


def test_a_picture_of_an_odd_size_is_padded_so_that_every_player_takes_it(tmp_path: Path):
    assert "yuv420p(progressive), 102x100," in recorded(tmp_path, np.zeros((99, 101, 3), np.uint8))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (
            [np.zeros((48, 64))],
            r"gave an array of shape \(48, 64\) and dtype float64; expected an RGB picture, an array",
        ),
        ([np.zeros((48, 64, 3))], r"gave an array of shape \(48, 64, 3\) and dtype float64; expected an RGB picture"),
        ([np.zeros((48, 64, 4), np.uint8)], r"gave an array of shape \(48, 64, 4\) and dtype uint8; expected an RGB"),
        (
            [np.zeros((48, 64, 3), np.uint8), np.zeros((50, 64, 3), np.uint8)],
            r"gave pictures of shapes \[\(48, 64, 3\), \(50, 64, 3\)\]; expected one shape",
        ),
    ],
)
def test_pictures_that_are_refused(pictures: list[npt.NDArray[Any]], message: str, tmp_path: Path):
    with pytest.raises(EnvError, match=message):
        recorded(tmp_path, *pictures)


@pytest.mark.parametrize(("kind", "agent"), [("Pictured", "ppo"), ("PicturedTeam", "ippo")])
def test_the_episodes_that_count_are_recorded(kind: str, agent: str, command, tmp_path):
    env = {"factory": f"{ENVS}:build", "num_envs": 5, "kwargs": {"kind": kind}}
    run = trained(command, tmp_path, env, {"agent": agent, "scope": 2}, {"agent": agent, "scope": 3})
    code, lines, _ = command.run("eval", run)
    assert code == 0
    before = digests(run)
    code, told, messages = command.run("eval", run, "--video")
    assert (code, messages) == (0, "")
    names = [f"{run}/videos/scope_{scope}-episode-0.mp4" for scope in (0, 1)]
    assert told == [*lines, *(f"video: {name}" for name in names)]
    assert digests(run) == before
    for scope, row, length in ((0, 0, 4), (1, 2, 6)):
        assert bands(run, scope) == [[row, 0, step] for step in range(length + 1)]
    for name in names:
        Path(name).unlink()
    code, told, _ = command.run("eval", run, "--set", "evaluation.max_timesteps=3", "--video", "1")
    assert (code, told[2:]) == (0, [f"video: {names[1]}"])
    assert not Path(names[0]).exists()
    assert bands(run, 1) == [[2, 0, step] for step in range(4)]  # of an episode that has not ended


def test_cartpole_that_would_have_windows_and_stay_open(command, tmp_path):
    env = {"id": "CartPole-v1", "num_envs": 2, "kwargs": {"max_episode_steps": 9}}
    run = trained(command, tmp_path, env, {}, headless=False, close_environment_at_exit=False)
    for timesteps, frames in ((100, lengths(run, 0)[0] + 1), (5, 6)):
        changes = [f"evaluation.max_timesteps={timesteps}", "env.kwargs.render_mode=human"]
        with patch.object(CartPoleEnv, "render", autospec=True, side_effect=CartPoleEnv.render) as render:
            assert command.run("eval", run, "--set", *changes, "--video")[0] == 0
        shown = frames_of(run, 0, 400, 600)
        assert len(shown) == render.call_count == frames
        assert np.abs(shown[-1].astype(int) - shown[0]).max() > 50
    assert not {"MUJOCO_GL", "SDL_VIDEODRIVER"} & set(os.environ)


TEAMS = [
    ("classic/tictactoe_v3", {"screen_height": 100}, (100, 100)),
    ("mpe2.simple_spread_v3", {"max_cycles": 6}, (700, 700)),
    ("butterfly/knights_archers_zombies_v11", {"max_cycles": 20}, (720, 1280)),
]


@pytest.mark.parametrize(("id", "kwargs", "size"), full_or_short(TEAMS, TEAMS[:1]))
def test_games_and_modules_of_pettingzoo(id: str, kwargs: dict[str, Any], size: tuple[int, int], command, tmp_path):
    run = trained(command, tmp_path, {"id": id, "num_envs": 2, "kwargs": kwargs}, {"agent": "ippo"})
    _, lines, _ = command.run("eval", run)
    code, told, messages = command.run("eval", run, "--video")
    assert (code, told[:-1], messages) == (0, lines, "")
    frames = frames_of(run, 0, *size)
    assert len(frames) == lengths(run, 0)[0] + 1
    assert (frames[0] != frames[-1]).any()


def test_mujoco_without_a_display(command, tmp_path, monkeypatch):
    with monkeypatch.context() as here:
        for name, value in video._without_display().items():
            here.setenv(name, value)
        try:
            env = gymnasium.make("Hopper-v5", render_mode="rgb_array")
            env.reset()
            env.render()
            env.close()
        except Exception as error:
            pytest.skip(f"MuJoCo cannot draw on this machine: {error}")
    env_config = {"id": "Hopper-v5", "num_envs": 1, "kwargs": {"max_episode_steps": 20, "width": 64, "height": 64}}
    run = trained(command, tmp_path, env_config, {})
    _, lines, _ = command.run("eval", run)
    code, told, messages = command.run("eval", run, "--video")
    assert (code, told[:-1], messages) == (0, lines, "")
    frames = frames_of(run, 0, 64, 64)
    assert len(frames) == lengths(run, 0)[0] + 1
    assert frames[0].std() > 20
    assert (frames[0] != frames[-1]).any()


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes:UserWarning")
def test_environments_that_cannot_be_recorded(command, tmp_path):
    run = trained(command, tmp_path, {"id": f"{ENVS}:Pictured-v0", "num_envs": 2}, {})
    takes = "for --video, each environment must take render_mode='rgb_array'"
    for change, message in {
        f"env.id={ENVS}:Plain-v0": takes,
        f"env={{factory: '{ENVS}:build_blind', num_envs: 2}}": f"the environments have the render_mode None; {takes}",
        f"env={{factory: '{ENVS}:build_as_one', num_envs: 2}}": "--video records single environments, but AsOne steps",
    }.items():
        code, lines, messages = command.run("eval", run, "--video", "--set", change)
        assert (code, lines) == (2, []), messages
        assert message in messages
    change = f"env={{factory: '{ENVS}:build', num_envs: 2, kwargs: {{kind: Pictureless}}}}"
    code, lines, messages = command.run("eval", run, "--video", "--set", change)
    assert (code, lines) == (1, [])
    assert "scope 0 (environment 0), phase reset, timestep 0" in messages.splitlines()[-1]
    assert "gave a NoneType; expected an RGB picture" in messages
    assert not (run / "videos").exists()


def test_what_is_refused_before_anything_is_built(monkeypatch, command):
    config = load_config("{env: {id: CartPole-v1}, agents: [{}, {}]}")

    def refused(config: RunConfig, *scopes: int) -> str:
        with pytest.raises(video.ConfigError) as caught:
            next(video.record(config, None, scopes))  # type: ignore[arg-type]
        return str(caught.value)

    assert refused(config, 1, 2) == "--video is given the scope 2; expected numbers from 0 to 1"
    config.evaluation.episodes = 0
    assert "evaluation.episodes is 0" in refused(config)
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert "pip install 'lockstep-rl[video]'" in refused(config)
    with pytest.raises(SystemExit):
        command.run("eval", "--video", "runs/mine")


@pytest.mark.parametrize(
    ("found", "variables", "wanted"),
    [
        (["EGL", "OSMesa"], {}, {"MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy"}),
        (["OSMesa"], {}, {"MUJOCO_GL": "osmesa", "SDL_VIDEODRIVER": "dummy"}),
        ([], {}, {"SDL_VIDEODRIVER": "dummy"}),
        (["EGL"], {"MUJOCO_GL": "osmesa"}, {"SDL_VIDEODRIVER": "dummy"}),
        (["EGL"], {"DISPLAY": ":0"}, {}),
        (["EGL"], {"WAYLAND_DISPLAY": "wayland-0"}, {}),
    ],
)
def test_how_pictures_are_drawn_without_a_display(found, variables, wanted, monkeypatch):
    monkeypatch.setattr(video, "find_library", lambda name: name if name in found else None)
    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert video._without_display() == wanted
    monkeypatch.setattr(sys, "platform", "darwin")
    assert video._without_display() == {}
