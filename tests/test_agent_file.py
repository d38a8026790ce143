"""Agents as files: every state comes back to the bit without pickle, and what does not fit is refused."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.support.agents import NullAgent, copied
from tests.support.parity import assert_same
from tests.support.ppo import STEPS, learn, make, run, state_of
from tests.support.skrl_agents import ROLLOUTS, seed_everything, skrl_ppo
from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.storage.agent_file import FILE_NAMES, dump_agent, load_agent
from workers.storage.state_file import decode_state, encode_state

TORCH = load_framework("torch")

DTYPES = ("bool", "int8", "int64", "uint8", "uint16", "float16", "float32", "float64", "complex64")
TORCH_DTYPES = ("bool", "int64", "uint8", "float32", "float64")
# keys whose paths meet, and names that a reader of the format takes for its own
KEYS = st.one_of(
    st.sampled_from(["a", "b", "a/b", "/a", "a'", "", "/", "0", "a/0", "state", "__metadata__"]),
    st.integers(-3, 3),
    st.text(max_size=3),
)


@st.composite
def numpy_arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> Any:
    """Any bits, of any shape: of no dimension, empty, transposed, with steps."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    array = draw(arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
    layout = draw(st.sampled_from(["as it is", "transposed", "backwards"]))
    if array.ndim and layout != "as it is":
        return array.T if layout == "transposed" else array[::-1]
    return array


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def tensor(array: Any, transpose: bool) -> torch.Tensor:
        made = torch.tensor(array.copy())
        return made.movedim(0, -1) if transpose and made.ndim else made

    return st.builds(tensor, numpy_arrays(TORCH_DTYPES), st.booleans())


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(max_size=5),
    numpy_arrays(),
    numpy_arrays().map(lambda array: array.reshape(-1)[0] if array.size else np.float32(2.5)),
    tensors(),
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=12,
)


def bits(tree: Any) -> Any:
    """The tree as something that `assert_same` compares with the kinds of its keys, numbers and arrays."""
    if isinstance(tree, dict):
        return {"dict": [(type(key).__name__, key, bits(value)) for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return type(tree)(bits(value) for value in tree)
    if isinstance(tree, torch.Tensor):
        return {"tensor": str(tree.dtype), "values": tree.numpy()}
    if isinstance(tree, np.generic):
        return {"scalar": tree.dtype.name, "values": np.asarray(tree)}
    if isinstance(tree, float):  # the sign of zero counts
        return {"float": "nan" if tree != tree else struct.pack("d", tree)}
    return tree


def leaves_by_path(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    if isinstance(tree, (dict, list, tuple)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in items for leaf in leaves_by_path(value, (*path, str(key)))]
    return [("/".join(path), tree)] if isinstance(tree, (np.ndarray, np.generic, torch.Tensor)) else []


@given(STATES)
@settings(deadline=None, max_examples=300)
def test_any_state_comes_back_to_the_bit(state: Any):
    data = encode_state(state, TORCH)
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(module, name, None)
        back = decode_state(data, TORCH)
    assert_same(bits(back), bits(state))
    read = safetensors.numpy.load(data)
    leaves = leaves_by_path(state)
    assert len(read) == len(leaves)
    assert sorted(value.tobytes() for value in read.values()) == sorted(
        np.ascontiguousarray(value).tobytes() for _, value in leaves
    )


def test_other_readers_give_the_arrays_by_their_path():
    state = {
        "models": {"policy.network.0.weight": torch.arange(6.0).reshape(2, 3).T, "steps": np.array(7, np.uint8)},
        "optimizer": [{0: {"step": torch.tensor(2.0)}}, ({"betas": (0.9, 0.999)}, np.float64(0.5))],
        "name": "mine",
    }
    data = encode_state(state, TORCH)
    assert b"pickle" not in data
    read = safetensors.numpy.load(data)
    assert {name: array.tolist() for name, array in read.items()} == {
        "models/policy.network.0.weight": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]],
        "models/steps": 7,
        "optimizer/0/0/step": 2.0,
        "optimizer/1/1": 0.5,
    }


def test_paths_that_meet():
    state = {"a/b": np.array(1), "a": {"b": np.array(2)}, "a/b'": np.array(3), "__metadata__": np.array(4)}
    data = encode_state(state, TORCH)
    assert {name: int(array) for name, array in safetensors.numpy.load(data).items()} == {
        "a/b": 1,
        "a/b'": 2,
        "a/b''": 3,
        "__metadata__'": 4,
    }
    assert_same(decode_state(data, TORCH), state)
    assert safetensors.numpy.load(encode_state(np.array(5), TORCH))["state"] == 5


def test_what_comes_back_belongs_to_nobody_else():
    state = {"numpy": np.arange(3), "torch": torch.arange(3)}
    data = encode_state(state, TORCH)
    back = decode_state(data, TORCH)
    for array in back.values():
        array += 1  # an agent may go on in its arrays
    assert_same(bits(decode_state(data, TORCH)), bits(state))


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


WITHIN_ITSELF: dict[str, Any] = {}
WITHIN_ITSELF["me"] = WITHIN_ITSELF


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": [1, {2: object()}]}, r"has a object at /a/1/2; expected arrays"),
        ({"a": {1, 2}}, r"has a set at /a; expected"),
        (b"bytes", r"has a bytes at /; expected"),
        (1j, r"has a complex at /"),
        ({"a": {(1, 2): 3}}, r"has the key \(1, 2\) at /a; expected strings, integers"),
        ({None: 3}, r"has the key None at /;"),
        ({"a": [np.array([None])]}, r"an array of dtype object at /a/0; expected one of bool, complex64"),
        ({"a": np.array(["text"])}, r"an array of dtype <U4 at /a;"),
        ({"a": np.complex128(1)}, r"an array of dtype complex128 at /a;"),
        ({"a": np.zeros(2, [("field", int)])}, r"an array of dtype \[.* at /a;"),
        ({"a": torch.zeros(2, dtype=torch.bfloat16)}, r"an array at /a that NumPy cannot hold: .*BFloat16"),
        ({"a": torch.eye(2).to_sparse()}, r"an array at /a that NumPy cannot hold: .*Sparse"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, r"an array at /a that NumPy cannot hold: .*conj"),
        ({"\ud800": np.zeros(2)}, r"cannot be written: UnicodeEncodeError"),
        ({"a": 10**5000}, r"cannot be written: ValueError: Exceeds the limit"),
        (WITHIN_ITSELF, r"cannot be written: RecursionError"),
    ],
)
def test_what_cannot_be_written_is_refused_by_its_place(state: Any, place: str):
    with pytest.raises(AgentError, match=place):
        encode_state(state, TORCH)


