"""Adapter for PyTorch."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.frameworks.base import Framework, ThreadControl, all_finite

__all__ = ["FRAMEWORK"]


class TorchFramework(Framework):
    """Tensors on torch's default device. The global generator is that of the CPU."""

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
        return torch.empty(0, device=torch.get_default_device() if device is None else device).device

    def is_on_host(self, array: torch.Tensor) -> bool:
        return array.is_cpu

    def is_finite(self, array: torch.Tensor) -> bool:
        if array.dtype in _NUMPY_FLOATS:  # NumPy takes a third of torch's time
            return all_finite(self.to_numpy(array))
        return not array.dtype.is_floating_point or bool(torch.isfinite(array).all())

    def first_bad(self, first: torch.Tensor | None, timestep: int, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        if first is None:
            first = torch.full((), -1, dtype=torch.int64, device=arrays[0].device)
        bad = ~torch.stack([torch.isfinite(array).all() for array in arrays]).all()
        return torch.where(bad & (first < 0), timestep, first)

    def read_later(self, number: torch.Tensor) -> Callable[[], int]:
        if number.is_cpu:
            return lambda: int(number)
        copy, event = number.to("cpu", non_blocking=True), torch.Event(number.device)
        event.record()

        def read() -> int:
            event.synchronize()
            return int(copy)

        return read

    def no_grad(self) -> AbstractContextManager[Any]:
        return _NoGrad()

    def seeded_rng_state(self, seed: int) -> torch.Tensor:
        return torch.Generator().manual_seed(seed).get_state()

    def rng_state(self) -> torch.Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.default_generator.set_state(state)

    def rng_state_of(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.uint8, device="cpu")

    def device_rng_states(self) -> list[npt.NDArray[Any]]:
        if not torch.cuda.is_initialized():
            return []
        return [state.numpy() for state in torch.cuda.get_rng_state_all()]

    def set_device_rng_states(self, states: Sequence[npt.NDArray[Any]]) -> None:
        if len(states) not in (0, torch.cuda.device_count()):
            raise ValueError(
                f"it has the random states of {len(states)} GPUs; this process has {torch.cuda.device_count()}"
            )
        if len(states):
            torch.cuda.set_rng_state_all([torch.tensor(state, dtype=torch.uint8, device="cpu") for state in states])

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


FRAMEWORK = TorchFramework()
