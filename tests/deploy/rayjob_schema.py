"""What a RayJob of KubeRay may contain: the part that our manifest uses, written down field by field.

KubeRay's own schema, a CustomResourceDefinition of 1.4 MB, is not part of this repository. `test_kuberay.py` compares
this one with it where it is at hand.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RAY_JOB", "closed"]

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}
QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}


def closed(schema: Any) -> Any:
    """Return a schema in which objects with named properties have no others, as `kubectl apply` sees them.

    The API server drops unknown fields, unless the schema says that it keeps them.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copied = {key: closed(value) for key, value in schema.items()}
    if isinstance(copied.get("properties"), dict) and not copied.get("x-kubernetes-preserve-unknown-fields"):
        copied.setdefault("additionalProperties", False)
    return copied


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_CONTAINER = _object(
    "name",
    name=STRING,
    image=STRING,
    resources=_object(requests=QUANTITIES, limits=QUANTITIES),
    securityContext=_object(allowPrivilegeEscalation=BOOLEAN, capabilities=_object(drop=_list(STRING))),
    volumeMounts=_list(_object("name", "mountPath", name=STRING, mountPath=STRING)),
)
_VOLUME = _object(
    "name",
    name=STRING,
    emptyDir=_object(medium=STRING, sizeLimit={"type": ["integer", "string"]}),
    persistentVolumeClaim=_object("claimName", claimName=STRING),
)
_POD = _object(
    spec=_object(
        "containers",
        securityContext=_object(runAsNonRoot=BOOLEAN, runAsUser=INTEGER, fsGroup=INTEGER),
        containers=_list(_CONTAINER),
        volumes=_list(_VOLUME),
    )
)
_PARAMETERS: Schema = {"type": "object", "additionalProperties": STRING}
_HEAD = _object("template", serviceType=STRING, enableIngress=BOOLEAN, rayStartParams=_PARAMETERS, template=_POD)
_WORKERS = _object(
    "groupName",
    "maxReplicas",
    "minReplicas",
    "template",
    groupName=STRING,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    rayStartParams=_PARAMETERS,
    template=_POD,
)
_CLUSTER = _object(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=_object(mode={"type": "string", "enum": ["disabled", "token"]}, secretName=STRING),
    headGroupSpec=_HEAD,
    workerGroupSpecs=_list(_WORKERS),
)

RAY_JOB: Schema = _object(
    apiVersion=STRING,
    kind=STRING,
    metadata={"type": "object"},
    spec=_object(
        entrypoint=STRING, shutdownAfterJobFinishes=BOOLEAN, ttlSecondsAfterFinished=INTEGER, rayClusterSpec=_CLUSTER
    ),
)
"""JSON schema of ``ray.io/v1`` RayJob, still open: see `closed`."""
