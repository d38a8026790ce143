"""The file of a configuration: read and parsed to plain data, within limits, because it may be somebody else's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from orchestrator.files import LARGEST_TEXT, read_file
from workers.errors import ConfigError

__all__ = ["LONGEST_TOLD", "dump_yaml", "load_yaml", "read_config", "shortened"]

LONGEST_TOLD = 80
"""Most characters of a value in a message."""

_MOST_VALUES = 20_000
"""Most keys and values in a configuration, counting what aliases stand for; a long text counts as several."""

_CHARACTERS = 64
"""Number of characters of a text that count as one more value."""

_DEEPEST = 50
"""Most levels of mappings and lists within each other."""

_LONGEST_NUMBER = 1000
"""Most characters of a number. The time to read one can grow with their square."""

_MOST_TOLD = 300
"""Number of characters that an error tells of what is wrong."""

_TAG = "tag:yaml.org,2002:"


def read_config(path: str) -> str:
    """Return the text of a configuration.

    Args:
        path: Path of a file, or of a pipe, such as that of ``<(command)`` in a shell.

    Raises:
        ConfigError: It cannot be read, or is too large.
    """
    try:
        return read_file(path, LARGEST_TEXT, may_be_pipe=True).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config {path!r} cannot be read: {error}") from error


def load_yaml(text: str, overrides: Sequence[str] = ()) -> Any:
    """Return the plain data of a configuration: a dictionary, or something else that it should not be.

    Args:
        text: YAML.
        overrides: ``key=value``; values are YAML.

    Raises:
        ConfigError: The text is not valid YAML or is too large, or an override has no place in it.
    """
    data = _plain(_parse(text, "the config"))  # copies, so that each use of an anchor can be overridden on its own
    data = {} if data is None else data
    if isinstance(data, dict) and any(override.startswith("agents.") for override in overrides):
        data.setdefault("agents", [{}])
    for override in overrides:
        _apply(data, override)
    return data


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML; `load_yaml` restores it.

    Raises:
        ConfigError: It is too large for `load_yaml`.
    """
    what = "the config with all defaults"
    try:
        text = yaml.safe_dump(_plain(data), sort_keys=False)
    except RecursionError:
        raise ConfigError(f"{what} is nested deeper than {_DEEPEST} levels") from None
    _parse(text, what)
    return text


class _Loader(yaml.SafeLoader):
    """Loader of YAML's safe types, within limits. 1e-3 is a number and 12:30 a text; duplicate keys are errors."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values, self._depth = 0, 0
        self._sizes: dict[yaml.Node, int] = {}  # numbers of values of complete nodes

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias, mark, before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark, self._values
        self._depth += 1
        _check(self._depth <= _DEEPEST, f"values are nested deeper than {_DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if is_alias:
            _check(node in self._sizes, "an anchor contains itself", mark)
            self._values += self._sizes[node]  # whatever copies the data writes them out
        else:
            self._values += 1 + (len(node.value) // _CHARACTERS if isinstance(node, yaml.ScalarNode) else 0)
            self._sizes[node] = self._values - before
        too_many = f"there are more than {_MOST_VALUES} keys and values, counting what aliases stand for"
        _check(self._values <= _MOST_VALUES, too_many, mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                _check(key.value not in seen, f"duplicate key {shortened(key.value)}", key.start_mark)
                seen.add(key.value)
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)
        is_sexagesimal = tag in (f"{_TAG}int", f"{_TAG}float") and ":" in value
        return f"{_TAG}str" if is_sexagesimal else tag

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_number = node.tag in (f"{_TAG}int", f"{_TAG}float")
        _check(not is_number or len(node.value) <= _LONGEST_NUMBER, "the number is too long", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML has no error of its own for a value that does not fit its tag
            _check(False, f"the value is not of type {node.tag.removeprefix(_TAG)}", node.start_mark)


_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check(valid: bool, problem: str, mark: yaml.Mark) -> None:
    if not valid:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _parse(text: str, what: str) -> Any:
    if len(text) > LARGEST_TEXT:
        raise ConfigError(f"{what} has {len(text)} characters; expected at most {LARGEST_TEXT}")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid YAML: {_told(error)}") from None


def _told(error: Exception) -> str:
    """Describe an error in one line, without the text around it, which may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    parts = [f"line {mark.line + 1}, column {mark.column + 1}"] if mark else []
    return ": ".join([*parts, *filter(None, [error.context, error.problem])])[:_MOST_TOLD]


def shortened(value: Any) -> str:
    """Return a value as it is told within a message: its `repr`, up to a length."""
    text = repr(value)
    return text if len(text) <= LONGEST_TOLD else f"{text[: LONGEST_TOLD - 3]}..."


def _apply(data: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    shown = f"--set {shortened(key)}"  # without the value, which may be a password
    if not equals or not all(parts := key.strip().split(".")):
        raise ConfigError(f"{shown}; expected key=value, such as trainer.timesteps=1000")
    if len(parts) > _DEEPEST:
        raise ConfigError(f"{shown}: the key has {len(parts)} parts; expected at most {_DEEPEST}")
    parsed = _plain(_parse(value, f"{shown}: the value"))
    *parents, last = parts
    node = data
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else _item(node, part, shown)
    if isinstance(node, dict):
        node[last] = parsed
    else:
        _item(node, last, shown)
        node[int(last)] = parsed


def _item(node: Any, part: str, shown: str) -> Any:
    if not isinstance(node, list) or not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(node):
        expected = f"an index below {len(node)}" if isinstance(node, list) else "no key below a plain value"
        raise ConfigError(f"{shown}: the key contains {shortened(part)}; expected {expected}")
    return node[int(part)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
