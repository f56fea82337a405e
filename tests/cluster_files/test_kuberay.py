"""The Kubernetes files: pods by Kubernetes' own schema; the fields of KubeRay's kinds by its API reference.

KubeRay's CRD is in no package, so the fields around the pods are listed here, as KubeRay 1.6 has them.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster"
VERSION = kubernetes_validate.latest_version()
INTEGER, STRING, BOOLEAN = {"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
POD: dict[str, Any] = {"type": "object"}  # checked with Kubernetes' schema


def fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


WORKER_GROUP = fields(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string", "pattern": "^[a-z0-9-]{1,58}$"},
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    numOfHosts=INTEGER,
    idleTimeoutSeconds=INTEGER,
    suspend=BOOLEAN,
    rayStartParams=STRINGS,
    template=POD,
)
CLUSTER = fields(
    ["headGroupSpec"],
    rayVersion=STRING,
    enableInTreeAutoscaling=BOOLEAN,
    suspend=BOOLEAN,
    headServiceAnnotations=STRINGS,
    authOptions=fields(["mode"], mode={"enum": ["token", "disabled"]}, secretName=STRING, enableK8sTokenAuth=BOOLEAN),
    autoscalerOptions=fields(
        [],
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=INTEGER,
        resources=POD,
        securityContext=POD,
        env={"type": "array"},
        image=STRING,
        version={"enum": ["v1", "v2"]},
    ),
    gcsFaultToleranceOptions=fields([], redisAddress=STRING),
    headGroupSpec=fields(
        ["template"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress=BOOLEAN,
        rayStartParams=STRINGS,
        template=POD,
    ),
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB = fields(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=STRING,
    entrypointResources=STRING,
    entrypointNumCpus={"type": "number"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=INTEGER,
    activeDeadlineSeconds=INTEGER,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
    ttlSecondsAfterFinished=INTEGER,
    submitterConfig=fields([], backoffLimit=INTEGER),
    submitterPodTemplate=POD,
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=STRING,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}
FOLDERS = {"rayjob": "rayjob"}
QUEUE = "kueue.x-k8s.io/queue-name"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / FOLDERS.get(name, "kuberay") / f"{name}.yaml").read_text())


def cluster_of(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> dict[str, dict[str, Any]]:
    cluster = cluster_of(name)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in load(name)["spec"]:
        found["submitter"] = load(name)["spec"]["submitterPodTemplate"]
    return found


def check_pod(template: dict[str, Any]) -> None:
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "PodTemplate", "template": template}, VERSION, strict=True
    )


BOTH = pytest.mark.parametrize("name", ["raycluster", "rayjob"])


@BOTH
def test_the_fields_around_the_pods_are_kuberays(name: str) -> None:
    found = load(name)
    assert found["apiVersion"] == "ray.io/v1"
    jsonschema.validate(found["spec"], SPECS[found["kind"]])
    with pytest.raises(jsonschema.ValidationError, match="autoscaling"):
        jsonschema.validate({**found["spec"], "autoscaling": True}, SPECS[found["kind"]])


@BOTH
def test_every_pod_fits_the_schema_of_kubernetes(name: str) -> None:
    for template in pods(name).values():
        check_pod(template)
    misspelt = copy.deepcopy(pods(name)["head"])
    misspelt["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        check_pod(misspelt)


@pytest.mark.parametrize("name", ["storage", "network"])
def test_other_objects_fit_the_schema_of_kubernetes(name: str) -> None:
    kubernetes_validate.validate(load(name), VERSION, strict=True)


@BOTH
def test_nobody_is_root_and_every_container_has_limits(name: str) -> None:
    for template in pods(name).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 1000
        for container in spec["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


@BOTH
def test_nodes_are_probed_and_see_the_shared_folder(name: str) -> None:
    for group, template in pods(name).items():
        if group == "submitter":
            continue
        (container,) = template["spec"]["containers"]
        assert "api/local_raylet_healthz" in " ".join(container["livenessProbe"]["exec"]["command"])
        assert "api/local_raylet_healthz" in " ".join(container["readinessProbe"]["exec"]["command"])
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]


@BOTH
def test_nodes_say_how_full_their_disk_is(name: str) -> None:
    asked = {"name": "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "value": "1"}
    for group, template in pods(name).items():
        assert group == "submitter" or asked in template["spec"]["containers"][0]["env"]


@BOTH
def test_the_cluster_asks_for_a_token_and_scales_its_workers(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert any(group["maxReplicas"] > group["minReplicas"] for group in cluster["workerGroupSpecs"])


@BOTH
def test_the_driver_has_a_group_that_is_not_taken_away(name: str) -> None:
    groups = {group["groupName"]: group for group in cluster_of(name)["workerGroupSpecs"]}
    # Quoted twice: the value becomes part of a shell command.
    assert json.loads(json.loads(groups["driver"]["rayStartParams"]["resources"])) == {"spirl_driver": 1}
    assert groups["driver"]["minReplicas"] >= 1
    assert groups["driver"]["template"]["spec"]["nodeSelector"] == {"spirl-ray/capacity": "on-demand"}
    assert groups["spot"]["template"]["spec"]["nodeSelector"] == {"spirl-ray/capacity": "spot"}
    assert "resources" not in groups["spot"]["rayStartParams"]


def test_the_job_runs_its_driver_there_and_is_tried_again() -> None:
    spec = load("rayjob")["spec"]
    assert json.loads(spec["entrypointResources"]) == {"spirl_driver": 1}
    assert spec["backoffLimit"] >= 1
    assert spec["entrypoint"].startswith("spirl run ")
    assert "output=/shared/" in spec["entrypoint"]


def test_the_version_of_ray_is_the_pinned_one() -> None:
    pinned = [line for line in (FOLDER.parent / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    for name in ("raycluster", "rayjob"):
        assert pinned == [f"ray=={cluster_of(name)['rayVersion']}"]


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """The objects that ``kubectl apply -k`` makes of a folder, as far as our kustomizations go."""
    found = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects: list[dict[str, Any]] = []
    for name in found.get("resources", []):
        path = folder / name
        objects += kustomized(path) if path.is_dir() else [yaml.safe_load(path.read_text())]
    for generated in found.get("configMapGenerator", []):
        data = {file: (folder / file).read_text() for file in generated["files"]}
        labels = generated["options"]["labels"]
        metadata = {"name": generated["name"], "labels": labels}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for name in found.get("components", []):
        for patch in yaml.safe_load((folder / name / "kustomization.yaml").read_text())["patches"]:
            for one in objects:
                if (one["kind"], one["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"]):
                    for step in yaml.safe_load(patch["patch"]):
                        apply(one, **step)
    return objects


def apply(node: Any, op: str, path: str, value: Any = None) -> None:
    """One step of a JSON patch (RFC 6902); what is to be replaced, removed or compared must be there."""
    *parents, last = [part.replace("~1", "/") for part in path.split("/")[1:]]
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if op == "test":
        assert node[last] == value
        return
    if op != "add":
        del node[last]
    if op != "remove":
        node[last] = value


def by_kind(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in objects}


def test_kustomize_makes_the_cluster_and_its_dashboard() -> None:
    found = by_kind(kustomized(FOLDER))
    kinds = {"PersistentVolumeClaim", "NetworkPolicy", "RayCluster", "PodMonitor", "PrometheusRule", "ConfigMap"}
    assert set(found) == kinds
    assert found["RayCluster"] == load("raycluster")
    assert found["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert set(found["ConfigMap"]["data"]) == {"spirl-ray.json"}


@pytest.mark.parametrize(("folder", "kind"), [("cluster", "RayCluster"), ("job", "RayJob")])
def test_kueue_admits_the_whole_cluster_at_once(folder: str, kind: str) -> None:
    objects = kustomized(FOLDER / "kueue" / folder)
    assert len(objects) == (6 if folder == "cluster" else 1)
    found = by_kind(objects)[kind]
    assert found["metadata"]["labels"][QUEUE] == "spirl-ray"
    assert found["spec"]["suspend"] is True
    jsonschema.validate(found["spec"], SPECS[kind])
    # Kueue's webhooks refuse all else.
    spec = found["spec"].get("rayClusterSpec", found["spec"])
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    assert found["spec"].get("shutdownAfterJobFinishes", True)
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"driver", "spot"}
    for group in groups.values():
        assert 1 <= group["replicas"] <= group["maxReplicas"]
        assert all(container["resources"]["requests"] for container in group["template"]["spec"]["containers"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which has kustomize")
@pytest.mark.parametrize("folder", [".", "kueue/cluster", "kueue/job"])
def test_kubectl_makes_the_same_objects(folder: str) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert by_kind(list(yaml.safe_load_all(done.stdout))) == by_kind(kustomized(FOLDER / folder))


def test_the_pods_that_are_scraped_are_the_clusters() -> None:
    monitor = load("monitoring")
    selected = monitor["spec"]["selector"]["matchLabels"]
    for template in (template for group, template in pods("raycluster").items() if group != "submitter"):
        assert selected.items() <= template["metadata"]["labels"].items()


@BOTH
def test_the_network_policy_lets_the_pods_reach_each_other(name: str) -> None:
    policy = load("network")["spec"]
    (everywhere,) = [rule for rule in policy["ingress"] if "ports" not in rule]
    admitted = [peer["podSelector"]["matchLabels"] for peer in everywhere["from"]]
    for template in pods(name).values():
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert any(labels.items() <= template["metadata"]["labels"].items() for labels in admitted)
