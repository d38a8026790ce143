"""Imports only go downwards, and nothing is imported before it is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.imports import PACKAGES, ROOMS, circle, modules, violations
from tests.support.processes import ROOT, python
from tests.support.schedule import FRAMEWORKS


def sources(*roots: str) -> dict[str, str]:
    """Return the source of every module by its name."""
    return {name: path.read_text(encoding="utf-8") for name, path in modules(*(ROOT / root for root in roots))}


def test_directions():
    found = dict(modules(*(ROOT / package for package in PACKAGES)))
    assert {"trainer.step", "orchestrator.ray.session", "workers.frameworks"} <= set(found)
    assert {f"workers.agents.{name}.ppo" for name in FRAMEWORKS} <= set(found)
    wrong = [
        violation
        for name, path in found.items()
        for violation in violations(path.read_text(encoding="utf-8"), name, is_package=path.name == "__init__.py")
    ]
    assert wrong == []


def test_every_room_is_there():
    found = {name for name, _ in modules(*(ROOT / package for package in PACKAGES))}
    assert [room for rooms in ROOMS for room in rooms if room not in found] == []


ALLOWED = [
    ("trainer.step", "from orchestrator.base import Plan\nfrom workers.errors import AgentError\nimport tqdm"),
    ("trainer.torch", "import torch"),
    ("trainer.checks", "from orchestrator.ray import RayOrchestrator"),
    ("trainer.command.run", "from trainer.step import StepTrainer"),
    ("trainer.command.cli", "from trainer.policies import load_agent"),
    ("trainer.policies", "from trainer.command.run import prepare"),
    ("workers.frameworks.jax", "import jax.numpy as jnp\nimport jaxlib"),
    ("workers.agents.jax.networks", "from flax import nnx\nimport optax"),
    ("workers.agents.warp", "import warp as wp\nimport warp_nn"),
    ("workers.agents.base", "from workers.storage.state_file import encode_state"),
    ("workers.remote.actor", "import ray\nfrom ray import cloudpickle"),
    ("workers.scope.checks", "from workers.members import missing_members"),
    ("workers.infos", "from workers.by_agent import map_arrays"),
    ("orchestrator.ray.session", "import ray\nfrom workers.remote.wire import Packed"),
    ("orchestrator.scopes", "from workers.seeding import agent_seed\nfrom . import merge"),
    ("workers.envs.base", "from ..types import Array\nimport numpy as np"),
]

FORBIDDEN = [
    ("workers.remote.service", "import orchestrator.base", "orchestrator.base"),
    ("workers.remote.service", "from trainer import config", "trainer.config"),
    ("orchestrator.local", "from trainer.config import StepTrainerCfg", "trainer.config.StepTrainerCfg"),
    ("orchestrator.local", "from orchestrator.ray.session import RaySession", "orchestrator.ray.session.RaySession"),
    ("trainer.step", "from trainer.command import cli", "trainer.command.cli"),
    ("trainer", "from trainer.command.run import run", "trainer.command.run.run"),
    ("trainer.command.run", "from trainer.policies import load_agent", "trainer.policies.load_agent"),
    ("trainer.policies", "from trainer.command import cli", "trainer.command.cli"),
    ("workers.scope.worker", "from workers.remote.wire import to_wire", "workers.remote.wire.to_wire"),
    ("workers.agents.base", "from workers.scope.tracking import ScalarWriter", "workers.scope.tracking.ScalarWriter"),
    ("workers.agents.base", "from workers.envs import make_env", "workers.envs.make_env"),
    ("workers.envs.making", "import workers.agents.ppo", "workers.agents.ppo"),
    ("workers.storage.export", "from workers.agents.base import Learner", "workers.agents.base.Learner"),
    ("workers.infos", "from workers.storage import state_file", "workers.storage.state_file"),
    ("workers.frameworks.torch", "from workers.seeding import RandomStream", "workers.seeding.RandomStream"),
    ("workers.types", "from workers.frameworks import Framework", "workers.frameworks.Framework"),
    ("workers.types", "if TYPE_CHECKING:\n    from workers.infos import Infos", "workers.infos.Infos"),
    ("workers.infos", "import torch", "torch"),
    ("workers.infos", "def f():\n    from torch import nn", "torch.nn"),
    ("workers.infos", "if TYPE_CHECKING:\n    import jax.numpy as jnp", "jax.numpy"),
    ("workers.infos", "importlib.import_module('warp')", "warp"),
    ("workers.agents.ppo", "import torch", "torch"),
    ("workers.agents.torch.ppo", "import jax", "jax"),
    ("workers.frameworks.base", "import torch", "torch"),
    ("workers.frameworks.jax", "import torch", "torch"),
    ("trainer.step", "import torch", "torch"),
    ("trainer.jax", "import warp", "warp"),
    ("workers.remote.service", "import ray", "ray"),
    ("workers.scope.worker", "from ray import cloudpickle", "ray.cloudpickle"),
    ("orchestrator.base", "import ray", "ray"),
    ("orchestrator.rayon", "import ray", "ray"),
    ("trainer.step", "import ray", "ray"),
    ("workers.seeding", "try:\n    import skrl\nexcept ImportError:\n    pass", "skrl"),
    ("orchestrator.ray.session", "from skrl.agents.torch import Agent", "skrl.agents.torch.Agent"),
    ("trainer.step", "from tests.support import envs", "tests.support.envs"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_checker_accepts(module: str, source: str):
    assert violations(source, module) == []


@pytest.mark.parametrize(("module", "source", "name"), FORBIDDEN)
def test_checker_rejects(module: str, source: str, name: str):
    assert violations(f"import os\n{source}\n", module) == [f"{module} imports {name}"]


def test_no_circle_of_imports():
    """Imports under TYPE_CHECKING and inside functions count as well."""
    assert circle(sources(*PACKAGES)) == []
    assert circle(sources("tests", "examples")) == []
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.py")}
    assert {"fan_out", "barrier", "lockstep_ppo"} <= set(scripts)
    assert circle(scripts) == []


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("from a.two import f", "from a.one import g"),
        ("import a.two", "if TYPE_CHECKING:\n    from a import one"),
        ("from a.two import f", "def f():\n    from a.one import g"),
    ],
)
def test_a_circle_is_found(first: str, last: str):
    house = {"a": "from a.one import g", "a.one": f"import os\n{first}", "a.two": "from a.three import x"}
    assert circle({**house, "a.three": "x = 1"}) == []
    found = circle({**house, "a.three": last})
    assert found[0] == found[-1]
    assert set(found) == {"a.one", "a.two", "a.three"}


def test_no_file_is_long():
    lines = {name: source.count("\n") for name, source in sources(*PACKAGES, "tests", "examples", "benchmarks").items()}
    assert len(lines) > 150
    assert {name: count for name, count in lines.items() if count > 400} == {}


def run(code: str, *args: str, cwd: Path, path: tuple[Path, ...] = (ROOT,)) -> subprocess.CompletedProcess[str]:
    """Run code in a new process."""
    return python("-W", "error", "-c", code, *args, cwd=cwd, env={"PYTHONPATH": os.pathsep.join(map(str, path))})


RUN = """
import importlib, sys, warnings
# Warp compiles into a temporary folder when its cache is empty, and leaves it to the interpreter's end
warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
from tests.support.agents import RecordingAgent, to_numpy
from tests.support.envs import counting_factory

