"""Whether workers fit on the nodes of a cluster: pure functions, and the text that says what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from orchestrator.ray.bundles import UNIT, Bundle

__all__ = ["Fit", "Node", "Strategy", "asked", "fit", "nodes_text"]

Strategy = Literal["PACK", "SPREAD", "STRICT_SPREAD"]

_MOST_NODES = 8
_MOST_NAMED = 4


class Node(NamedTuple):
    """What a living node has.

    Attributes:
        address: Its address.
        total: All its resources, by Ray's names.
        free: The part of them that nobody uses; None if that is not known.
        labels: Its labels.
    """

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float] | None = None
    labels: Mapping[str, str] = {}


class Fit(NamedTuple):
    """Whether workers fit on nodes that nobody else uses.

    Attributes:
        missing: What is missing; empty if they fit.
        is_certain: Whether no other distribution could make them fit.
    """

    missing: Sequence[str]
    is_certain: bool


def fit(bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy) -> Fit:
    """Distribute workers over nodes.

    The result is exact for equal bundles and for a single node. Otherwise, bundles that fit on few nodes and large ones
    come first, each on the first node with room. That may miss a distribution that exists, and then is not certain.
    """
    missing = _never(bundles, nodes, strategy)
    if missing:
        return Fit(missing, True)
    placed = _placed(bundles, [node.total for node in nodes], nodes, strategy)
    if placed == len(bundles):
        return Fit([], True)
    is_certain = len(nodes) == 1 or len(_grouped(bundles)) == 1 or _exceeds(bundles, nodes)
    text = f"room for {len(bundles) - placed} of {_workers(len(bundles))}"
    return Fit([text if is_certain else f"{text}, unless Ray finds a better distribution"], is_certain)


def asked(bundles: Sequence[Bundle], strategy: Strategy) -> str:
    """Return what the workers ask for, in words; equal ones together."""
    groups = _grouped(bundles)
    workers = _workers(len(bundles))
    if len(groups) == 1:
        each = " each" if len(bundles) > 1 else ""
        text = f"{workers} with {_bundle_text(bundles[0])}{each}"
    else:
        parts = [f"{_scopes(indices)} with {_bundle_text(bundle)}" for bundle, indices in groups]
        text = f"{workers} ({'; '.join(parts)})"
    return f"{text} (each on a node of its own)" if strategy == "STRICT_SPREAD" else text


def nodes_text(bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy) -> list[str]:
    """Return a line for each node with the resources and labels that the workers ask for, and one for what is free."""
    names = list(dict.fromkeys(name for bundle in bundles for name in bundle.amounts))
    keys = list(dict.fromkeys(key for bundle in bundles for key in bundle.label_selector))
    lines = [_node_text(node, names, keys) for node in nodes[:_MOST_NODES]]
    if len(nodes) > _MOST_NODES:
        lines.append(f"... and {len(nodes) - _MOST_NODES} more nodes")
    free = [node.free for node in nodes if node.free is not None]
    if nodes and len(free) == len(nodes):
        placed = _placed(bundles, free, nodes, strategy)
        lines.append(f"free at the moment: room for {placed} of {_workers(len(bundles))}")
    return lines or ["no node is alive"]


def _node_text(node: Node, names: Sequence[str], keys: Sequence[str]) -> str:
    has = [
        f"{node.total.get(name, 0):g} {name}" + ("" if node.free is None else f" ({node.free.get(name, 0):g} free)")
        for name in names
    ]
    has += [f"{key}={node.labels[key]}" if key in node.labels else f"no label {key}" for key in keys]
    return f"{node.address} has {', '.join(has)}" if has else node.address


def _never(bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy) -> list[str]:
    """Return why some workers fit on no node, or why there are too few nodes."""
    missing = []
    groups = _grouped(bundles)
    for bundle, indices in groups:
        whose = "" if len(groups) == 1 else f", for {_scopes(indices)}"
        selected = [node for node in nodes if _is_selected(bundle, node)]
        if not selected and bundle.label_selector:
            missing.append(f"a node with {_selector_text(bundle)}{whose}")
        elif not any(_fits(_units(bundle.amounts), _units(node.total)) for node in selected):
            missing.append(f"a node with {_bundle_text(bundle)}{whose}")
    if strategy == "STRICT_SPREAD" and len(nodes) < len(bundles):
        are = "is" if len(nodes) == 1 else "are"
        missing.append(f"more nodes: STRICT_SPREAD needs {len(bundles)} nodes, and {len(nodes)} {are} alive")
    return missing


def _placed(
    bundles: Sequence[Bundle], amounts: Sequence[Mapping[str, float]], nodes: Sequence[Node], strategy: Strategy
) -> int:
    """Return how many bundles have found room in the amounts of the nodes."""
    left = [_units(one) for one in amounts]
    places = [[index for index, node in enumerate(nodes) if _is_selected(bundle, node)] for bundle in bundles]
    needs = [_units(bundle.amounts) for bundle in bundles]
    possible = [[index for index in some if _fits(need, left[index])] for need, some in zip(needs, places, strict=True)]
    order = sorted(range(len(bundles)), key=lambda index: (len(possible[index]), -sum(needs[index].values())))
    taken: set[int] = set()
    placed = 0
    for which in order:
        need = needs[which]
        place = next((index for index in possible[which] if index not in taken and _fits(need, left[index])), None)
        if place is None:
            continue
        placed += 1
        left[place] |= {name: left[place][name] - amount for name, amount in need.items()}
        if strategy == "STRICT_SPREAD":
            taken.add(place)
    return placed


def _exceeds(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Return whether the workers need more than all nodes have together."""
    return not _fits(_sum(_units(bundle.amounts) for bundle in bundles), _sum(_units(node.total) for node in nodes))


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total


