"""Adapter for PyTorch."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakMethod

import numpy as np
import numpy.typing as npt
import torch

from workers.frameworks.base import Framework, Lane, RandomNumbers, Reading, ThreadControl, all_finite

__all__ = ["FRAMEWORK"]


class TorchFramework(Framework):
    """Tensors on torch's default device. The global generators are those of the CPU and of each GPU."""

    name = "torch"

    def is_array(self, value: object) -> bool:
        return isinstance(value, torch.Tensor)

    def kind(self, array: torch.Tensor) -> str:
        return _KINDS.get(array.dtype, str(array.dtype))

    def from_numpy(self, array: npt.NDArray[Any]) -> torch.Tensor:
        # not torch.from_numpy, which keeps NumPy's memory: its alignment differs, and it may be read-only
        return torch.tensor(array if array.flags.c_contiguous else array.copy())

    def from_rows(self, parts: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        tensors = [torch.from_numpy(part) for part in parts]
        joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()
        # a changed default device is a torch function mode; querying the device takes longer than all of this
        return joined.to(torch.get_default_device()) if _number_of_modes() else joined

    def to_numpy(self, array: torch.Tensor) -> npt.NDArray[Any]:
        if array.is_cpu and not array.requires_grad:
            return array.numpy()
        return array.detach().cpu().numpy()

    def dump(self, value: Any, pickler: type[pickle.Pickler]) -> bytes:
        with io.BytesIO() as file:  # plain pickle would copy the memory of each tensor
            torch.save(value, file, pickle_module=SimpleNamespace(__name__="pickle", Pickler=pickler))
            return file.getvalue()

    def load(self, data: bytes) -> Any:
        return torch.load(io.BytesIO(data), weights_only=False)

    def to_plain(self, array: torch.Tensor) -> tuple[npt.NDArray[Any], str]:
        if array.dtype == torch.bfloat16:
            return self.to_numpy(array.detach().view(torch.uint16)), "bfloat16"
        return self.to_numpy(array), ""

    def from_plain(self, values: npt.NDArray[Any], tag: str) -> torch.Tensor:
        if tag == "bfloat16":
            return self.from_numpy(values).view(torch.bfloat16)
        return super().from_plain(values, tag)

    def copy(self, array: torch.Tensor) -> torch.Tensor:
        return array.clone() if array.is_contiguous() else array.contiguous()

    # torch's functions without an intermediate call: they run several times per step and agent
    split = staticmethod(torch.split_with_sizes_copy)  # type: ignore[assignment]
    concatenate = staticmethod(torch.cat)  # type: ignore[assignment]

    def select(
        self, mask: npt.NDArray[np.bool_] | torch.Tensor, chosen: torch.Tensor, other: torch.Tensor
    ) -> torch.Tensor:
        rows = mask if isinstance(mask, torch.Tensor) else torch.tensor(mask, device=other.device)
        return torch.where(rows.reshape(-1, *[1] * (other.dim() - 1)), chosen, other)

    def zeros_like(self, array: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(array)

    def _device(self, device: Any) -> torch.device:
        # on an array: "cuda" gets its number, and a device that is not there is refused
        found = torch.empty(0, device=torch.get_default_device() if device is None else device).device
        if found.type == "meta":
            raise ValueError("tensors on it have no values")
        return found

    def is_on_host(self, array: torch.Tensor) -> bool:
        return array.is_cpu

    def is_finite(self, array: torch.Tensor) -> bool:
        if array.dtype in _NUMPY_FLOATS:  # NumPy takes a third of torch's time
            return all_finite(self.to_numpy(array))
        return not array.dtype.is_floating_point or bool(torch.isfinite(array).all())

    def probe(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        floats = [array for array in arrays if array.is_floating_point()] or [
            arrays[0].new_zeros(1, dtype=torch.float32)
        ]
        # the largest magnitude, or NaN: one call for all arrays, where isfinite() takes several kernels for each
        norms = torch._foreach_norm(floats, math.inf)
        same = all(norm.dtype == norms[0].dtype for norm in norms)
        return torch.stack(norms if same else [norm.double() for norm in norms])

    def read_later(self, arrays: Sequence[torch.Tensor]) -> Reading:
        return _Reading(arrays) if any(not array.is_cpu for array in arrays) else super().read_later(arrays)

    def is_static(self, value: object) -> bool:
        return isinstance(value, (torch.device, torch.dtype))

    def has_devices(self) -> bool:
        return torch.cuda.is_initialized() or _HAS_OTHER_DEVICES

    def device_of(self, array: torch.Tensor) -> torch.device:
        return array.device

    def to_device(self, array: torch.Tensor, device: Any) -> torch.Tensor:
        return array if array.device == device else array.to(device)

    def lanes(self, devices: Sequence[Any]) -> Sequence[Lane]:
        if any(not isinstance(device, torch.device) for device in devices):
            return ()  # such an agent may use the same memory as those beside it
        gpus = [device for device in devices if device.type == "cuda"]
        shared = {gpu for gpu in gpus if gpus.count(gpu) > 1}
        if not shared:
            return ()
        return [_Lane(gpu, index) if gpu in shared else Lane() for index, gpu in enumerate(devices)]

    def no_grad(self) -> AbstractContextManager[Any]:
        return _NoGrad()

    def rng_state(self) -> torch.Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.default_generator.set_state(state)

    def random_stream(self, seed: int | None) -> RandomNumbers:
        return _GlobalNumbers() if seed is None else _OwnNumbers(seed)

    def devices(self) -> list[str]:
        gpus = range(torch.cuda.device_count())
        return ["cpu", *(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in gpus)]

    def thread_control(self) -> ThreadControl:
        return torch.get_num_threads, torch.set_num_threads

    def num_threads(self) -> int:
        return torch.get_num_threads()


_KINDS = {
    dtype: kind
    for kind, dtypes in {
        "b": (torch.bool,),
        "i": (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64),
        "f": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        "c": (torch.complex32, torch.complex64, torch.complex128),
    }.items()
    for dtype in dtypes
}
_HAS_OTHER_DEVICES = torch.backends.mps.is_available() or torch.xpu.is_available()
_NUMPY_FLOATS = (torch.float32, torch.float64, torch.float16)
_is_grad_enabled, _set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled
_number_of_modes = torch._C._len_torch_function_stack


class _NoGrad(AbstractContextManager[None]):
    """``torch.no_grad()`` in a third of the time; it is entered three times per step and agent."""

    __slots__ = ("_previous",)

    def __enter__(self) -> None:
        self._previous = _is_grad_enabled()
        _set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        _set_grad_enabled(self._previous)


class _OwnNumbers(RandomNumbers):
    """Random numbers of an agent, for the default generators of the CPU and of each GPU.

    CUDA is not started for this. If the agent starts it, the generators hold the agent's numbers from then on.
    """

    def __init__(self, seed: int) -> None:
        super().__init__("torch")
        self._seed = seed
        self._host = torch.Generator().manual_seed(seed).get_state()
        self._gpus: list[torch.Generator] = []
        self._loaded: Sequence[npt.NDArray[Any]] = ()  # states for GPUs that are not used yet
        self._is_inside = False
        if torch.cuda._is_compiled() and not torch.cuda.is_initialized():
            torch.cuda._lazy_call(partial(_call_last, WeakMethod(self._start_gpus)))

    def swap(self) -> None:
        generator = torch.default_generator
        other = generator.get_state()
        generator.set_state(self._host)
        self._host = other
        if not self._is_inside:
            self._add_gpus()
        self._exchange(0)
        self._is_inside = not self._is_inside

    def _start_gpus(self) -> None:
        """Take over the generators of GPUs while CUDA starts."""
        if self._is_inside:
            first = len(self._gpus)
            self._add_gpus()
            self._exchange(first)

    def _add_gpus(self) -> None:
        for default in torch.cuda.default_generators[len(self._gpus) :]:
            self._gpus.append(torch.Generator(default.device).manual_seed(self._seed))
            _load_gpus(self._gpus[-1:], self._loaded[len(self._gpus) - 1 :])

    def _exchange(self, first: int) -> None:
        # as objects, not by value: graphs that others captured with these states go on from them
        for index in range(first, len(self._gpus)):
            mine, default = self._gpus[index], torch.cuda.default_generators[index]
            self._gpus[index] = default.graphsafe_get_state()
            default.graphsafe_set_state(mine)

    def state(self) -> list[npt.NDArray[Any]]:
        states = [state.numpy().copy() for state in (self._host, *(gpu.get_state() for gpu in self._gpus))]
        return states + list(self._loaded[len(self._gpus) :])

    def load(self, states: Sequence[npt.NDArray[Any]]) -> None:
        self._host = torch.tensor(states[0], dtype=torch.uint8, device="cpu")
        self._loaded = states[1:]
        _load_gpus(self._gpus, self._loaded)
        for gpu in self._gpus[len(self._loaded) :]:  # they had not been used when the states were taken
            gpu.manual_seed(self._seed)


def _call_last(method: WeakMethod[Callable[[], None]]) -> None:
    """Call a method, if its object lives, after all other calls that wait for CUDA: they may seed the generators."""
    if (call := method()) is not None:
        torch.cuda._queued_calls.append((call, []))


class _GlobalNumbers(RandomNumbers):
    """The random numbers of the process."""

    def __init__(self) -> None:
        super().__init__("torch")

    def state(self) -> list[npt.NDArray[Any]]:
        generators = (torch.default_generator, *torch.cuda.default_generators)
        return [generator.get_state().numpy().copy() for generator in generators]

    def load(self, states: Sequence[npt.NDArray[Any]]) -> None:
        torch.default_generator.set_state(torch.tensor(states[0], dtype=torch.uint8, device="cpu"))
        _load_gpus(torch.cuda.default_generators, states[1:])


def _load_gpus(generators: Sequence[torch.Generator], states: Sequence[npt.NDArray[Any]]) -> None:
    for generator, state in zip(generators, states, strict=False):
        generator.set_state(torch.tensor(state, dtype=torch.uint8, device="cpu"))


class _Lane(Lane):
    """A stream of an agent on a GPU that it shares with others: what each starts there overlaps.

    A GPU has 8 of them, for all trainers: torch has 32 streams, which would otherwise be given out twice.
    """

    def __init__(self, device: torch.device, index: int) -> None:
        super().__init__()
        self._device = device
        self._stream = _stream(device, index % 8)
        self._inside = torch.cuda.stream(self._stream)

    def __enter__(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # the agent gets what was made there
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)  # which also makes the device current that was

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


@cache
def _stream(device: torch.device, index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class _Reading(Reading):
    """Tensors on their way from GPUs into pinned memory."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        # to the host without blocking: torch then takes pinned memory
        super().__init__([tensor.detach().to("cpu", non_blocking=True).numpy() for tensor in tensors])
        self._events = [torch.Event(device) for device in {tensor.device for tensor in tensors if not tensor.is_cpu}]
        for event in self._events:
            event.record()

    def is_ready(self) -> bool:
        return all(event.query() for event in self._events)

    def result(self) -> list[npt.NDArray[Any]]:
        for event in self._events:
            event.synchronize()
        return super().result()


FRAMEWORK = TorchFramework()
