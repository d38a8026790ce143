"""The RayJob: its fields, the token, the memory, and that its command is one that works.

``make test`` checks the fields with `rayjob_schema`. To check them with all of KubeRay's schema, download
helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of KubeRay 1.7.0 and set ``LOCKSTEP_KUBERAY_CRD`` to its path.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]

from tests.deploy.rayjob_schema import RAY_JOB, closed
from tests.support.packaging import PINS
from tests.support.processes import ROOT
from trainer import __version__
from trainer.command.run_config import load_config

CRD = os.environ.get("LOCKSTEP_KUBERAY_CRD")
CRD_SHA256 = "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5"  # of KubeRay 1.7.0

CLAIM, JOB = yaml.safe_load_all((ROOT / "deploy" / "kuberay-rayjob.yaml").read_text(encoding="utf-8"))
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, *WORKERS = [group["template"]["spec"] for group in [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]]

SCHEMAS = ["rayjob_schema", *(["KubeRay"] if CRD else [])]


@pytest.fixture(scope="module")
def kuberay() -> dict[str, Any]:
    """KubeRay's own schema of a RayJob."""
    assert CRD is not None
    data = Path(CRD).read_bytes()
    assert hashlib.sha256(data).hexdigest() == CRD_SHA256, f"{CRD} is not that of KubeRay 1.7.0"
    versions = {version["name"]: version for version in yaml.load(data, yaml.CSafeLoader)["spec"]["versions"]}
    schema: dict[str, Any] = versions["v1"]["schema"]["openAPIV3Schema"]
    return schema


@pytest.fixture(params=SCHEMAS)
def validator(request: pytest.FixtureRequest) -> Draft202012Validator:
    schema = RAY_JOB if request.param == "rayjob_schema" else request.getfixturevalue("kuberay")
    return Draft202012Validator(closed(schema))


def test_the_manifest_is_valid(validator: Draft202012Validator):
    validator.validate(JOB)
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")


MISTAKES: list[tuple[str, Any]] = [
    ("spec.entryPoint", "lockstep doctor"),
    ("spec.shutdownAfterJobFinishes", "yes"),
    ("spec.rayClusterSpec.authOptions.mode", "tokens"),
    ("spec.rayClusterSpec.authOption", {"mode": "token"}),
    ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
    ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resource", {}),
    ("spec.rayClusterSpec.headGroupSpec.template.spec.volumes.1.emptyDir.size", "2Gi"),
    ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "2"),
    ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.containers.0.volumeMounts.0.path", "/dev/shm"),
]


@pytest.mark.parametrize(("where", "value"), MISTAKES, ids=[where for where, _ in MISTAKES])
def test_a_mistake_is_refused(where: str, value: Any, validator: Draft202012Validator):
    *path, last = where.split(".")
    job = copy.deepcopy(JOB)
    target = job
    for key in path:
        target = target[int(key)] if isinstance(target, list) else target[key]
    target[last] = value
    with pytest.raises(ValidationError):
        validator.validate(job)


@pytest.mark.parametrize("missing", ["groupName", "maxReplicas", "template"])
def test_what_is_missing_is_refused(missing: str, validator: Draft202012Validator):
    job = copy.deepcopy(JOB)
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0][missing]
    with pytest.raises(ValidationError, match=missing):
        validator.validate(job)


def differences(ours: dict[str, Any], theirs: dict[str, Any], where: str = "RayJob") -> Iterator[str]:
    """Yield where the part of the schema that we wrote down is not a part of KubeRay's."""
    kinds = ours["type"] if isinstance(ours["type"], list) else [ours["type"]]
    if sorted(kinds) != sorted(kind["type"] for kind in theirs.get("anyOf", [theirs])):
        yield f"{where}: type"
    if ours.get("enum") != theirs.get("enum"):
        yield f"{where}: enum"
    if set(ours.get("required", [])) != set(theirs.get("required", [])):
        yield f"{where}: required"
    for name, schema in ours.get("properties", {}).items():
        if name not in theirs["properties"]:
            yield f"{where}.{name}"
        else:
            yield from differences(schema, theirs["properties"][name], f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        if key in ours:
            yield from differences(ours[key], theirs[key], f"{where}.{key}")


@pytest.mark.skipif(CRD is None, reason="LOCKSTEP_KUBERAY_CRD is not set")
def test_our_part_of_the_schema_is_a_part_of_kuberays(kuberay: dict[str, Any]):
    assert list(differences(RAY_JOB, kuberay)) == []


def test_the_token_comes_from_a_secret():
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "lockstep-ray-token"}
    text = (ROOT / "deploy" / "kuberay-rayjob.yaml").read_text(encoding="utf-8")
    assert "kubectl create secret generic lockstep-ray-token --from-file=auth_token=" in text
    assert "RAY_AUTH_TOKEN" not in text


def test_nothing_is_reachable_from_outside():
    assert CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert CLUSTER["headGroupSpec"]["enableIngress"] is False
    assert not any("hostPort" in str(pod) or "hostNetwork" in str(pod) for pod in [HEAD, *WORKERS])


@pytest.mark.parametrize("pod", [HEAD, *WORKERS], ids=["head", "cpu", "gpu"])
def test_every_pod_has_shared_memory_and_limits_and_is_not_root(pod: dict[str, Any]):
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    (shared,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == shared]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert volume["emptyDir"]["sizeLimit"]


def test_the_cluster_ends_with_the_job():
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
    assert JOB["spec"]["ttlSecondsAfterFinished"] > 0


def test_the_image_has_the_versions_of_this_project():
    assert CLUSTER["rayVersion"] == PINS["ray"]
    tags = [pod["containers"][0]["image"].partition(":")[2] for pod in [HEAD, *WORKERS]]
    assert tags == [__version__, __version__, f"{__version__}-cu130"]


def test_the_command_trains_an_example_in_ray_and_keeps_its_run_directory():
    command, train, config, resume, *settings = shlex.split(JOB["spec"]["entrypoint"])
    assert (command, train, resume) == ("lockstep", "train", "--resume")
    example = ROOT / Path(config).relative_to("/srv/lockstep")
    overrides = [setting for setting in settings if setting != "--set"]
    assert settings == [word for override in overrides for word in ("--set", override)]
    loaded = load_config(example.read_text(encoding="utf-8"), overrides)
    assert loaded.orchestrator.kind == "ray"
    assert loaded.logging.directory is not None
    (mount,) = [one for one in HEAD["containers"][0]["volumeMounts"] if one["mountPath"] != "/dev/shm"]
    assert Path(loaded.logging.directory).parent == Path(mount["mountPath"])
    (volume,) = [one for one in HEAD["volumes"] if one["name"] == mount["name"]]
    assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


def test_the_agents_fit_on_the_workers():
    """The head takes none: it has no CPUs for Ray."""
    assert CLUSTER["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    cpus = [
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in CLUSTER["workerGroupSpecs"]
    ]
    config = shlex.split(JOB["spec"]["entrypoint"])[2]
    example = load_config((ROOT / Path(config).relative_to("/srv/lockstep")).read_text(encoding="utf-8"))
    assert sum(cpus) >= len(example.agents)
