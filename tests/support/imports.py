"""The imports of modules, and the rules of the house for them."""

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

# the rooms of the house, highest first: a module may import from its own room and lower ones, not from one beside it
ROOMS = (
    ("trainer.__main__",),
    ("trainer.command.cli",),
    ("trainer.command.parser",),
    ("trainer.command.verbs",),
    ("trainer.policies",),
    ("trainer.command",),
    ("trainer",),
    ("orchestrator.ray",),
    ("orchestrator",),
    ("workers.remote",),
    ("workers.scope",),
    ("workers.agents", "workers.envs"),
    ("workers.storage",),
    (
        "workers.by_agent",
        "workers.fetching",
        "workers.generators",
        "workers.info_rows",
        "workers.infos",
        "workers.seeding",
        "workers.spaces",
        "workers.threads",
    ),
    ("workers.frameworks",),
    ("workers",),
)
RULES = ROOMS[13]  # these count as one room
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}

NEVER = ("skrl", "tests", "examples", "benchmarks")


def imported_names(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Yield the full names of all modules (or members of modules) that `source` imports, also inside functions."""
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
    """Return the forbidden imports of `module`."""
    return [
        f"{module} imports {name}"
        for name in imported_names(source, module, is_package=is_package)
        if not _allowed(module, name)
    ]


def circle(sources: Mapping[str, str]) -> list[str]:
    """Return modules that import each other in a circle, with the first one again at the end; empty if there is none.

    Args:
        sources: Source of each module by its full name. Imports of other modules do not count.
    """
    graph = {
        module: {found for name in imported_names(source, module) if (found := _module_of(name, sources)) is not None}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib begins with the imported module
    return []


def _module_of(name: str, modules: Mapping[str, str]) -> str | None:
    """Return the module that an imported name is, or is a member of."""
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
    """Return the room of a module or of a module's member."""
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return name


def _framework_of(module: str) -> str | None:
    """Return the framework of an adapter, agent or trainer module; None for any other module."""
    match module.split("."):
        case ["workers", "frameworks", name] | ["workers", "agents", name, *_] | ["trainer", name]:
            return name
    return None


def modules(*roots: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and files of all modules of packages."""
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
