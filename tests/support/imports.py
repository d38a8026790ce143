"""Which module imports what, and what the house allows."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("trainer", "orchestrator", "workers")

# import names of each framework's packages
FRAMEWORKS = {
    "torch": "torch",
    "torchvision": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "optax": "jax",
    "warp": "warp",
    "warp_nn": "warp",
}

# the rooms of the house, the highest first: a module may import its own room and those below, not one beside it
ROOMS = (
    ("trainer.__main__",),
    ("trainer.command",),
    ("trainer",),
    ("orchestrator.ray",),
    ("orchestrator",),
    ("workers.remote",),
    ("workers.scope",),
    ("workers.agents", "workers.envs"),
    ("workers.storage",),
    ("workers.by_agent", "workers.infos", "workers.seeding", "workers.threads"),
    ("workers.frameworks",),
    ("workers",),
)
RULES = ROOMS[9]  # files of one room
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}

NEVER = ("skrl", "tests", "examples", "benchmarks")


def imported_names(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Full names of all modules (or members of modules) that `source` imports anywhere, also inside functions."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports and must not."""
    return [
        f"{module} imports {name}"
        for name in imported_names(source, module, is_package=is_package)
        if not _allowed(module, name)
    ]


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty if there is no circle.

    Args:
        sources: Source of each module by its full name. Imports of anything else do not count.
    """
    graph = {
        module: {found for name in imported_names(source, module) if (found := _module_of(name, sources)) is not None}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib begins with what is imported
    return []


def _module_of(name: str, modules: Mapping[str, str]) -> str | None:
    """The module that an imported name is, or is a member of."""
    return next((found for found in (name, name.rpartition(".")[0]) if found in modules), None)


def _allowed(module: str, name: str) -> bool:
    root = name.split(".")[0]
    if root in PACKAGES:
        mine, other = _room(module), _room(name)
        return mine == other or FLOORS[mine] < FLOORS[other] or (mine in RULES and other in RULES)
    if root in FRAMEWORKS:
        return _framework_of(module) == FRAMEWORKS[root]
    if root == "ray":
        return module == "workers.remote.actor" or _room(module) == "orchestrator.ray"
    return root not in NEVER


def _room(name: str) -> str:
    """The room that a module, or a member of one, is in."""
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return name


def _framework_of(module: str) -> str | None:
    """The framework whose module it is: adapter, agents or trainer."""
    match module.split("."):
        case ["workers", "frameworks", name] | ["workers", "agents", name, *_] | ["trainer", name]:
            return name
    return None


def modules(*roots: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of all modules of packages."""
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
