"""The framework contract holds for every framework, and rejects broken ones."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import warp as wp

from tests.support import framework_contract as contract
from tests.support.framework_contract import CONTRACT, Case
from tests.support.processes import python
from workers.errors import ConfigError
from workers.frameworks import Framework, RandomNumbers, available_frameworks, load_framework

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


def torch_draw() -> list[float]:
    return torch.randn(5).tolist()


def torch_seeded_draw(seed: int) -> list[float]:
    torch.manual_seed(seed)
    return torch_draw()


CASES = {
    "numpy": Case(
        framework=load_framework("numpy"),
        dtypes=DTYPES,
        is_contiguous=lambda array: array.flags.c_contiguous,
        pointer=lambda array: array.ctypes.data,
        fill=lambda array: array.fill(99),
    ),
    "torch": Case(
        framework=load_framework("torch"),
        dtypes=DTYPES,
        is_contiguous=torch.Tensor.is_contiguous,
        pointer=torch.Tensor.data_ptr,
        fill=lambda array: array.fill_(99),
        draw=torch_draw,
        seeded_draw=torch_seeded_draw,
        grad_enabled=(torch.is_grad_enabled, torch.set_grad_enabled),
    ),
    "jax": Case(
        framework=load_framework("jax"),
        dtypes=tuple(dtype for dtype in DTYPES if not dtype.endswith("64")),
        is_contiguous=lambda array: True,
        pointer=lambda array: array.unsafe_buffer_pointer(),
        fill=None,
    ),
    "warp": Case(
        framework=load_framework("warp"),
        dtypes=DTYPES,
        is_contiguous=lambda array: array.is_contiguous,
        pointer=lambda array: array.ptr,
        transpose=lambda array: array.transpose(),
        fill=lambda array: array.fill_(99),
        scalar_shape=(1,),
    ),
}


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Any):
    check(CASES[name])


def test_every_framework_is_named():
    for name in available_frameworks():
        framework = load_framework(name)
        assert isinstance(framework, Framework)
        assert framework.name == name
        assert load_framework(name) is framework


class SwitchesOnAfterwards(nullcontext[None]):
    def __enter__(self) -> None:
        torch.set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(True)


class RestoresOnlyWithoutException(nullcontext[None]):
    def __enter__(self) -> None:
        self.previous = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def __exit__(self, kind: Any = None, *_: object) -> None:
        if kind is None:
            torch.set_grad_enabled(self.previous)


class SwallowsExceptions(torch.no_grad):
    def __exit__(self, *arguments: Any) -> Any:
        super().__exit__(*arguments)
        return True


random_stream = load_framework("torch").random_stream


def touches_the_generator(seed: int | None) -> RandomNumbers:
    torch.manual_seed(5)
    return random_stream(seed)


def writes_in_place(mask: Any, chosen: Any, other: Any) -> Any:
    other[mask] = chosen[mask]
    return other


def selects_the_others(mask: Any, chosen: Any, other: Any) -> Any:
    return CASES["numpy"].framework.select(~mask, chosen, other)


def keeps_numpys_memory(array: Any) -> Any:
    return jax.device_put(np.ascontiguousarray(array))


def splits_into_views(array: Any, sizes: Any) -> Any:
    stops = np.cumsum(sizes).tolist()
    return [array[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def joins_in_reverse(arrays: Any) -> Any:
    return CASES["warp"].framework.concatenate(list(arrays)[::-1])


def plain(array: Any) -> Any:
    """Return the array in a form that torch accepts without warnings."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy()


