"""The contract of `Framework`, as checks that run on any framework."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.errors import EnvError
from workers.frameworks import Framework
from workers.remote.wire import from_wire, to_wire


@dataclass(frozen=True, kw_only=True)
class Case:
    """A framework, and what the checks need to know about it.

    Attributes:
        framework: The framework.
        dtypes: NumPy's names of the dtypes that it has.
        is_contiguous: Returns whether the rows of an array follow each other in memory.
        pointer: Returns the address of an array's memory.
        transpose: Returns a view of a matrix with its axes swapped.
        fill: Overwrites an array; None if arrays cannot be written.
        scalar_shape: Shape of an array made from a zero-dimensional one.
        draw: Draws numbers from the global generator; None if there is none.
        seeded_draw: Returns what `draw` gives right after seeding in the framework's own way.
        grad_enabled: Functions that read and set whether gradients are recorded; None if there are no gradients.
    """

    framework: Framework
    dtypes: tuple[str, ...]
    is_contiguous: Callable[[Any], bool]
    pointer: Callable[[Any], int]
    transpose: Callable[[Any], Any] = lambda array: array.T
    fill: Callable[[Any], object] | None
    scalar_shape: tuple[int, ...] = ()
    draw: Callable[[], list[float]] | None = None
    seeded_draw: Callable[[int], list[float]] | None = None
    grad_enabled: tuple[Callable[[], bool], Callable[[bool], object]] | None = None


def table(rows: int = 6, columns: int = 3, dtype: str = "float32") -> npt.NDArray[Any]:
    """Return an array with ``10 i + j + 1`` in row i, column j; for booleans, with a pattern derived from that."""
    values = np.add.outer(10 * np.arange(rows), np.arange(columns) + 1)
    return (values * 37 % 5 > 2 if dtype == "bool" else values).astype(dtype)


def assert_array(case: Case, given: Any, expected: npt.NDArray[Any]) -> None:
    assert case.framework.is_array(given)
    values = case.framework.to_numpy(given)
    assert isinstance(values, np.ndarray)
    assert values.dtype == expected.dtype
    assert values.shape == expected.shape
    assert values.tolist() == expected.tolist()


def assert_fresh(case: Case, fresh: Iterable[Any], source: Any, expected: npt.NDArray[Any]) -> None:
    """Assert that every array is contiguous, and that writing to it changes neither the other arrays nor the source."""
    arrays = list(fresh)
    assert all(case.is_contiguous(array) for array in arrays)
    assert len({case.pointer(array) for array in (*arrays, source)}) == len(arrays) + 1
    if case.fill is None:
        return
    values = [case.framework.to_numpy(array).copy() for array in arrays]
    for i, array in enumerate(arrays):
        case.fill(array)
        assert case.framework.to_numpy(array).tolist() != values[i].tolist()
        for neighbour, value in zip(arrays[i + 1 :], values[i + 1 :], strict=True):
            assert_array(case, neighbour, value)
    assert_array(case, source, expected)


def check_is_array(case: Case) -> None:
    assert case.framework.is_array(case.framework.from_numpy(table()))
    others: list[object] = [None, 1.0, [1.0], "a", {}, memoryview(b"a")]
    assert not any(map(case.framework.is_array, others))


def check_kind(case: Case) -> None:
    for dtype in case.dtypes:
        expected = {"b": "b", "u": "i", "i": "i", "f": "f"}[np.dtype(dtype).kind]
        assert case.framework.kind(case.framework.from_numpy(table(dtype=dtype))) == expected


def check_from_numpy(case: Case) -> None:
    for dtype in case.dtypes:
        whole = table(dtype=dtype)
        read_only = whole.copy()
        read_only.flags.writeable = False
        layouts = [whole, np.asfortranarray(whole), whole[::-1], whole[:, ::2], whole[1:3], whole[0, 0:1].reshape(())]
        for source in (*layouts, read_only, whole[:0]):
            expected = source.copy()
            array = case.framework.from_numpy(source)
            values = expected if expected.ndim else expected.reshape(case.scalar_shape)
            assert_array(case, array, values)
            assert case.is_contiguous(array)
            if source.flags.writeable:
                source[...] = 0 if dtype != "bool" else ~source
            assert_array(case, array, values)
            if source.flags.writeable:
                source[...] = expected


def check_copy(case: Case) -> None:
    for values in (table(), table(dtype="int32"), table()[:1]):
        source = case.framework.from_numpy(values)
        copy = case.framework.copy(source)
        assert_array(case, copy, values)
        assert_fresh(case, [copy], source, values)
    transposed = case.transpose(case.framework.from_numpy(table()))
    assert_array(case, case.framework.copy(transposed), table().T)
    assert case.is_contiguous(case.framework.copy(transposed))


def check_split(case: Case) -> None:
    for sizes in ([6], [1, 5], [2, 1, 3], [1] * 6):
        for dtype in ("float32", "bool"):
            values = table(dtype=dtype)
            source = case.framework.from_numpy(values)
            parts = case.framework.split(source, sizes)
            assert len(parts) == len(sizes)
            stops = np.cumsum(sizes)
            for part, size, stop in zip(parts, sizes, stops, strict=True):
                assert_array(case, part, values[stop - size : stop])
            if dtype != "bool":
                assert_fresh(case, parts, source, values)
    transposed = case.transpose(case.framework.from_numpy(table(3, 6)))
    assert all(case.is_contiguous(part) for part in case.framework.split(transposed, [2, 4]))


def check_concatenate(case: Case) -> None:
    for sizes in ([6], [1, 5], [2, 1, 3]):
        values = table()
        stops = np.cumsum(sizes)
        parts = [case.framework.from_numpy(values[stop - size : stop]) for size, stop in zip(sizes, stops, strict=True)]
        joined = case.framework.concatenate(parts)
        assert_array(case, joined, values)
        assert_fresh(case, [joined], parts[0], values[: sizes[0]])
        assert_array(case, case.framework.concatenate(tuple(parts)), values)
    transposed = case.transpose(case.framework.from_numpy(table(3, 6)))
    for count in (1, 2):
        joined = case.framework.concatenate([transposed] * count)
        assert_array(case, joined, np.vstack([table(3, 6).T] * count))
        assert case.is_contiguous(joined)


def check_select(case: Case) -> None:
    mask = np.array([True, False, False, True, False, True])
    for shape in ((6,), (6, 3), (6, 3, 2)):
        chosen = table(6, int(np.prod(shape[1:]))).reshape(shape)
        other = chosen + 1000
        arrays = case.framework.from_numpy(chosen), case.framework.from_numpy(other)
        expected = np.stack([(chosen if mask[i] else other)[i] for i in range(6)])
        assert_array(case, case.framework.select(mask, *arrays), expected)
        assert_array(case, case.framework.select(case.framework.from_numpy(mask), *arrays), expected)
        for all_rows, values in ((np.zeros(6, bool), other), (np.ones(6, bool), chosen)):
            assert_array(case, case.framework.select(all_rows, *arrays), values)
        assert_array(case, arrays[0], chosen)
        assert_array(case, arrays[1], other)


def check_zeros_like(case: Case) -> None:
    for dtype in ("float32", "int32", "bool"):
        assert_array(
            case, case.framework.zeros_like(case.framework.from_numpy(table(dtype=dtype))), np.zeros((6, 3), dtype)
        )


class Pair(NamedTuple):
    one: Any
    other: Any


def check_wire(case: Case) -> None:
    values = table()
    array, plain = case.framework.from_numpy(values), table(dtype="int64")
    tree = Pair({"a": array, "b": (array, 3)}, [plain, "text", None])
    try:
        sent = to_wire(tree, case.framework)
    except EnvError as error:
        raise AssertionError("an array was pickled") from error
    assert len(sent.others) == 2, "an array was pickled"
    for _ in range(2):  # what was sent stays valid
        received = from_wire(sent, case.framework)
        assert type(received) is Pair
        assert_fresh(case, [received.one["a"], received.one["b"][0]], array, values)
        assert received.one["b"][1] == 3
        assert received.other[1:] == ["text", None]
        assert_array(case, array, values)
    alone = from_wire(to_wire(plain, case.framework), case.framework)
    assert isinstance(alone, np.ndarray)
    assert alone.tolist() == plain.tolist()
    assert not np.shares_memory(alone, plain)


def check_devices(case: Case) -> None:
    first, *others = case.framework.devices()
    assert first == "cpu"
    assert all(":" in device for device in others)


def check_probe(case: Case) -> None:
    framework = case.framework
    if framework.name == "numpy":
        return  # it has no devices
    whole, flags = framework.from_numpy(np.arange(6, dtype=np.int32)), framework.from_numpy(np.ones((2, 1), np.bool_))
    for bad, place in itertools.product((None, np.nan, np.inf, -np.inf), range(2)):
        arrays = [np.full((3, 2), 1e38, np.float32), np.zeros((3, 1), np.float32)]
        arrays[place][1, 0] = 1.0 if bad is None else bad
        probe = framework.probe([whole, *map(framework.from_numpy, arrays), flags])
        numbers = framework.to_numpy(probe)
        assert numbers.ndim == 1
        assert np.isfinite(numbers).all() == (bad is None), (bad, place)
    assert np.isfinite(framework.to_numpy(framework.probe([whole, flags]))).all()
    if framework.name != "jax":  # which has no float64 by default
        mixed = [framework.from_numpy(np.full(2, 1e300)), framework.from_numpy(np.zeros(2, np.float32))]
        assert np.isfinite(framework.to_numpy(framework.probe(mixed))).all()


def check_random_state(case: Case) -> None:
    framework = case.framework
    if case.draw is None or case.seeded_draw is None:
        assert framework.rng_state() is None
        assert framework.random_stream(5).state() == framework.random_stream(None).state() == []
        return
    outer = framework.rng_state()
    try:
        drawn = case.draw()
        assert case.draw() != drawn
        framework.set_rng_state(outer)
        five, six = framework.random_stream(5), framework.random_stream(6)
        assert case.draw() == drawn, "random_stream() touched the global generator"
        framework.set_rng_state(outer)
        five.swap()
        first = case.draw()
        five.swap()
        assert case.draw() == drawn, "swap() did not give the global generator back"
        before = five.state()
        five.swap()
        second = case.draw()
        five.swap()
        six.swap()
        assert case.draw() == case.seeded_draw(6) != first == case.seeded_draw(5)
        six.swap()
        five.load(before)
        five.swap()
        assert case.draw() == second != first, "load() did not restore what state() returned"
        five.swap()
        whole = framework.random_stream(None)
        state = whole.state()
        drawn = case.draw()
        whole.load(state)
        assert case.draw() == drawn
    finally:
        framework.set_rng_state(outer)


def check_no_grad(case: Case) -> None:
    no_grad = case.framework.no_grad()
    enabled, enable = case.grad_enabled or (lambda: False, lambda _: None)
    before = enabled()
    try:
        for outside in (True, False, True):  # one context, entered many times
            enable(outside)
            with no_grad:
                assert not enabled()
            assert enabled() == (outside and case.grad_enabled is not None)
            try:
                with no_grad:
                    raise KeyError("body")
            except KeyError:
                pass
            else:
                raise AssertionError("no_grad() swallowed an exception")
            assert enabled() == (outside and case.grad_enabled is not None)
    finally:
        enable(before)


def check_num_threads(case: Case) -> None:
    assert isinstance(case.framework.num_threads(), int)
    assert case.framework.num_threads() >= 1


def check_thread_control(case: Case) -> None:
    control = case.framework.thread_control()
    if control is None:
        return
    count, set_count = control
    before = count()
    try:
        for number in (3, 1, 2):
            set_count(number)
            assert count() == case.framework.num_threads() == number
    finally:
        set_count(before)


CONTRACT: tuple[Callable[[Case], None], ...] = (
    check_is_array,
    check_kind,
    check_from_numpy,
    check_copy,
    check_split,
    check_concatenate,
    check_select,
    check_zeros_like,
    check_wire,
    check_devices,
    check_probe,
    check_random_state,
    check_no_grad,
    check_num_threads,
    check_thread_control,
)
