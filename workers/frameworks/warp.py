"""Adapter for Warp."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import warp as wp

from workers.frameworks.base import Framework, Reading

__all__ = ["FRAMEWORK"]


class WarpFramework(Framework):
    """Arrays on Warp's default device. Warp has no global generator: its agents hold their own seeds.

    Warp has no arrays without dimensions: those from NumPy get one.
    """

    name = "warp"
    can_pickle_arrays = False

    def is_array(self, value: object) -> bool:
        return isinstance(value, wp.array)

    def kind(self, array: wp.array) -> str:
        return _KINDS.get(array.dtype, array.dtype.__name__)

    def from_numpy(self, array: npt.NDArray[Any]) -> wp.array:
        return wp.array(np.atleast_1d(array))

    def to_numpy(self, array: wp.array) -> npt.NDArray[Any]:
        return array.numpy()

    def to_plain(self, array: wp.array) -> tuple[npt.NDArray[Any], str]:
        if array.dtype is wp.bfloat16:
            return array.view(wp.uint16).numpy(), "bfloat16"
        if array.dtype in _KINDS:
            return array.numpy(), ""
        name = array.dtype.__name__
        if not wp.types.type_is_composite(array.dtype) or getattr(wp, name, None) is not array.dtype:
            raise TypeError(f"the dtype {name} is none of Warp's own")
        return array.numpy(), name

    def from_plain(self, values: npt.NDArray[Any], tag: str) -> wp.array:
        if tag == "bfloat16":
            return self.from_numpy(values).view(wp.bfloat16)
        dtype = getattr(wp, tag, None)
        if not isinstance(dtype, type) or not wp.types.type_is_composite(dtype):
            return super().from_plain(values, tag)
        return wp.array(values, dtype=dtype)  # such as vectors

    def copy(self, array: wp.array) -> wp.array:
        return wp.clone(array, requires_grad=False)

    def split(self, array: wp.array, sizes: Sequence[int]) -> list[wp.array]:
        stops = np.cumsum(sizes).tolist()
        return [self.copy(array[stop - size : stop]) for size, stop in zip(sizes, stops, strict=True)]

    def concatenate(self, arrays: Sequence[wp.array]) -> wp.array:
        first, stops = arrays[0], np.cumsum([array.shape[0] for array in arrays]).tolist()
        joined = wp.empty((stops[-1], *first.shape[1:]), dtype=first.dtype, device=first.device)
        for array, stop in zip(arrays, stops, strict=True):
            wp.copy(joined[stop - array.shape[0] : stop], array)
        return joined

    def select(self, mask: npt.NDArray[np.bool_] | wp.array, chosen: wp.array, other: wp.array) -> wp.array:
        # `wp.map` keeps the kernel for these dtypes
        rows = mask if isinstance(mask, wp.array) else wp.array(mask, device=other.device)
        flat = [array.contiguous().reshape((array.shape[0], -1)) for array in (rows, chosen, other)]
        return wp.map(wp.where, *flat).reshape(other.shape)

    def zeros_like(self, array: wp.array) -> wp.array:
        return wp.zeros_like(array)

    def _device(self, device: Any) -> str:
        alias: str = wp.get_device(device).alias
        return alias

    def is_static(self, value: object) -> bool:
        return isinstance(value, wp.Device)

    def has_devices(self) -> bool:
        return wp.get_cuda_device_count() > 0

    def device_of(self, array: wp.array) -> Any:
        return array.device

    def to_device(self, array: wp.array, device: Any) -> wp.array:
        return array.to(device)

    def is_on_host(self, array: wp.array) -> bool:
        return bool(array.device.is_cpu)

    def probe(self, arrays: Sequence[wp.array]) -> wp.array:
        result = wp.zeros(1, dtype=wp.float32, device=arrays[0].device)
        for array in arrays:
            if array.dtype in (wp.float16, wp.float32, wp.float64):
                values = array.contiguous().flatten()
                wp.launch(_mark_bad, values.shape, [values, result], device=result.device)
        return result

    def read_later(self, arrays: Sequence[wp.array]) -> Reading:
        return _Reading(arrays) if any(array.device.is_cuda for array in arrays) else super().read_later(arrays)

    def flags_for_skrl(self, flags: wp.array) -> wp.array:
        return flags.view(wp.int8) if flags.dtype is wp.bool else flags

    def silence(self) -> None:
        wp.config.log_level = wp.LOG_WARNING

    def devices(self) -> list[str]:
        return ["cpu", *(f"{device.alias} ({device.name})" for device in wp.get_cuda_devices())]


_PINNED: dict[Any, list[wp.array]] = defaultdict(list)
"""Host memory for `read_later` that no copy uses, by shape and dtype: to allocate or free it waits for all devices."""

_KINDS = {
    wp.bool: "b",
    **dict.fromkeys((wp.int8, wp.int16, wp.int32, wp.int64, wp.uint8, wp.uint16, wp.uint32, wp.uint64), "i"),
    **dict.fromkeys((wp.float16, wp.bfloat16, wp.float32, wp.float64), "f"),
}


@wp.kernel(enable_backward=False)
def _mark_bad(values: wp.array1d[Any], result: wp.array1d[float]) -> None:
    """Store infinity if a value is not finite."""
    if not wp.isfinite(values[wp.tid()]):
        result[0] = wp.inf  # type: ignore[attr-defined]


class _Reading(Reading):
    """Arrays on their way from GPUs into pinned memory."""

    def __init__(self, arrays: Sequence[wp.array]) -> None:
        super().__init__([])
        self._pinned = [_pinned(array) for array in arrays]
        for copy, array in zip(self._pinned, arrays, strict=True):
            wp.copy(copy, array)
        devices = {array.device.alias: array.device for array in arrays if array.device.is_cuda}
        self._events = [device.stream.record_event() for device in devices.values()]

    def is_ready(self) -> bool:
        return all(event.is_complete for event in self._events)

    def result(self) -> list[npt.NDArray[Any]]:
        for event in self._events:
            wp.synchronize_event(event)
        if self._pinned:
            self._values = [copy.numpy().copy() for copy in self._pinned]
            for copy in self._pinned:
                _PINNED[copy.shape, copy.dtype].append(copy)
            self._pinned.clear()
        return self._values


def _pinned(array: wp.array) -> wp.array:
    """Return host memory for a copy of an array."""
    free = _PINNED[array.shape, array.dtype]
    return free.pop() if free else wp.empty(array.shape, dtype=array.dtype, device="cpu", pinned=True)


FRAMEWORK = WarpFramework()
