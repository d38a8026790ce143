"""Take the pictures of this folder: ``python docs/images/make.py [FOLDER]``.

It trains 1, 2 and 64 simultaneous agents for a minute, and shows the table and the reports of these runs in headless
Chromium. Look at the pictures afterwards; only those that the documentation shows are kept here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from trainer.callbacks.table import RunTable
from trainer.command.report import write_report
from trainer.command.run_reader import RunReader
from trainer.command.watch import view_of

HERE = Path(__file__).parent
PATIENCE = 300.0
SIZES = {"80": (80, 24), "160": (160, 48)}
DARK = "--blink-settings=preferredColorScheme=0"


def main() -> None:
    """Train, and take the pictures."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no pictures: Chromium is not installed; install chromium, or put google-chrome on the PATH")
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {
            "one-agent": train(folder, "one-agent", 1, 32, 2000),
            "two-agents": train(folder, "two-agents", 2, 64, 2000),
            "64-agents": train(folder, "64-agents", 64, 256, 480, output, chromium),
        }
        for name, run in runs.items():
            report(chromium, folder, [run], output / f"report-{name}.png", 1200)
        several = [runs["one-agent"], runs["two-agents"], runs["64-agents"]]
        report(chromium, folder, several, output / "report.png", 1010)
        report(chromium, folder, several, output / "report-dark.png", 1500, DARK)


def train(
    folder: Path, name: str, agents: int, num_envs: int, timesteps: int, output: Path | None = None, chromium: str = ""
) -> Path:
    """Train agents on CartPole-v1, and return the run directory. With `output`, the table is taken during the run."""
    run = folder / name
    agent = f"{{agent: ppo, cfg: {{rollouts: {64 if agents < 64 else 32}, learning_rate: 1e-3}}}}"
    settings = [
        f"env.num_envs={num_envs}",
        f"agents=[{', '.join([agent] * agents)}]",
        f"trainer.timesteps={timesteps}",
        "trainer.disable_progressbar=true",
        f"evaluation.every={timesteps // 6}",
        "evaluation.episodes=2",
        f"logging.directory={run}",
    ]
    config = HERE.parents[1] / "examples" / "cartpole.yaml"
    command = [sys.executable, "-m", "trainer", "train", str(config), "--set", *settings]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while output is not None and time.monotonic() < end and process.poll() is None:
            time.sleep(0.2)
            if (run / "metrics.csv").exists() and (reader := RunReader(str(run))).timestep >= 0.75 * timesteps:
                for size, (width, height) in SIZES.items():
                    table(chromium, reader, output / f"table-{name}-{size}.png", width, height)
                break
        if process.wait(PATIENCE):
            raise SystemExit(f"no pictures: {' '.join(command)} failed")
    return run


def table(chromium: str, reader: RunReader, path: Path, width: int, height: int) -> None:
    """Take the picture of the table of a run in a terminal."""
    console = Console(record=True, width=width, height=height, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(RunTable(view_of(reader)))
    svg = console.export_svg(title="lockstep watch", font_aspect_ratio=0.61)
    page = path.with_suffix(".html")
    page.write_text(f"<style>body {{ margin: 0 }} svg {{ width: 100vw }}</style>{svg}", encoding="utf-8")
    ratio = [float(part) for part in svg.partition('viewBox="0 0 ')[2].partition('"')[0].split()]
    size = 6 * width + 320
    shoot(chromium, page, path, size, round(size * ratio[1] / ratio[0]))
    page.unlink()


def report(chromium: str, folder: Path, runs: list[Path], path: Path, height: int, *options: str) -> None:
    """Take the picture of the report of some runs."""
    output = folder / f"report-{path.stem}"
    list(write_report([str(run) for run in runs], str(output)))
    shoot(chromium, output / "report.html", path, 1100, height, *options)


def shoot(chromium: str, page: Path, path: Path, width: int, height: int, *options: str) -> None:
    """Take the picture of a page, with few colours."""
    flags: list[Any] = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    size = [f"--window-size={width},{height}", f"--screenshot={path}"]
    subprocess.run([chromium, *flags, *size, page.as_uri()], check=True, capture_output=True, timeout=PATIENCE)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