# defect, framework, method, its replacement, check that must fail
BROKEN: list[tuple[str, str, str, Any, Any]] = [
    ("takes lists for arrays", "numpy", "is_array", lambda x: isinstance(x, (np.ndarray, list)), "is_array"),
    ("knows no array", "torch", "is_array", lambda x: isinstance(x, np.ndarray), "is_array"),
    ("tells unsigned integers apart", "numpy", "kind", lambda x: x.dtype.kind, "kind"),
    ("takes bools for integers", "torch", "kind", lambda x: "f" if x.is_floating_point() else "i", "kind"),
    ("aliases NumPy's memory", "numpy", "from_numpy", np.ascontiguousarray, "from_numpy"),
    ("aliases NumPy's memory", "torch", "from_numpy", lambda x: torch.from_numpy(plain(x)), "from_numpy"),
    ("keeps the layout", "numpy", "from_numpy", lambda x: x.copy("K"), "from_numpy"),
    ("keeps the layout", "torch", "from_numpy", lambda x: torch.from_numpy(x.copy("K")), "from_numpy"),
    ("makes everything float32", "numpy", "from_numpy", lambda x: x.astype(np.float32), "from_numpy"),
    ("halves float64", "torch", "from_numpy", lambda x: torch.Tensor(plain(x).tolist()), "from_numpy"),
    ("adds a dimension", "numpy", "from_numpy", lambda x: np.array(x, order="C", ndmin=1), "from_numpy"),
    ("gives the same array", "numpy", "copy", lambda x: x, "copy"),
    ("gives a view", "torch", "copy", lambda x: x.contiguous().detach(), "copy"),
    ("keeps the layout", "torch", "copy", torch.clone, "copy"),
    ("splits into views", "numpy", "split", lambda x, n: np.split(x, np.cumsum(n)[:-1]), "split"),
    ("splits into views", "torch", "split", lambda x, n: x.split(n), "split"),
    ("splits a copy into views", "torch", "split", lambda x, n: x.T.clone().T.split(n), "split"),
    ("splits into equal parts", "torch", "split", lambda x, n: [y.clone() for y in x.chunk(len(n))], "split"),
    ("gives the parts in reverse", "torch", "split", lambda x, n: [y.clone() for y in x.split(n)][::-1], "split"),
    ("drops a dimension", "torch", "split", lambda x, n: [y.clone().squeeze(0) for y in x.split(n)], "split"),
    ("joins in reverse", "torch", "concatenate", lambda xs: torch.cat(list(xs)[::-1]), "concatenate"),
    ("joins by size", "numpy", "concatenate", lambda xs: np.concatenate(sorted(xs, key=len)), "concatenate"),
    ("gives the only array back", "torch", "concatenate", lambda x: torch.cat(x) if x[1:] else x[0], "concatenate"),
    ("keeps the layout", "numpy", "concatenate", np.concatenate, "concatenate"),
    ("selects the others", "numpy", "select", selects_the_others, "select"),
    ("selects one for all", "torch", "select", lambda m, x, y: x if m.any() else y, "select"),
    ("writes into the other", "numpy", "select", writes_in_place, "select"),
    ("gives ones", "torch", "zeros_like", torch.ones_like, "zeros_like"),
    ("keeps NumPy's memory", "jax", "from_numpy", keeps_numpys_memory, "from_numpy"),
    ("gives the same array", "jax", "copy", lambda x: x, "copy"),
    ("splits by columns", "jax", "split", lambda x, n: jnp.split(x, len(n)), "split"),
    ("joins in reverse", "jax", "concatenate", lambda xs: jnp.concatenate(xs[::-1]), "concatenate"),
    ("has a state out of nowhere", "jax", "rng_state", lambda: jax.random.key(0), "random_state"),
    ("keeps NumPy's memory", "warp", "from_numpy", lambda x: wp.array(x, copy=False), "from_numpy"),
    ("gives a view", "warp", "copy", lambda x: x.contiguous(), "copy"),
    ("splits into views", "warp", "split", splits_into_views, "split"),
    ("joins in reverse", "warp", "concatenate", joins_in_reverse, "concatenate"),
    ("writes into the other", "warp", "select", lambda m, x, y: writes_in_place(m, x.numpy(), y.numpy()), "select"),
    ("sends its own arrays", "warp", "is_array", lambda x: False, "wire"),
    ("has no device", "jax", "devices", lambda: ["TFRT_CPU_0"], "devices"),
    (
        "sees NaN only",
        "torch",
        "probe",
        lambda xs: torch.stack([x.double().nan_to_num(9, 9, 9).max() for x in xs]),
        "probe",
    ),
    ("sees the first array only", "jax", "probe", lambda xs: jnp.abs(xs[1]).max()[None], "probe"),
    ("has the state of no one", "torch", "rng_state", lambda: torch.Generator().get_state(), "random_state"),
    ("restores nothing", "torch", "set_rng_state", lambda state: None, "random_state"),
    ("seeds the global generator", "torch", "random_stream", touches_the_generator, "random_state"),
    ("ignores the seed", "torch", "random_stream", lambda seed: random_stream(0), "random_state"),
    ("does not swap", "torch", "random_stream", lambda seed: RandomNumbers("torch"), "random_state"),
    ("has a state out of nowhere", "numpy", "rng_state", lambda: np.random.get_state(), "random_state"),
    ("records gradients", "torch", "no_grad", nullcontext, "no_grad"),
    ("records always afterwards", "torch", "no_grad", SwitchesOnAfterwards, "no_grad"),
    ("forgets after an exception", "torch", "no_grad", RestoresOnlyWithoutException, "no_grad"),
    ("swallows exceptions", "torch", "no_grad", SwallowsExceptions, "no_grad"),
    ("has no threads", "numpy", "num_threads", lambda: 0, "num_threads"),
    (
        "sets no threads",
        "torch",
        "thread_control",
        lambda: (torch.get_num_threads, lambda count: None),
        "thread_control",
    ),
    ("gives other threads", "torch", "thread_control", lambda: (lambda: 1, torch.set_num_threads), "thread_control"),
]