def _units(amounts: Mapping[str, float]) -> dict[str, int]:
    return {name: round(amount * UNIT) for name, amount in amounts.items()}


def _fits(need: Mapping[str, int], has: Mapping[str, int]) -> bool:
    return all(has.get(name, 0) >= amount for name, amount in need.items())


def _is_selected(bundle: Bundle, node: Node) -> bool:
    return all(_selects(selector, node.labels.get(key)) for key, selector in bundle.label_selector.items())


def _selects(selector: str, label: str | None) -> bool:
    """Return whether a selector as Ray writes it, such as ``"!in(a, b)"``, selects a label; None if there is none."""
    body = selector.removeprefix("!")
    values = body.partition("(")[2][:-1].split(",") if body.endswith(")") else [body]
    return (label in [value.strip() for value in values]) != selector.startswith("!")


def _grouped(bundles: Sequence[Bundle]) -> list[tuple[Bundle, list[int]]]:
    """Return the different bundles, and the scopes that have them."""
    groups: list[tuple[Bundle, list[int]]] = []
    for index, bundle in enumerate(bundles):
        same = next((indices for one, indices in groups if one == bundle), None)
        if same is None:
            groups.append((bundle, [index]))
        else:
            same.append(index)
    return groups


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _scopes(indices: Sequence[int]) -> str:
    named = ", ".join(map(str, indices[:_MOST_NAMED]))
    more = "" if len(indices) <= _MOST_NAMED else f" and {len(indices) - _MOST_NAMED} more"
    return f"scope{'' if len(indices) == 1 else 's'} {named}{more}"


def _bundle_text(bundle: Bundle) -> str:
    amounts = ", ".join(f"{amount:g} {name}" for name, amount in bundle.amounts.items()) or "0 CPU"
    return f"{amounts} and {_selector_text(bundle)}" if bundle.label_selector else amounts


def _selector_text(bundle: Bundle) -> str:
    labels = ", ".join(f"{key}={selector}" for key, selector in bundle.label_selector.items())
    return f"the label{'s' if len(bundle.label_selector) > 1 else ''} {labels}"
