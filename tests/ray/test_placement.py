"""Placement: what each worker asks of its node, whether it fits, and what the messages say is missing."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import ray

from orchestrator.ray import RayOrchestrator, placement, starting
from orchestrator.ray.bundles import Bundle
from orchestrator.ray.cluster import Cluster
from orchestrator.ray.fitting import Node, asked, fit, nodes_text
from orchestrator.ray.placement import reserve
from orchestrator.ray.starting import StartTime
from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.processes import PATIENCE, python
from tests.support.schedule import only_long
from trainer.command.run_config import parse
from workers.errors import ClusterError, ConfigError


def trainer_of(agents: Any = NullAgent, number: int = 2, **options: Any) -> Any:
    return step_trainer("warp")(
        env=counting_factory(2 * number),
        agents=[agents] * number,
        cfg={**CFG, "timesteps": 10},
        orchestrator=RayOrchestrator(**options),
    )


def nodes(*cpus: float, **more: Any) -> list[Node]:
    """Return nodes with CPUs that nobody uses."""
    return [Node(f"10.0.0.{index}", {"CPU": one, "memory": 1e9}, {"CPU": one}) for index, one in enumerate(cpus)]


def labelled(*zones: str | None) -> list[Node]:
    """Return nodes with two CPUs, in zones; None for a node without a zone."""
    of = ({} if zone is None else {"zone": zone} for zone in zones)
    return [Node(f"10.0.0.{index}", {"CPU": 2}, None, labels) for index, labels in enumerate(of)]


NUMBER = "expected a number of at least 0"
WRONG = [
    ({"num_cpus": -1}, f"num_cpus is -1; {NUMBER}, or a list with one for each simultaneous agent"),
    ({"num_cpus": [1, -1]}, f"num_cpus[1] is -1; {NUMBER}"),
    ({"num_cpus": True}, f"num_cpus is True; {NUMBER}"),
    ({"num_cpus": float("nan")}, f"num_cpus is nan; {NUMBER}"),
    ({"num_gpus": [float("inf")]}, f"num_gpus[0] is inf; {NUMBER}"),
    ({"num_cpus": None}, f"num_cpus is None; {NUMBER}"),
    ({"num_cpus": "2"}, f"num_cpus is '2'; {NUMBER}"),
    ({"num_cpus": [[1], 1]}, f"num_cpus[0] is [1]; {NUMBER}"),
    ({"num_cpus": 1e-5}, "num_cpus is 1e-05; expected 0, or at least 0.0001"),
    ({"num_gpus": 1.5}, "num_gpus is 1.5; expected a part of one GPU, or a whole number of GPUs"),
    ({"resources": {"CPU": 1}}, "resources has the key 'CPU'; use num_cpus instead"),
    ({"resources": [{}, {"GPU": 1}]}, "resources[1] has the key 'GPU'; use num_gpus instead"),
    ({"resources": {"memory": 1}}, "resources has the key 'memory'; only custom resources are supported"),
    ({"resources": {"a": -1}}, f"resources['a'] is -1; {NUMBER}"),
    ({"resources": [{"a": "1"}]}, f"resources[0]['a'] is '1'; {NUMBER}"),
    ({"resources": ["a"]}, "resources[0] is 'a'; expected a dictionary with the names and amounts of"),
    (
        {"label_selector": {"zone": 1}},
        "label_selector is {'zone': 1}; expected a dictionary with the keys of labels and",
    ),
    ({"label_selector": [{"zone": None}]}, "label_selector[0] is {'zone': None}; expected a dictionary"),
    ({"label_selector": {"zone": "-a"}}, "label_selector: Invalid label selector provided"),
    ({"strategy": "PACKED"}, "strategy is 'PACKED'; expected 'PACK', 'SPREAD' or 'STRICT_SPREAD'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        RayOrchestrator(**options)
    assert f"RayOrchestrator: {message}" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse(RayOrchestrator, options, "orchestrator.options")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpus": [1, 0.5], "num_cpus": 0},
        {"resources": [{"a": 1}, {}], "strategy": "STRICT_SPREAD"},
        {"label_selector": {"zone": "!in(a, b)"}, "strategy": "SPREAD"},
        {"label_selector": [{"ray.io/node-id": "12ab"}, {}], "num_gpus": 2},
    ],
)
def test_options_may_come_from_a_run_configuration(options: dict[str, Any]):
    assert parse(RayOrchestrator, options, "orchestrator.options") == RayOrchestrator(**options)


@pytest.mark.parametrize(
    ("option", "values"),
    [("num_cpus", [1]), ("num_gpus", (1, 1, 1)), ("resources", []), ("label_selector", [{}] * 3)],
)
def test_a_list_has_one_value_for_each_agent(option: str, values: Any):
    with pytest.raises(ConfigError, match=rf"{option} has {len(values)} values, but there are 2 simultaneous agents"):
        trainer_of(**{option: values})


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(1)])
def test_numbers_may_be_numpys(value: Any):
    assert RayOrchestrator(num_cpus=value).num_cpus == value


ONE, TWO, A = Bundle(1), Bundle(2), Bundle(1, resources={"a": 1})


@pytest.mark.parametrize(
    ("bundles", "on", "strategy", "missing"),
    [
        ([ONE] * 6, nodes(2, 1), "PACK", ["room for 3 of 6 workers"]),
        ([ONE] * 3, nodes(2, 1), "SPREAD", []),
        ([Bundle(3)] * 2, nodes(2, 2), "PACK", ["a node with 3 CPU"]),
        ([Bundle(3)] * 2, nodes(2, 3.5), "PACK", ["room for 1 of 2 workers"]),
        ([Bundle(0.3)] * 2, nodes(0.3, 0.2), "PACK", ["room for 1 of 2 workers"]),
        ([Bundle(0.1)] * 3, nodes(0.3), "PACK", []),  # 3 * 0.1 is more than 0.3
        ([Bundle(0)] * 9, nodes(0), "PACK", []),
        ([ONE] * 4, nodes(2, 2, 2), "STRICT_SPREAD", ["more nodes: STRICT_SPREAD needs 4 nodes, and 3 are alive"]),
        ([ONE] * 3, nodes(2, 2, 0), "STRICT_SPREAD", ["room for 1 of 3 workers"]),
        ([ONE, TWO], nodes(2, 1), "STRICT_SPREAD", []),  # the first one must leave the larger node to the second
        ([ONE, A], nodes(2), "PACK", ["a node with 1 CPU, 1 a, for scope 1"]),
        ([ONE, A, ONE, A], [Node("x", {"CPU": 9, "a": 1}), *nodes(9)], "PACK", ["room for 1 of 4 workers"]),
        ([Bundle(1, 1)] * 2, nodes(4), "PACK", ["a node with 1 CPU, 1 GPU"]),
        ([ONE, Bundle(3)], nodes(3), "PACK", ["room for 1 of 2 workers"]),
        ([ONE], [], "PACK", ["a node with 1 CPU"]),
    ],
)
def test_whether_workers_fit(bundles: list[Bundle], on: list[Node], strategy: Any, missing: list[str]):
    assert fit(bundles, on, strategy) == (missing, True)


def test_a_distribution_that_was_not_found_may_exist():
    """The large ones come first: 3 and 3 go to the first node, and 2, 2 and 2 need more than 5 on the other."""
    bundles = [Bundle(one) for one in (2, 3, 2, 3, 2)]
    assert fit(bundles, nodes(6, 6), "PACK") == ([], True)
    missing = ["room for 1 of 5 workers, unless Ray finds a better distribution"]
    assert fit(bundles, nodes(7, 5), "PACK") == (missing, False)


@pytest.mark.parametrize(
    ("selector", "fitting"),
    [("a", 1), ("!a", 3), ("in(a, b)", 2), ("!in(a,b)", 2), ("in(c)", 1), ("d", 0)],
)
def test_labels_select_nodes(selector: str, fitting: int):
    """A node without the label is not selected, but is where a value is excluded."""
    bundles = [Bundle(2, label_selector={"zone": selector})] * 4
    text = f"room for {4 - fitting} of 4 workers" if fitting else f"a node with the label zone={selector}"
    assert fit(bundles, labelled("a", "b", "c", None), "PACK").missing == [text]


def test_what_was_asked_is_said_together_where_it_is_equal():
    selective = Bundle(0.5, label_selector={"zone": "a", "disk": "!hdd"})
    assert asked([ONE] * 6, "PACK") == "6 workers with 1 CPU each"
    assert asked([ONE], "PACK") == "1 worker with 1 CPU"
    assert asked([A, A], "STRICT_SPREAD") == "2 workers with 1 CPU, 1 a each (each on a node of its own)"
    assert asked([TWO, *[selective] * 6, TWO], "SPREAD") == (
        "8 workers (scopes 0, 7 with 2 CPU; scopes 1, 2, 3, 4 and 2 more with 0.5 CPU and the labels zone=a, disk=!hdd)"
    )


def test_each_node_is_described_and_a_long_list_is_shortened():
    bundle = Bundle(1, 0.5, {"a": 1}, {"zone": "a"})
    on = [
        Node("10.0.0.1", {"CPU": 4, "GPU": 1, "b": 9}, {"CPU": 1.5, "GPU": 1}, {"zone": "b", "disk": "ssd"}),
        Node("10.0.0.2", {"CPU": 2}, None, {}),
    ]
    assert nodes_text([bundle], on, "PACK") == [
        "10.0.0.1 has 4 CPU (1.5 free), 1 GPU (1 free), 0 a (0 free), zone=b",
        "10.0.0.2 has 2 CPU, 0 GPU, 0 a, no label zone",
    ]
    lines = nodes_text([ONE] * 30, nodes(*[2] * 20), "STRICT_SPREAD")
    assert len(lines) == 10
    assert lines[-2:] == ["... and 12 more nodes", "free at the moment: room for 20 of 30 workers"]
    assert nodes_text([ONE], [], "PACK") == ["no node is alive"]


class Fake:
    """A cluster with these nodes."""

    def __init__(self, *cpus: float, may_grow: bool = False) -> None:
        self.nodes, self.may_grow = nodes(*cpus), may_grow


def test_what_does_not_fit_on_a_cluster_that_cannot_grow_is_refused_at_once():
    with pytest.raises(ClusterError) as caught:
        reserve(Fake(2, 1), [ONE] * 6, strategy="PACK", time=StartTime(60))  # type: ignore[arg-type]
    assert str(caught.value).splitlines() == [
        "6 workers with 1 CPU each were requested, but Ray has no room for them:",
        "  10.0.0.0 has 2 CPU (2 free)",
        "  10.0.0.1 has 1 CPU (1 free)",
        "  free at the moment: room for 3 of 6 workers",
        "  missing: room for 3 of 6 workers",
        "  use fewer simultaneous agents, fewer resources for each (RayOrchestrator(num_cpus=…)) or a larger cluster, "
        "and close() unused trainers",
    ]


def test_the_remedy_names_what_was_asked_for():
    asked = [Bundle(1, 0.5), Bundle(0, 1, {"a": 1}, {"zone": "a"})]
    with pytest.raises(ClusterError) as caught:
        reserve(Fake(2), asked, strategy="PACK", time=StartTime(60))  # type: ignore[arg-type]
    options = "RayOrchestrator(num_cpus=…, num_gpus=…, resources=…, label_selector=…)"
    assert f"fewer resources for each ({options}) or a larger cluster" in str(caught.value)


def test_a_cluster_that_may_grow_is_waited_for_and_the_wait_is_explained(ray_cluster, caplog, monkeypatch):
    monkeypatch.setattr(placement, "_LOOK_INTERVAL", 0.05)
    cluster = Cluster(connection="here")
    monkeypatch.setattr(Cluster, "may_grow", True)
    with pytest.raises(ClusterError, match=r"no room for them \(waited 0 s\)"):
        reserve(cluster, [Bundle(3)] * 2, strategy="PACK", time=StartTime(0.2))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("waiting up to 0 s for the cluster to fit 2 workers with 3 CPU each:\n  ")
    assert warning.endswith("missing: room for 1 of 2 workers")


def test_a_user_s_own_ray_does_not_grow(ray_cluster):
    """This process has started it, as `ray.init()` does."""
    with pytest.raises(
        ClusterError, match=r"(?s)9 workers with 1 CPU each were .* has 4 CPU \(4 free\).*room for 5 of 9"
    ):
        trainer_of(number=9)
    with pytest.raises(ClusterError, match="more nodes: STRICT_SPREAD needs 2 nodes, and 1 is alive"):
        trainer_of(strategy="STRICT_SPREAD")
    with pytest.raises(ClusterError, match="missing: a node with the label zone=a, for scope 1"):
        trainer_of(label_selector=[{}, {"zone": "a"}])


def test_a_placement_that_is_only_busy_is_waited_for_a_while(ray_cluster, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lockstep")
    monkeypatch.setattr(starting, "_FIRST_LINE", 0.05)
    monkeypatch.setattr(placement, "_LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(placement, "_BUSY_TIMEOUT", 0.3)
    error = (
        r"(?s)2 workers with 1 CPU each were requested, but Ray has no room for them \(waited 0 s\):.* has 4 CPU \(1 "
        r"free\)\n  free at the moment: room for 1 of 2 workers\n  use fewer"
    )
    with trainer_of(num_cpus=1.5), pytest.raises(ClusterError, match=error):
        trainer_of(num_cpus=1)
    assert "waiting for room for 2 workers with 1 CPU each (0 s)" in caplog.text
    monkeypatch.setattr(placement, "_BUSY_TIMEOUT", PATIENCE)
    trainer_of(num_cpus=2).close()  # nothing stays reserved


def test_amounts_are_counted_as_ray_counts_them_and_nothing_finds_room_everywhere(ray_cluster):
    time = StartTime(PATIENCE)
    for bundles in ([Bundle(4)], [Bundle(0)] * 3, [Bundle(0.1)] * 3):
        group = reserve(Fake(4), bundles, strategy="PACK", time=time)  # type: ignore[arg-type]
        if bundles != [Bundle(4)]:
            ray.util.remove_placement_group(group)
            continue
        nothing = reserve(Fake(4), [Bundle(0)] * 3, strategy="PACK", time=time)  # type: ignore[arg-type]
        ray.util.remove_placement_group(nothing)
        ray.util.remove_placement_group(group)


class Told(NullAgent):
    """Logs what its process was given, once, as a warning."""

    def __init__(self, scope: Any) -> None:
        super().__init__()
        context = ray.get_runtime_context()
        given = ", ".join(f"{name}: {amount}" for name, amount in sorted(context.get_assigned_resources().items()))
        logging.getLogger("lockstep").warning("scope %d has %s on %s", scope.index, given, context.get_node_id())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return sorted(text for record in caplog.records if (text := record.getMessage()).startswith("scope "))


def test_each_actor_has_what_was_asked_for_it(ray_cluster, caplog):
    (node,) = (one["NodeID"] for one in ray.nodes())
    here = f"node:{ray.nodes()[0]['NodeManagerAddress']}"
    options: dict[str, Any] = {
        "num_cpus": [0, 1.5],
        "resources": [{here: 0.25}, {}],
        "label_selector": {"ray.io/node-id": node},
    }
    trainer_of(Told, **options).close()
    assert told(caplog) == [f"scope 0 has {here}: 0.25 on {node}", f"scope 1 has CPU: 1.5 on {node}"]


SEVERAL_NODES = """
import ray, sys
from ray.cluster_utils import Cluster as Raylets
from tests.ray.test_placement import *

raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
raylets.add_node(num_cpus=2, resources={"a": 1}, labels={"zone": "x"})
raylets.wait_for_nodes()
ray.init(raylets.address, log_to_driver=False, logging_level="warning")
names = {one["NodeID"]: "second" if "a" in one["Resources"] else "head" for one in ray.nodes()}
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("lockstep").addHandler(handler)

def nodes_of(**options):
    lines.clear()
    trainer_of(Told, **options).close()
    told = sorted(line for line in lines if line.startswith("scope "))
    print([names[line.rpartition(" ")[2]] for line in told], [line.split(" has ")[1].split(" on ")[0] for line in told])

nodes_of(num_cpus=0.5)
nodes_of(num_cpus=0.5, strategy="STRICT_SPREAD")
nodes_of(num_cpus=[1, 0.5], resources=[{"a": 0.5}, {}], strategy="STRICT_SPREAD")
nodes_of(num_cpus=[1.5, 1], resources=[{}, {"a": 0.5}])
nodes_of(label_selector={"zone": "x"})
nodes_of(label_selector=[{"zone": "!x"}, {"zone": "x"}])
try:
    trainer_of(number=3, strategy="STRICT_SPREAD", start_timeout=1)
except ClusterError as error:
    print(error)
ray.shutdown()
raylets.shutdown()
"""


@only_long
def test_workers_are_spread_and_placed_by_label_on_several_nodes():
    """In another process, because this one may be connected to Ray."""
    done = python("-c", SEVERAL_NODES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    both, either = "['CPU: 0.5', 'CPU: 0.5']", ("['head', 'second']", "['second', 'head']")
    assert lines[0] in [f"{[node] * 2} {both}" for node in ("head", "second")]
    assert lines[1] in [f"{order} {both}" for order in either]
    assert lines[2:6] == [
        "['second', 'head'] ['CPU: 1.0, a: 0.5', 'CPU: 0.5']",
        "['head', 'second'] ['CPU: 1.5', 'CPU: 1.0, a: 0.5']",
        "['second', 'second'] ['CPU: 1.0', 'CPU: 1.0']",
        "['head', 'second'] ['CPU: 1.0', 'CPU: 1.0']",
    ]
    assert lines[6].startswith(
        "3 workers with 1 CPU each (each on a node of its own) were requested, but Ray has no room"
    )
    assert "  missing: more nodes: STRICT_SPREAD needs 3 nodes, and 2 are alive" in lines