@pytest.mark.parametrize(
    ("what", "name", "method", "broken", "check"), BROKEN, ids=lambda x: x if isinstance(x, str) else ""
)
def test_contract_rejects(what: str, name: str, method: str, broken: Any, check: str):
    case = CASES[name]
    kind = type(case.framework)
    adapter = type("Broken", (kind,), {method: staticmethod(broken)})()
    with pytest.raises(AssertionError):
        getattr(contract, f"check_{check}")(replace(case, framework=adapter))
    getattr(contract, f"check_{check}")(case)


def test_kinds_of_dtypes_that_numpy_lacks():
    assert load_framework("torch").kind(torch.zeros(1, dtype=torch.bfloat16)) == "f"
    assert load_framework("jax").kind(jnp.zeros(1, jnp.bfloat16)) == "f"
    assert load_framework("warp").kind(wp.zeros(1, dtype=wp.bfloat16)) == "f"
    for name, array in (("torch", torch.zeros(1, dtype=torch.complex64)), ("jax", jnp.zeros(1, jnp.complex64))):
        assert load_framework(name).kind(array) == "c"
    for name, array in (("jax", jax.random.key(0)), ("warp", wp.zeros(1, dtype=wp.vec2))):
        assert load_framework(name).kind(array) not in "bifc"


def test_number_of_threads():
    assert load_framework("torch").num_threads() == torch.get_num_threads()
    assert load_framework("jax").num_threads() == int(os.environ["NPROC"]) == 1


def test_unknown_framework():
    with pytest.raises(ConfigError) as caught:
        load_framework("tensorflow")
    assert "unknown framework 'tensorflow'" in str(caught.value)
    assert ", ".join(available_frameworks()) in str(caught.value)
    assert available_frameworks() == ("numpy", "torch", "jax", "warp")


def test_framework_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "workers.frameworks.torch")
    with pytest.raises(ConfigError) as caught:
        load_framework("torch")
    assert "needs the package 'torch'" in str(caught.value)
    assert "pip install 'lockstep-rl[torch]'" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("name", ["torch", "jax", "warp"])
def test_the_first_import_leaves_numpys_generator_alone(name: str):
    code = f"""
import numpy as np
from workers.frameworks import load_framework
np.random.seed(3)
load_framework({name!r})
after = np.random.random_sample()
np.random.seed(3)
print(after == np.random.random_sample())
"""
    done = python("-c", code)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


def test_a_number_of_warp_is_read_as_it_was():
    number = wp.array([3], dtype=wp.int32)
    reading = load_framework("warp").read_later([number])
    number.fill_(4)
    assert [values.tolist() for values in reading.result()] == [[3]]
