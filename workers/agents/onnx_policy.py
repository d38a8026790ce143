"""The policy of a PPO agent as an ONNX model (https://onnx.ai), from what is stored of it, in every framework.

The graph is that of acting without noise: normaliser, perceptron, and the most probable categories or the map of the
mean to the action bounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from workers.agents.action_bounds import action_map
from workers.agents.base import discrete_components, space_width
from workers.agents.ppo import INPUT_LIMIT
from workers.agents.ppo_cfg import PPOCfg
from workers.errors import AgentError, ConfigError
from workers.spaces import mask_columns

__all__ = ["policy_model"]

OPSET, IR_VERSION = 17, 8
"""Versions that runtimes since 2022 can read."""

VARIANCE_EPSILON = 1e-8
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "elu": "Elu"}
IMPOSSIBLE = np.float32(-3e38)
"""Logit of a category that is never chosen."""

FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""

Array = npt.NDArray[Any]


def policy_model(
    state: Mapping[str, Any],
    *,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    cfg: PPOCfg,
    metadata: Mapping[str, str],
) -> bytes:
    """Return the policy of a state as an ONNX model, checked by `onnx.checker`.

    The model's input is ``observations``, ``(batch, size)`` float32: flat and raw, as the agent gets them. Its outputs
    are ``actions``, the `mean_actions` of `act`: ``(batch, size)`` float32, or ``(batch, components)`` int64; and for
    discrete actions ``logits``, ``(batch, categories)`` float32, one component after the other. If the observation
    space has an ``action_mask``, only legal actions are chosen.

    Args:
        state: A PPO agent's `state_dict`, with arrays of NumPy.
        observation_space: Its observation space.
        action_space: Its action space.
        cfg: Its configuration. The ``action_bounds`` of the state replace those of the configuration.
        metadata: Texts that are stored in the model.

    Raises:
        AgentError: The state does not fit the spaces or the configuration.
        ConfigError: ONNX is not installed.
    """
    graph = _Graph()
    inputs, components = space_width(observation_space, "observation_space"), discrete_components(action_space)
    outputs = sum(map(len, components)) if components else space_width(action_space, "action_space")
    hidden = _normalized(graph, state, inputs) if cfg.normalize_observations else "observations"
    widths = [inputs, *cfg.hidden_sizes, outputs]
    for index, (width, next_width) in enumerate(itertools.pairwise(widths)):
        layer = f"policy.network.{2 * index}"
        weight, bias = _taken(state, f"{layer}.weight", next_width, width), _taken(state, f"{layer}.bias", next_width)
        is_head = index == len(cfg.hidden_sizes)
        name = {"output": "logits"} if is_head and components else {}
        hidden = graph.add("Gemm", hidden, weight.astype(np.float32), bias.astype(np.float32), transB=1, **name)
        if not is_head:
            hidden = graph.add(ACTIVATIONS[cfg.activation], hidden)
    if components:
        _most_probable(graph, components, mask_columns(observation_space))
        sizes = {"actions": len(components), "logits": outputs}
    else:
        bounds = str(state.get("action_bounds", "none"))
        replace(cfg, action_bounds=bounds).validate()
        _bounded(graph, hidden, action_map(action_space, bounds))
        sizes = {"actions": outputs}
    return graph.model(inputs, sizes, metadata)


def _normalized(graph: _Graph, state: Mapping[str, Any], width: int) -> str:
    mean, variance = (_taken(state, f"normalizers.observations.{name}", width) for name in ("mean", "variance"))
    deviation = np.sqrt(variance.astype(np.float64) + VARIANCE_EPSILON)
    centred = graph.add("Sub", "observations", mean.astype(np.float32))
    scaled = graph.add("Div", centred, deviation.astype(np.float32))
    return graph.add("Clip", scaled, np.float32(-INPUT_LIMIT), np.float32(INPUT_LIMIT))


def _bounded(graph: _Graph, means: str, mapping: Array | None) -> None:
    if mapping is None:
        graph.add("Identity", means, output="actions")
        return
    scale, shift, low, high = mapping
    mapped = graph.add("Add", graph.add("Mul", means, scale), shift)
    graph.add("Min", graph.add("Max", mapped, low), high, output="actions")


def _most_probable(graph: _Graph, components: Sequence[range], mask: slice | None) -> None:
    """Add the argmax of each component, whose categories are padded to the number of the largest one."""
    sizes, width = list(map(len, components)), max(map(len, components))
    firsts = np.cumsum([0, *sizes[:-1]])
    # columns of the logits for each component, with the one behind the last for padding
    columns = np.full((len(sizes), width), sum(sizes))
    for row, (first, size) in enumerate(zip(firsts, sizes, strict=True)):
        columns[row, :size] = np.arange(first, first + size)

    def padded(values: str, padding: np.float32) -> str:
        longer = graph.add("Pad", values, np.array([0, 0, 0, 1]), padding)
        return graph.add("Gather", longer, columns, axis=1)

    scores = padded("logits", IMPOSSIBLE)
    if mask is not None:
        given = graph.add("Gather", "observations", np.arange(mask.start, mask.stop), axis=1)
        is_legal = graph.add("Not", graph.add("Equal", padded(given, np.float32(0)), np.float32(0)))
        one = graph.add("ReduceMax", graph.add("Cast", is_legal, to=FLOAT), axes=[2])
        none_is_legal = graph.add("Equal", one, np.float32(0))  # then all are
        scores = graph.add("Where", graph.add("Or", is_legal, none_is_legal), scores, IMPOSSIBLE)
    chosen = graph.add("ArgMax", scores, axis=2, keepdims=0)
    graph.add("Add", chosen, np.array([values.start for values in components]), output="actions")


def _taken(state: Mapping[str, Any], name: str, *shape: int) -> Array:
    """Return an array of the models of a state.

    Raises:
        AgentError: It is missing, or has another shape.
    """
    models = state.get("models") if isinstance(state, Mapping) else None
    array = models.get(name) if isinstance(models, Mapping) else None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != "f":
        given = f"has shape {array.shape} and dtype {array.dtype}" if isinstance(array, np.ndarray) else "is missing"
        raise AgentError(
            f"{name} {given} in the state; expected floats of shape {shape}, as the spaces and the configuration say"
        )
    return array


class _Graph:
    """A graph in the making."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError as error:
            raise ConfigError(
                "exporting to ONNX needs the package 'onnx', which is not installed; pip install 'lockstep-rl[onnx]'"
            ) from error
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, kind: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        """Add an operation, and return the name of its output.

        Args:
            kind: Name of the operation.
            inputs: Names of outputs, or constants.
            output: Name of the output; None for any.
            attributes: Attributes of the operation.
        """
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        names = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        self._nodes.append(self._onnx.helper.make_node(kind, names, [output], name=output, **attributes))
        return output

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.array(value), name))
        return name

    def model(self, inputs: int, outputs: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
        """Return the checked model.

        Args:
            inputs: Width of the observations.
            outputs: Width of each output.
            metadata: Texts by name.
        """
        helper, types = self._onnx.helper, self._onnx.TensorProto
        given = helper.make_tensor_value_info("observations", types.FLOAT, ["batch", inputs])
        kinds = {name: types.INT64 if name == "actions" and "logits" in outputs else types.FLOAT for name in outputs}
        told = [helper.make_tensor_value_info(name, kinds[name], ["batch", width]) for name, width in outputs.items()]
        graph = helper.make_graph(self._nodes, "policy", [given], told, self._constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="lockstep-rl"
        )
        helper.set_model_props(model, dict(metadata))
        self._onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data
