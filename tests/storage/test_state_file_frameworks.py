"""Arrays whose dtype NumPy lacks: they come back without pickle, with dtype and bits."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import warp as wp

from tests.support.parity import assert_same
from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.storage.state_file import decode_state, encode_state, nonfinite_values

BITS = np.array([[0x3F80, 0xC0A0, 0x7F80], [0x8000, 0x7FC1, 0x0001]], np.uint16)
"""1, -5 and infinity; -0, a NaN with a payload, and the smallest number."""


def restored(state: Any, framework: str) -> Any:
    adapter = load_framework(framework)
    data = encode_state(state, adapter)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("loads", "load", "Unpickler"):
            patch.setattr(pickle, name, None)
        return decode_state(data, adapter)


def test_bfloat16():
    tensor = torch.tensor(BITS).view(torch.bfloat16)
    for given in (tensor, tensor.T, tensor[0, 1], tensor.clone().requires_grad_()):
        back = restored([given], "torch")[0]
        assert back.dtype == torch.bfloat16
        assert_same(back.view(torch.uint16).numpy(), given.detach().view(torch.uint16).numpy())
    back = restored({"a": jnp.array(BITS.view(jnp.bfloat16))}, "jax")["a"]
    assert isinstance(back, jax.Array)
    assert back.dtype == jnp.bfloat16
    assert_same(np.asarray(back).view(np.uint16), BITS)
    back = restored({"a": wp.array(BITS, dtype=wp.uint16).view(wp.bfloat16)}, "warp")["a"]
    assert back.dtype is wp.bfloat16
    assert_same(back.view(wp.uint16).numpy(), BITS)


def test_what_is_not_finite_is_found_in_bfloat16():
    adapter = load_framework("torch")
    tensor = torch.tensor(BITS).view(torch.bfloat16)
    data = encode_state({"a": tensor[:, :2], "b": tensor[0], "c": tensor[:, 0], "d": ["x", {1j}]}, adapter)
    assert nonfinite_values(data) == {"a": "NaN", "b": "infinity"}
    held = [{complex(0, np.nan)}, np.array([None, np.inf]), np.array("x"), np.datetime64("NaT"), np.complex128(np.inf)]
    assert nonfinite_values(encode_state(held, adapter)) == {"0/0": "NaN", "1/1": "infinity", "4": "infinity"}


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_random_keys(kind: str):
    """Keys of copies, as users' environments hold them."""
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl=kind))(7 + jnp.arange(4))
    back = restored({"keys": keys, "one": keys[2], "old": jax.random.PRNGKey(3)}, "jax")
    assert back["keys"].dtype == keys.dtype
    assert back["keys"].shape == (4,)
    assert back["one"].shape == ()
    expected, given = (jax.vmap(jax.random.uniform)(batch) for batch in (keys, back["keys"]))
    assert len(set(expected.tolist())) == 4
    assert given.tolist() == expected.tolist()
    assert jax.random.uniform(back["one"]) == jax.random.uniform(keys[2])
    assert_same(np.asarray(back["old"]), np.asarray(jax.random.PRNGKey(3)))


def test_an_environment_in_jax_goes_on_as_if_nothing_had_been():
    build = importlib.import_module("examples.jax_env").build
    env, other = build(3, 5), build(3, 0)
    env.reset()
    actions = jnp.ones((3, 1))
    for _ in range(195):
        env.step(actions)
    other._keys, other._states = restored((env._keys, env._states), "jax")
    for _ in range(10):  # a new episode begins after 5
        expected, given = env.step(actions), other.step(actions)
        assert_same(
            [np.asarray(leaf) for leaf in jax.tree.leaves(given)], [*map(np.asarray, jax.tree.leaves(expected))]
        )


def test_a_number_in_jax_still_takes_the_dtype_of_what_it_meets():
    state = {"weak": jnp.array(0.1), "strong": jnp.float32(0.1), "many": jnp.full((2, 2), 3), "0": jnp.zeros((0, 2))}
    back = restored(state, "jax")
    half = jnp.ones((), jnp.bfloat16)
    for name, array in state.items():
        assert back[name].weak_type == array.weak_type == (name in ("weak", "many"))
        assert_same(np.asarray(back[name]), np.asarray(array))
        assert (back[name] * half).dtype == (array * half).dtype


@pytest.mark.parametrize(
    ("dtype", "shape"), [("vec3", (3,)), ("mat22", (2, 2)), ("quat", (4,)), ("transform", (7,)), ("vec2i", (2,))]
)
def test_vectors_in_warp(dtype: str, shape: tuple[int, ...]):
    values = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    given = wp.array(values, dtype=getattr(wp, dtype))
    back = restored([given], "warp")[0]
    assert back.dtype is given.dtype
    assert back.shape == (2,)
    assert_same(back.numpy(), given.numpy())
    assert back.numpy().tolist() == values.tolist()


def test_what_warp_holds_in_other_types_is_refused():
    for dtype in (
        wp.types.vector(length=7, dtype=float),
        wp.struct(type("Pair", (), {"__annotations__": {"a": float}})),
    ):
        with pytest.raises(AgentError, match=r"an array that NumPy cannot hold \(.* none of Warp's own\) at /a;"):
            encode_state({"a": wp.zeros(2, dtype=dtype)}, load_framework("warp"))


@pytest.mark.parametrize("framework", ["torch", "jax", "warp"])
@pytest.mark.parametrize("tag", ["", "unknown", "key unknown", "float32", "load_module", "__name__", 3])
def test_an_unknown_tag_is_refused(framework: str, tag: Any):
    data = encode_state(torch.zeros(2, dtype=torch.bfloat16), load_framework("torch"))
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    assert b'\\"bfloat16\\"' in header
    text = header[8:].replace(b'\\"bfloat16\\"', b'\\"%s\\"' % tag.encode() if isinstance(tag, str) else b"3")
    damaged = len(text).to_bytes(8, "little") + text + data[len(header) :]
    with pytest.raises(AgentError, match="is damaged"):
        decode_state(damaged, load_framework(framework))
