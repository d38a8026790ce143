"""Which module imports what, and what the house allows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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

# what each package may import of the house: down only
BELOW = {"trainer": PACKAGES, "orchestrator": ("orchestrator", "workers"), "workers": ("workers",)}

NEVER = ("skrl", "tests", "examples", "benchmarks")


def imported_names(source: str, module: str, *, is_package: bool) -> Iterator[str]:
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


def _allowed(module: str, name: str) -> bool:
    root, package = name.split(".")[0], module.split(".")[0]
    if root in PACKAGES:
        return root in BELOW[package]
    if root in FRAMEWORKS:
        return _framework_of(module) == FRAMEWORKS[root]
    if root == "ray":
        return module == "workers.remote.actor" or f"{module}.".startswith("orchestrator.ray.")
    return root not in NEVER


def _framework_of(module: str) -> str | None:
    """The framework whose module it is: adapter, agents or trainer."""
    match module.split("."):
        case ["workers", "frameworks", name] | ["workers", "agents", name, *_] | ["trainer", name]:
            return name
    return None


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of all modules of the house."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
