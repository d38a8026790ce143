"""The whole state of one of skrl's agents between two iterations, as plain data, by a walk over what it refers to.

A node of the walk is a pair of its kind and its content:

======================  ====================================================================================
``plain``               None, a boolean, a number, a string, or an array of NumPy
``tensor``              a tensor, and whether it is optimised
``state``               the ``state_dict()`` of a module, an optimiser, a scheduler or a scaler; and of a module,
                        the attributes of all modules in it, and its tensors that are in no ``state_dict()``
``object``              the attributes of an object of skrl, such as a memory or a noise
``dict``                pairs of a key and a node
``list tuple set``      nodes
``deque``               the greatest length, and nodes
``same``                the path of what is there a second time, and the shape of a tensor
``fixed``               the type of what never changes, such as a configuration, a space or a function
``transient``           nothing: a distribution is made again whenever an agent acts
======================  ====================================================================================

Whatever else an agent refers to is refused by name. Nothing of skrl is imported.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from workers.errors import AgentError, type_name
from workers.members import is_of_skrl

__all__ = ["check_parts", "read_parts", "write_parts"]

Node = tuple[str, Any]

_FIXED = (
    type,
    BuiltinFunctionType,
    FunctionType,
    MethodType,
    ModuleType,
    functools.partial,
    torch.device,
    torch.dtype,
    gymnasium.Space,  # their generators are among the agent's random streams
    np.dtype,
    Enum,
    PurePath,
)
_SETTINGS = {"cfg", "writer", "experiment_dir", "write_interval", "checkpoint_interval"}
"""Attributes of an agent that belong to the process, or to how it was configured."""

_OF_TORCH = vars(nn.Module()).keys() - {"training"}
"""Attributes by which a module holds its parameters, modules and hooks."""

_PLAIN = (bool, int, float, complex, str, bytes, np.generic)
_KINDS = {"plain", "tensor", "state", "object", "dict", "list", "tuple", "set", "deque", "same", "fixed", "transient"}
_SEQUENCES: dict[str, type[Any]] = {"list": list, "tuple": tuple, "set": set}


def read_parts(agent: Any) -> Node:
    """Return the state of an agent. It shares the memory of the agent's tensors.

    Raises:
        AgentError: The agent refers to something else; the message says where.
    """
    return _Reader().object(agent, "")


def write_parts(agent: Any, state: Node) -> None:
    """Put an agent that was built alike into the state of `read_parts`; call `check_parts` before.

    Raises:
        AgentError: It does not fit.
    """
    _Writer(agent).value(state, agent, "")


def check_parts(agent: Any, state: Node) -> None:
    """Check that a state fits an agent. Nothing changes.

    Raises:
        AgentError: It does not.
    """
    _Writer(agent, only_checks=True).value(state, agent, "")


def _key(tensor: torch.Tensor) -> Any:
    """Return by what a view of a whole tensor is known as that tensor."""
    return tensor.data_ptr(), tensor.numel(), tensor.dtype if tensor.numel() else id(tensor)


def _is_frozen(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _attributes(value: Any, left_out: Any) -> dict[str, Any]:
    return {name: item for name, item in vars(value).items() if name not in left_out}


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


class _Reader:
    """Reads the state of an agent."""

    def __init__(self) -> None:
        self._paths: dict[Any, str] = {}  # of what has been read
        self._held: list[Any] = []  # so that no other object gets the identity of one of these

    def object(self, value: Any, path: str) -> Node:
        """Return the node of an object of skrl."""
        left_out = set() if path else _SETTINGS
        items = [(name, self.value(item, f"{path}.{name}")) for name, item in _attributes(value, left_out).items()]
        return "object", (type_name(type(value)), items)

    def value(self, value: Any, path: str) -> Node:
        """Return the node of a value.

        Raises:
            AgentError: It cannot be kept.
        """
        if isinstance(value, Enum):  # some are numbers or strings as well
            return "fixed", type_name(type(value))
        if value is None or isinstance(value, _PLAIN) or (isinstance(value, np.ndarray) and value.dtype != object):
            return "plain", value
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, torch.distributions.Distribution):
            return "transient", None
        if isinstance(value, _FIXED) or _is_frozen(value):
            return "fixed", type_name(type(value))
        if (first := self._seen(id(value), value, path)) is not None:
            return "same", (first, [])
        if isinstance(value, dict):
            return "dict", [(key, self.value(item, f"{path}[{key!r}]")) for key, item in value.items()]
        if isinstance(value, deque):
            return "deque", (value.maxlen, self._items(value, path))
        for kind, sequence in _SEQUENCES.items():
            if isinstance(value, sequence) and (kind != "tuple" or type(value) in (tuple, torch.Size)):
                return kind, self._items(value, path)
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            return self._state(value, path)
        if is_of_skrl(value) or (is_dataclass(value) and hasattr(value, "__dict__")):
            return self.object(value, path)
        raise AgentError(
            f"it holds a {type_name(type(value))} at {path}, which is no tensor, plain value or object of skrl"
        )

    def _items(self, values: Any, path: str) -> list[Node]:
        return [self.value(item, f"{path}[{index}]") for index, item in enumerate(values)]

    def _tensor(self, value: torch.Tensor, path: str) -> Node:
        if (first := self._seen(_key(value), value, path)) is not None:
            return "same", (first, list(value.shape))
        return "tensor", (value.detach(), value.requires_grad and value.is_leaf)

    def _state(self, value: Any, path: str) -> Node:
        attributes: list[Any] = []
        others: list[Any] = []
        if isinstance(value, nn.Module):
            for name, tensor in _tensors(value):
                self._seen(_key(tensor), tensor, f"{path}#{name}")
            for name, module in value.named_modules():
                items = _attributes(module, _OF_TORCH).items()
                attributes.append((name, [(key, self.value(item, f"{path}:{name}.{key}")) for key, item in items]))
                hidden = module._non_persistent_buffers_set
                others += [(name, key, module._buffers[key]) for key in sorted(hidden)]
        return "state", (type_name(type(value)), value.state_dict(), attributes, others)

    def _seen(self, key: Any, value: Any, path: str) -> str | None:
        """Return the path at which something was read already."""
        first = self._paths.setdefault(key, path)
        self._held.append(value)
        return None if first == path else first


class _Writer:
    """Writes the state of an agent, or checks that it fits."""

    def __init__(self, agent: Any, *, only_checks: bool = False) -> None:
        self._device = getattr(agent, "device", "cpu")
        self._only_checks = only_checks
        self._made: dict[str, Any] = {}  # by path

    def value(self, node: Node, target: Any, path: str, *, in_place: bool = False) -> Any:
        """Return the value of a node.

        Args:
            node: The node.
            target: What is there now; None if there is nothing.
            path: Where it is.
            in_place: Whether a tensor belongs to nobody else, so that it can be overwritten.

        Raises:
            AgentError: The value does not fit.
        """
        kind, content = node
        if kind not in _KINDS:
            raise AgentError(f"{path or 'the agent'} has an unknown kind in the state")
        made = getattr(self, f"_{kind}")(content, target, path, in_place)
        self._made[path] = made
        return made

    def _plain(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        return content

    def _fixed(self, content: str, target: Any, path: str, in_place: bool) -> Any:
        self._require(type_name(type(target)) == content, path, target, content)
        return target

    def _transient(self, content: None, target: Any, path: str, in_place: bool) -> Any:
        return target

    def _tensor(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        tensor, is_optimised = content
        fits = isinstance(target, torch.Tensor) and (target.shape, target.dtype) == (tensor.shape, tensor.dtype)
        if is_optimised:
            self._require(fits, path, target, f"{tensor.dtype} tensor of shape {tuple(tensor.shape)}")
        if not fits or not (is_optimised or in_place):
            device = target.device if isinstance(target, torch.Tensor) else self._device
            return tensor if self._only_checks else tensor.to(device, copy=True)
        if not self._only_checks:
            with torch.no_grad():
                target.copy_(tensor)
        return target

    def _same(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        first, shape = content
        made = self._made[first]
        if not isinstance(made, torch.Tensor):
            return made
        is_view = isinstance(target, torch.Tensor) and _key(target) == _key(made) and list(target.shape) == list(shape)
        return target if is_view else made.view(tuple(shape))

    def _object(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        kind, items = content
        self._require(type_name(type(target)) == kind, path, target, kind)
        self._attributes(target, items, path, _SETTINGS if not path else set(), in_place=bool(path))
        return target

    def _attributes(self, target: Any, items: Any, path: str, left_out: Any, *, in_place: bool) -> None:
        """Set the attributes of an object."""
        before = _attributes(target, left_out)
        for name, node in items:
            value = self.value(node, before.pop(name, None), f"{path}.{name}", in_place=in_place)
            if not self._only_checks:
                setattr(target, name, value)
        for name in before:
            if not self._only_checks:
                delattr(target, name)

    def _dict(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        before = target if isinstance(target, dict) else {}
        made = {key: self.value(node, before.get(key), f"{path}[{key!r}]", in_place=in_place) for key, node in content}
        if before is not target:
            return made
        if not self._only_checks:
            before.clear()
            before.update(made)
        return before

    def _list(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        made = self._items(content, target, path, in_place)
        if not isinstance(target, list):
            return made
        if not self._only_checks:
            target[:] = made
        return target

    def _deque(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        longest, nodes = content
        made = self._items(nodes, None, path, in_place)
        if not isinstance(target, deque) or target.maxlen != longest:
            return deque(made, longest)
        if not self._only_checks:
            target.clear()
            target.extend(made)
        return target

    def _tuple(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        return tuple(self._items(content, target, path, in_place))

    def _set(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        return set(self._items(content, None, path, in_place))

    def _items(self, content: Any, target: Any, path: str, in_place: bool) -> list[Any]:
        before = list(target) if isinstance(target, (list, tuple)) else []
        before += [None] * (len(content) - len(before))
        return [
            self.value(node, before[index], f"{path}[{index}]", in_place=in_place) for index, node in enumerate(content)
        ]

    def _state(self, content: Any, target: Any, path: str, in_place: bool) -> Any:
        kind, state, attributes, others = content
        self._require(type_name(type(target)) == kind, path, target, kind)
        _check_state(state, target, path)
        if not self._only_checks:
            target.load_state_dict(state)
        if isinstance(target, nn.Module):
            modules = dict(target.named_modules())
            for name, tensor in _tensors(target):
                self._made[f"{path}#{name}"] = tensor
            for name, items in attributes:
                self._require(name in modules, f"{path}:{name}", None, "module")
                self._attributes(modules[name], items, f"{path}:{name}", _OF_TORCH, in_place=True)
            for name, key, tensor in others:
                if not self._only_checks:
                    device = getattr(modules[name]._buffers.get(key), "device", self._device)
                    modules[name]._buffers[key] = tensor.to(device, copy=True)
        return target

    def _require(self, fits: bool, path: str, target: Any, expected: str) -> None:
        if not fits:
            raise AgentError(f"{path or 'the agent'} is a {type_name(type(target))}; expected a {expected}")


def _check_state(state: Mapping[str, Any], target: Any, path: str) -> None:
    """Check that a ``state_dict()`` fits: modules and optimisers load a part of one that does not."""
    now = target.state_dict()
    if state.keys() != now.keys():
        raise AgentError(f"the state of {path} has {list(state)}; expected {list(now)}")
    if isinstance(target, nn.Module):
        for name, tensor in now.items():
            if isinstance(tensor, torch.Tensor) and state[name].shape != tensor.shape:
                raise AgentError(f"{path}#{name} has shape {tuple(state[name].shape)}; expected {tuple(tensor.shape)}")
    elif isinstance(target, torch.optim.Optimizer):
        sizes = [[len(group["params"]) for group in each["param_groups"]] for each in (state, now)]
        if sizes[0] != sizes[1]:
            raise AgentError(f"the state of {path} has groups of {sizes[0]} parameters; expected {sizes[1]}")