GOOD = encode_state({"a": torch.arange(4.0), "b": [np.arange(3), "text", 2**70]}, TORCH)


def file_with(tree: str) -> bytes:
    return safetensors.numpy.save({"x": np.zeros(2)}, metadata={"state": tree})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        pickle.dumps({"a": 1}),
        GOOD + b"\0",
        GOOD[1:],
        GOOD.replace(b"array", b"arrow"),
        GOOD.replace(b'"F32"', b'"F33"'),
        safetensors.numpy.save({"a": np.arange(3)}),
        safetensors.numpy.save({"a": np.arange(3)}, metadata={"format": "pt"}),
        file_with(""),
        file_with("3"),
        file_with("[]"),
        file_with('["numpy", "missing"]'),
        file_with('["numpy", ["x"]]'),
        file_with('["pickle", "x"]'),
        file_with('["dict", [[{}, ["value", 1]]]]'),
        file_with('["dict", 3]'),
        file_with('["list", ' * 20_000),
        file_with(json.dumps(["value"])),
    ],
)
def test_damaged_files_are_refused(data: bytes):
    with pytest.raises(AgentError, match="no state of an agent, or is damaged"):
        decode_state(data, TORCH)


def test_every_cut_is_noticed():
    for length in range(len(GOOD)):
        with pytest.raises(AgentError, match="damaged"):
            decode_state(GOOD[:length], TORCH)


@given(st.one_of(st.binary(), st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255))))
@settings(deadline=None, max_examples=500)
def test_random_bytes_give_nothing_but_our_error(damage: Any):
    data = damage
    if isinstance(damage, tuple):
        place, byte = damage
        data = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    try:
        decode_state(data, TORCH)  # a byte within a number is another number
    except AgentError as error:
        assert "damaged" in str(error)  # noqa: PT017 - that it is raised is not the point


@pytest.mark.parametrize("actions", ["gaussian", "discrete"])
def test_our_agent_goes_on_with_the_same_bits(framework: str, actions: str):
    trained, adapter = make(framework, actions), load_framework(framework)
    run(trained, range(3 * STEPS))
    name, data = dump_agent(trained, adapter)
    assert name == "state.safetensors"
    fresh = make(framework, actions, seed=1)
    before = state_of(fresh)
    with pytest.raises(AssertionError):
        assert_same(state_of(trained), before)
    load_agent(fresh, name, data, adapter)
    assert_same(state_of(fresh), state_of(trained))
    # over an update, that needs the optimizer's moments
    results = [learn(agent, range(100, 100 + STEPS)) for agent in (trained, fresh)]
    assert_same(results[1], results[0])
    with pytest.raises(AssertionError):
        assert_same(results[1], before)


def test_a_file_of_another_shape_leaves_our_agent_as_it_is(framework: str):
    adapter = load_framework(framework)
    name, data = dump_agent(make(framework, hidden_sizes=(9,)), adapter)
    agent = make(framework)
    run(agent, range(STEPS))
    before = dump_agent(agent, adapter)
    with pytest.raises(AgentError, match=r"PPO cannot load what was stored: AgentError: the state does not fit"):
        load_agent(agent, name, data, adapter)
    for wrong in (data[:-1], b"", encode_state({"models": {}}, adapter), encode_state([1], adapter)):
        with pytest.raises(AgentError, match="PPO cannot load what was stored"):
            load_agent(agent, name, wrong, adapter)
    assert dump_agent(agent, adapter) == before