StepTrainer = importlib.import_module(f"trainer.{sys.argv[1]}").StepTrainer
cfg = {"disable_progressbar": True}
with StepTrainer(env=counting_factory(3), agents=[RecordingAgent] * 2, cfg=cfg, seed=1) as trainer:
    rows = [to_numpy(trainer.train()[0])[:, 0].tolist() for _ in range(5)]
    trainer.eval()
remote = [name for name in sys.modules if name.startswith("workers.remote")]
print(rows[-1], sorted({"jax", "ray", "skrl", "torch", "warp"} & set(sys.modules)), remote)
"""


def test_a_local_run_imports_its_own_framework_and_nothing_remote(framework: str, tmp_path: Path):
    done = run(RUN, framework, cwd=tmp_path)
    # Warp prints its devices, and warns if there is no GPU
    warnings = [line for line in done.stderr.splitlines() if not line.startswith("Warp CUDA warning: ")]
    assert (done.returncode, warnings) == (0, [])
    *said, last = done.stdout.splitlines()
    assert last == f"[0.0, 1.0, 2.0] ['{framework}'] []"
    assert not said or framework == "warp"


@pytest.mark.parametrize(
    ("module", "frameworks"),
    [("trainer", []), ("orchestrator.local", []), ("workers.remote.service", []), ("workers.agents.ppo", []),
     *((f"trainer.{name}", []) for name in FRAMEWORKS),
     *((f"workers.{kind}.{name}", [name]) for kind in ("frameworks", "agents") for name in FRAMEWORKS)],
)  # fmt: skip
def test_an_import_brings_no_framework_but_its_own(module: str, frameworks: list[str], tmp_path: Path):
    code = f"import sys, {module}\nprint(sorted({{'jax', 'ray', 'skrl', 'torch', 'warp'}} & set(sys.modules)))"
    done = run(code, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{frameworks}\n")


LEARN = """
import sys
from tests.support.ppo import STEPS, make, run
run(make("torch"), range(2 * STEPS))
print("torch._dynamo" in sys.modules)
"""


def test_our_torch_agent_learns_without_torchs_compiler(tmp_path: Path):
    """Importing the compiler takes as long as importing torch itself; the classes of torch.optim import it."""
    done = run(LEARN, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("name", ["workers", "orchestrator"])
@pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
def test_a_foreign_package_of_the_same_name(name: str, file: str, tmp_path: Path):
    foreign = tmp_path / file.format(name)
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("VERSION = 3\n")
    done = run("import trainer.torch", cwd=tmp_path, path=(tmp_path, ROOT))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: the package {name!r} is found at {foreign};")
    assert f"installed next to {ROOT / 'trainer'}" in last
    assert "first in sys.path" in last


def test_a_foreign_package_that_comes_later_does_no_harm(tmp_path: Path):
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError\n")
    code = "import sys; sys.path.remove(''); import trainer.torch; print(trainer.__file__)"
    done = run(code, cwd=tmp_path, path=(ROOT, tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, str(ROOT / "trainer" / "__init__.py"))
