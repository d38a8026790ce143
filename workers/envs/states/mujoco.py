"""The state of MuJoCo's simulation in an environment, bit for bit."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np

from workers.envs.states.values import Unsuitable

__all__ = ["has_simulation", "objects_of", "read_simulation", "write_simulation"]

_RENDERERS = "gymnasium.envs.mujoco.mujoco_rendering"


def has_simulation(layer: Any) -> bool:
    """Return whether an environment has MuJoCo's model and data as attributes `model` and `data`."""
    mujoco, attributes = sys.modules.get("mujoco"), vars(layer)
    return (
        mujoco is not None
        and isinstance(attributes.get("model"), mujoco.MjModel)
        and isinstance(attributes.get("data"), mujoco.MjData)
    )


def objects_of(layer: Any) -> tuple[type, ...]:
    """Return the types of the simulation's objects among an environment's attributes, its renderer included."""
    mujoco = sys.modules["mujoco"]
    kinds = {type(value) for value in vars(layer).values()}
    return (mujoco.MjModel, mujoco.MjData, *(kind for kind in kinds if kind.__module__ == _RENDERERS))


def read_simulation(layer: Any) -> dict[str, Any]:
    """Return the integration state and the arrays that the last step derived from it.

    ``mj_step`` leaves derived arrays, such as ``xpos``, one substep behind the state, and environments read them before
    the next one: ``mj_forward`` would give others. Those of contacts and constraints have no fixed size and are not
    stored: they come from ``mj_forward``.
    """
    mujoco = sys.modules["mujoco"]
    model, data = layer.model, layer.data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return {"state": state, "derived": {name: getattr(data, name).copy() for name in _derived(model)}}


_names: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()


def _derived(model: Any) -> list[str]:
    """Return the names of the arrays of a simulation that have a fixed size: in a new one, the others are empty."""
    if model not in _names:
        arrays = _float_arrays(sys.modules["mujoco"].MjData(model))
        _names[model] = [name for name, array in arrays.items() if array.size]
    return _names[model]


def write_simulation(layer: Any, tree: dict[str, Any]) -> None:
    """Set what `read_simulation` returned.

    Raises:
        Unsuitable: It is from another model.
    """
    mujoco = sys.modules["mujoco"]
    model, data = layer.model, layer.data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state, arrays = np.asarray(tree["state"], np.float64), _float_arrays(data)
    size = mujoco.mj_stateSize(model, kind)
    if state.shape != (size,):
        raise Unsuitable(f"a state of MuJoCo of shape {state.shape}; its model has {size} numbers")
    mujoco.mj_setState(model, data, state, kind)
    mujoco.mj_forward(model, data)
    for name, values in tree["derived"].items():
        if name not in arrays or arrays[name].shape != values.shape:
            raise Unsuitable(f"its model or version of MuJoCo has another {name}")
        arrays[name][...] = values


def _float_arrays(data: Any) -> dict[str, Any]:
    arrays = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray) and array.dtype.kind == "f"}
