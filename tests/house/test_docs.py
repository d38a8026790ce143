"""README and docs: the first example runs as pasted, code compiles, links lead somewhere, tables name what there is."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.processes import ROOT, python
from tests.support.schedule import only_long
from trainer.config import StepTrainerCfg
from trainer.torch import StepTrainer
from workers import errors
from workers.threads import THREAD_VARIABLES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


FIRST = blocks(ROOT / "README.md", "python")[0]
DIGESTS = """
    for _, data in trainer.agent_files():
        print(__import__("hashlib").sha256(data).hexdigest())
"""


@pytest.fixture(scope="module")
def local() -> list[str]:
    """What the first example prints, and digests of its agents, without any environment variable."""
    return printed(FIRST)


def printed(program: str) -> list[str]:
    done = python("-W", "error::UserWarning", "-c", program.rstrip() + DIGESTS, env=dict.fromkeys(THREAD_VARIABLES))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_first_example_learns(local: list[str]):
    *lines, first_digest, second_digest = local
    assert [line.partition(":")[0] for line in lines] == [f"timestep {256 * i}" for i in (1, 2, 3, 4)]
    returns = [[float(number) for number in re.findall(r"\d+\.\d", line)] for line in lines]
    assert all(first < 50 and last > 150 for first, last in zip(returns[0], returns[-1], strict=True))
    assert first_digest != second_digest


@only_long
def test_the_first_example_prints_the_same_in_ray(local: list[str]):
    program = FIRST.replace("    seed=0,\n", '    seed=0,\n    orchestrator="ray",\n')
    assert program != FIRST
    assert printed(program) == local


def test_the_program_of_the_readme_goes_on_after_a_kill(tmp_path: Path):
    head, tail = FIRST.partition("with StepTrainer")[0], blocks(ROOT / "README.md", "python")[1]
    program = f"{head}{tail}".replace("1024", "192").replace("256", "64")
    assert program.count("192") == 2
    killed = program.replace(
        "    trainer.train(",
        "    timestep == 150 and __import__('os').kill(__import__('os').getpid(), 9)\n    trainer.train(",
    )
    digests = []
    for name, programs in (("one", [program]), ("other", [killed, program])):
        folder = tmp_path / name
        folder.mkdir()
        for number, each in enumerate(programs):
            done = python("-c", each + "print()\nprint(start)" + DIGESTS.replace("\n    ", "\n"), cwd=folder)
            assert done.returncode == (-9 if len(programs) > number + 1 else 0), done.stderr
        # beside the progress bar
        start, first, second = re.findall(r"^(?:\d{1,3}|[0-9a-f]{64})$", done.stdout, re.MULTILINE)
        assert start == ("0" if name == "one" else "128")
        digests.append((first, second))
        assert (folder / "checkpoint").is_dir()
    assert digests[0] == digests[1]


def test_the_readme_shows_lines_of_this_form():
    """The numbers are those of one type of CPU."""
    (shown, *_) = [text for text in blocks(ROOT / "README.md", "") if text.startswith("timestep")]
    form = r"timestep \d+: mean returns \d+\.\d and \d+\.\d\n"
    assert re.fullmatch(f"({form}){{4}}", shown)


def test_the_script_of_the_page_for_skrl_runs_locally_and_in_ray(tmp_path: Path):
    local, remote = blocks(ROOT / "docs" / "from-skrl.md", "python")
    rest = "print(type(trainer).__module__, trainer.run(64)[0].shape, len(trainer.agents))\ntrainer.close()"
    done = python("-c", f"{local}{remote}{rest}", cwd=tmp_path)  # where skrl writes its checkpoints
    assert done.returncode == 0, done.stderr
    assert "trainer.torch torch.Size([8, 4]) 2\n" in done.stdout


COMPARE = """
expected = policy(observations).argmax(-1)
assert len(set(expected)) == 2
assert (agent.predict(observations) == expected).all() and (actions[:, 0] == expected).all()
np.testing.assert_allclose(logits, policy(observations), rtol=1e-5, atol=1e-5)
"""


def test_a_trained_policy_acts_as_the_page_says(tmp_path: Path):
    run_dir, model = tmp_path / "run", tmp_path / "policy.onnx"
    settings = ["trainer.timesteps=64", "trainer.disable_progressbar=true", "evaluation.episodes=0"]
    program = "".join(blocks(ROOT / "docs" / "trained-policy.md", "python")) + COMPARE
    program = program.replace("runs/mine", str(run_dir)).replace("policy.onnx", str(model))
    for arguments in (
        ["-m", "trainer", "train", "examples/cartpole.yaml", "--set", f"logging.directory={run_dir}", *settings],
        ["-m", "trainer", "export", run_dir, model, "--scope", "0"],
        ["-c", program],
    ):
        done = python(*arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles(page: Path):
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def first_column(page: str, heading: str) -> list[str]:
    """Names in the first column of the tables under a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = text[text.index(f"\n{heading}\n") + len(heading) + 1 :]
    return re.findall(r"^\| `(\w+)", section.partition("\n#")[0], re.MULTILINE)


def test_tables_of_the_api_are_complete():
    named = first_column("api.md", "## StepTrainer")
    assert named[:6] == [name for name in inspect.signature(StepTrainer.__init__).parameters if name != "self"]
    members = {name for name in vars(StepTrainer.__mro__[1]) if not name.startswith("_")} - {"framework"}
    assert members <= set(named), members - set(named)
    fields = [field.name for field in dataclasses.fields(StepTrainerCfg)]
    assert first_column("api.md", "## StepTrainerCfg") == fields
    options = [field.name for field in dataclasses.fields(RayOrchestrator)]
    named = [*first_column("ray.md", "## Options"), *first_column("recovery.md", "## Options")]
    assert sorted(set(named)) == sorted(options)
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert all(name in api for name in errors.__all__ if name.endswith("Error"))


def templates() -> list[str]:
    """All texts in the sources, with a gap for each value that is formatted into one."""
    found = []
    for package in ("trainer", "orchestrator", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%[.\w]+", "…", node.value))
    return found


VALUES = r"\.\.\.|'[^']*'|\[[^]]*\]|\w+\(\)|StepTrainer|PPO|write_interval and checkpoint_interval|\d+( CPU| failure)?"


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    """The longest fixed part of each message is in the sources."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) >= 40
    known = templates()
    for message in messages:
        fixed = max(re.split("[;:,()]", re.sub(VALUES, ";", message)), key=len).strip()
        assert len(fixed) > 10, message
        assert any(fixed in template for template in known), message
