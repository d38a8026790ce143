"""The keys of a configuration with their defaults and meanings, as `lockstep config` lists them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import MISSING
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter

from orchestrator import LocalOrchestrator
from orchestrator.ray import RayOrchestrator
from trainer.command.run_config import RunConfig
from workers.agents.ppo import PPOCfg

__all__ = ["list_keys"]

_PARTS = {
    "a configuration": RunConfig,
    "agents.*.cfg of ppo, ippo and mappo": PPOCfg,
    "orchestrator.options of local": LocalOrchestrator,
    "orchestrator.options of ray": RayOrchestrator,
}


def list_keys() -> Iterator[str]:
    """Yield lines of YAML that show every key with its default and its meaning, one part after the other."""
    for number, (title, kind) in enumerate(_PARTS.items()):
        yield from [""] * (number > 0)
        yield f"# {title}"
        yield from _describe(kind)


def _describe(kind: type[Any], indent: str = "") -> Iterator[str]:
    meanings, types = _meanings(kind), get_type_hints(kind)
    for item in dataclasses.fields(kind):
        nested = types[item.name]
        is_list = not dataclasses.is_dataclass(nested) and any(map(dataclasses.is_dataclass, get_args(nested)))
        if is_list:
            nested = get_args(nested)[0]
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield f"{indent}{item.name}:  # {meanings[item.name]}"
            lines = list(_describe(nested, f"{indent}    " if is_list else f"{indent}  "))
            yield from [f"{indent}  - {lines[0].lstrip()}", *lines[1:]] if is_list else lines
        else:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            shown = "" if default is MISSING else f" {json.dumps(default)}"
            yield f"{indent}{item.name}:{shown}  # {meanings[item.name]}"


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Return the docstring of every field, in one line and without marks."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, kind.__mro__):  # pydantic reads only the docstrings of a class itself
        many: Any = list[base]  # type: ignore[valid-type]
        schema = TypeAdapter(many, config=ConfigDict(use_attribute_docstrings=True)).json_schema()
        for name, each in schema["$defs"][base.__name__]["properties"].items():
            if "description" in each:
                found[name] = " ".join(each["description"].replace("`", "").split())
    return found