def trained_skrl(seed: int, updates: int) -> Any:
    seed_everything(seed)
    agent = skrl_ppo(2)
    agent.init(trainer_cfg=None)
    agent.enable_training_mode(True)
    for step in range(updates * ROLLOUTS):
        skrl_step(agent, step)
    return agent


def skrl_step(agent: Any, step: int) -> Any:
    """One timestep whose arrays depend on the step only."""
    generator = torch.Generator().manual_seed(step)
    observations, following = torch.randn(2, 2, 4, generator=generator)
    rewards = torch.randn(2, 1, generator=generator)
    with torch.no_grad():
        actions, _ = agent.act(observations, None, timestep=step, timesteps=100)
        agent.record_transition(
            observations=observations,
            states=None,
            actions=actions,
            rewards=rewards,
            next_observations=following,
            next_states=None,
            terminated=rewards > 1,
            truncated=rewards < -1,
            infos={},
            timestep=step,
            timesteps=100,
        )
    agent.post_interaction(timestep=step, timesteps=100)
    return actions.numpy()


def skrl_state(agent: Any) -> Any:
    modules = {name: module for name, module in agent.checkpoint_modules.items() if module is not None}
    return {name: copied(dict(module.state_dict())) for name, module in modules.items()}


def test_skrl_s_agent_comes_back_with_its_optimizer():
    trained = trained_skrl(0, 2)
    name, data = dump_agent(trained, TORCH)
    assert name == "state.safetensors"
    assert {path.split("/")[0] for path in safetensors.numpy.load(data)} >= {"policy", "value", "optimizer"}
    fresh = trained_skrl(1, 0)
    with pytest.raises(AssertionError):
        assert_same(skrl_state(fresh), skrl_state(trained))
    load_agent(fresh, name, data, TORCH)
    assert fresh.checkpoint_modules["policy"] is fresh.models["policy"]  # in place
    assert_same(skrl_state(fresh), skrl_state(trained))
    results = []
    for agent in (trained, fresh):  # over an update, that needs the optimizer's moments
        seed_everything(5)
        results.append([[skrl_step(agent, step) for step in range(200, 200 + ROLLOUTS + 4)], skrl_state(agent)])
    assert_same(results[1], results[0])


class WithFiles(NullAgent):
    """A number in a file of its own format."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = weight

    def save(self, path: str) -> None:
        Path(path).write_text(f"weight {self.weight}")

    def load(self, path: str) -> None:
        self.weight = float(Path(path).read_text().removeprefix("weight "))


class WithModules(WithFiles):
    """Modules of which one has no state that can be written."""

    def __init__(self, weight: float = 0.0, module: Any = None) -> None:
        super().__init__(weight)
        self.checkpoint_modules = {"first": torch.nn.Linear(1, 1), "other": module}


class WithState(WithFiles):
    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "hook": [print]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing was stored that this could load")


class WithHalf(torch.nn.Module):
    """A state of a dtype that NumPy does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        (WithFiles(2.5), WithFiles()),
        (WithState(2.5), WithState()),
        (WithModules(2.5, {"hook": print}), WithModules()),
        (WithModules(2.5, WithHalf()), WithModules()),
    ],
    ids=["nothing else", "state", "modules", "dtype"],
)
def test_an_agent_s_own_file_is_the_last_way(stored: Any, fresh: Any):
    name, data = dump_agent(stored, TORCH)
    assert (name, data) == ("agent.bin", b"weight 2.5")
    load_agent(fresh, name, data, TORCH)
    assert fresh.weight == 2.5
    assert name in FILE_NAMES
    with pytest.raises(AgentError, match=r"With\w+ cannot load what was stored: ValueError"):
        load_agent(fresh, name, b"another file", TORCH)


def test_modules_go_before_the_agent_s_own_file():
    name, data = dump_agent(WithModules(2.5, {"steps": 3}), TORCH)
    assert name == "state.safetensors"
    agent = WithModules(0.0)
    load_agent(agent, name, data, TORCH)
    assert agent.checkpoint_modules["other"] == {"steps": 3}


def test_an_unwritable_state_without_another_way_says_where():
    class OnlyState(NullAgent):
        def state_dict(self) -> dict[str, Any]:
            return {"deep": [{"hook": print}]}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with pytest.raises(AgentError, match=r"has a builtin_function_or_method at /deep/0/hook"):
        dump_agent(OnlyState(), TORCH)


def test_an_agent_with_none_of_them_is_told_all_three():
    with pytest.raises(
        AgentError,
        match=r"NullAgent cannot be stored: .*state_dict\(\) and load_state_dict\(state\), nor checkpoint_modules, "
        r"nor save\(path\) and load\(path\)",
    ):
        dump_agent(NullAgent(), TORCH)
    for name in FILE_NAMES:
        with pytest.raises(AgentError, match="NullAgent cannot load what was stored"):
            load_agent(NullAgent(), name, encode_state({"policy": {"a": np.zeros(2)}}, TORCH), TORCH)
