"""The Helm chart, linted and rendered by Helm's own engine, and what it says of the server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import millpond
from millpond.cli import app
from millpond.server.process.run import LAST_RESPONSES_S

helm = pytest.importorskip(
    "helm_python", reason="helm-python-sdk, which holds Helm's engine, is not installed"
)

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "millpond"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
EVERYTHING = {
    "models": [{"name": "a/b", "servedName": "small"}, {"name": "c/d"}],
    "gpu": {"count": 2},
    "resources": {"limits": {"memory": "8Gi"}},
    "autoscaling": {"enabled": True, "triggerMetadata": {"authModes": "basic"}},
    "apiKeys": {"keys": ["one", "two"]},
    "huggingFace": {"existingSecret": "hub"},
    "cache": {"enabled": True, "accessModes": ["ReadWriteMany"], "storageClass": "nfs"},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "serviceMonitor": {"enabled": True},
    "podDisruptionBudget": {"enabled": True},
    "extraArgs": ["--dtype", "bfloat16"],
    "env": [{"name": "A", "value": "1"}],
    "envFrom": [{"secretRef": {"name": "more"}}],
    "volumes": [{"name": "more", "emptyDir": {}}],
    "volumeMounts": [{"name": "more", "mountPath": "/more"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "search"},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1}],
    "strategy": {"rollingUpdate": {"maxSurge": 0}},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "registry"}],
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "serviceAccount": {"annotations": {"a": "b"}},
}
Render = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def render() -> Render:
    """The objects by kind, from values; every file is parsed as YAML."""
    chart = helm.Chart.load(str(CHART))

    def rendered(**values: Any) -> dict[str, Any]:
        files = chart.render(values, name="demo", namespace="search")
        objects = [
            each
            for name, text in files.items()
            if name.endswith(".yaml")
            for each in yaml.safe_load_all(text)
            if each is not None
        ]
        assert all(each["metadata"]["name"] == "demo-millpond" for each in objects)
        return {each["kind"]: each for each in objects}

    return rendered


def container(objects: dict[str, Any]) -> Any:
    (found,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_it_has_no_fault(values: dict[str, Any], render: Render) -> None:
    report = helm.lint(str(CHART), values, strict=True)
    assert report["errors"] == []
    assert {message["error"] for message in report["messages"]} <= {"icon is recommended"}
    assert {"Deployment", "Service", "ServiceAccount"} <= set(render(**values))


def test_what_is_optional_is_there_on_request_alone(render: Render) -> None:
    optional = {
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "PodMonitor",
        "ScaledObject",
        "Secret",
        "ServiceMonitor",
    }
    assert set(render()) & optional == set()
    assert optional <= set(render(**EVERYTHING))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 2}, "'replica' not allowed"),
        ({"autoscaling": {"targetTokens": 1}}, "'targetTokens' not allowed"),
        ({"models": []}, "/models"),
        ({"models": ["a/b"]}, "/models/0"),
        ({"apiKeys": {"keys": ["two words"]}}, "/apiKeys/keys/0"),
        ({"gpu": {"count": "two"}}, "/gpu/count"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(
    values: dict[str, Any], message: str, render: Render
) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(message)):
        render(**values)


def test_its_schema_names_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, known in schema["properties"].items():
        known = schema["definitions"]["monitor"] if "$ref" in known else known
        if isinstance(values.get(name), dict) and "properties" in known:
            assert set(values[name]) == set(known["properties"]), name


def test_its_flags_are_those_of_the_server(render: Render) -> None:
    args = container(render(**EVERYTHING))["args"]
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = command.make_context("serve", list(args), resilient_parsing=False)
    assert context.params["models"] == ["a/b", "c/d"]
    assert context.params["served_model_name"] == ["small", "c/d"]
    assert context.params["drain_timeout_s"] == 30
    assert context.params["dtype"] == "bfloat16"
    plain = command.make_context("serve", list(container(render())["args"]))
    assert not plain.params["served_model_name"]


def test_a_pod_has_time_to_drain(render: Render) -> None:
    objects = render(drainTimeoutSeconds=100, preStopSeconds=7)
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    assert "--drain-timeout-s=100" in container(objects)["args"]
    assert container(objects)["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert spec["terminationGracePeriodSeconds"] >= 107 + LAST_RESPONSES_S


def test_it_is_the_image_of_the_dockerfile(render: Render) -> None:
    objects = render()
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    user = re.search(r"--uid (\d+)", DOCKERFILE)
    assert user is not None
    assert spec["securityContext"]["runAsUser"] == int(user[1])
    assert "HF_HOME=/models" in DOCKERFILE
    mounts = {mount["name"]: mount["mountPath"] for mount in container(objects)["volumeMounts"]}
    assert mounts == {"models": "/models", "tmp": "/tmp", "shared-memory": "/dev/shm"}
    assert '"--host", "0.0.0.0"' in DOCKERFILE
    assert container(objects)["image"] == f"millpond:{millpond.__version__}"
    port = {each["name"]: each["value"] for each in container(objects)["env"]}["MILLPOND_PORT"]
    assert container(objects)["ports"] == [{"name": "http", "containerPort": int(port)}]


def test_the_versions_are_the_project_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == millpond.__version__


def test_gpus_are_limits_beside_the_others(render: Render) -> None:
    limits = container(render(**EVERYTHING))["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": 2, "memory": "8Gi"}
    amd = render(gpu={"count": 1, "resource": "amd.com/gpu"})
    assert container(amd)["resources"]["limits"] == {"amd.com/gpu": 1}
    assert "limits" not in container(render())["resources"]


def test_probes_ask_for_health(render: Render) -> None:
    pod = container(render(startupTimeoutSeconds=60))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert pod["startupProbe"]["failureThreshold"] * pod["startupProbe"]["periodSeconds"] == 60


def test_keys_come_from_a_secret(render: Render) -> None:
    own = render(apiKeys={"keys": ["one", "two"]})
    assert own["Secret"]["stringData"] == {"MILLPOND_API_KEY": "one two"}
    given = render(apiKeys={"existingSecret": "keys", "secretKey": "all"})
    assert "Secret" not in given
    for objects, name, key in ((own, "demo-millpond", "MILLPOND_API_KEY"), (given, "keys", "all")):
        (source,) = (
            each["valueFrom"]["secretKeyRef"]
            for each in container(objects)["env"]
            if each["name"] == "MILLPOND_API_KEY"
        )
        assert source == {"name": name, "key": key}
    assert not any(each["name"] == "MILLPOND_API_KEY" for each in container(render())["env"])
    first, second = (
        render(apiKeys={"keys": [key]})["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        for key in ("one", "two")
    )
    assert first != second


def test_pods_follow_the_queued_tokens(render: Render) -> None:
    objects = render(autoscaling={"enabled": True, "targetQueuedTokens": 5000, "maxReplicas": 3})
    assert "replicas" not in objects["Deployment"]["spec"]
    assert render(replicas=3)["Deployment"]["spec"]["replicas"] == 3
    spec = objects["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 3)
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["threshold"] == "5000"
    source = (ROOT / "src/millpond/server/metrics.py").read_text(encoding="utf-8")
    assert '"millpond_queue_tokens"' in source
    assert trigger["metadata"]["query"] == (
        'sum(millpond_queue_tokens{namespace="search",pod=~"demo-millpond-[a-z0-9]+-[a-z0-9]+"})'
    )
    own = render(autoscaling={"enabled": True, "query": 'sum(x{a="b"})'})
    assert own["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"] == 'sum(x{a="b"})'


def test_models_are_kept_on_a_volume(render: Render) -> None:
    def volume(objects: dict[str, Any]) -> Any:
        return objects["Deployment"]["spec"]["template"]["spec"]["volumes"][0]

    assert volume(render()) == {"name": "models", "emptyDir": {}}
    made = render(cache={"enabled": True, "size": "5Gi"})
    assert volume(made)["persistentVolumeClaim"] == {"claimName": "demo-millpond"}
    assert made["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == "5Gi"
    given = render(cache={"enabled": True, "existingClaim": "models"})
    assert volume(given)["persistentVolumeClaim"] == {"claimName": "models"}
    assert "PersistentVolumeClaim" not in given


def test_everything_selects_the_pods(render: Render) -> None:
    objects = render(**EVERYTHING)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        objects["Service"]["spec"]["selector"],
        *(
            objects[kind]["spec"]["selector"]["matchLabels"]
            for kind in ("Deployment", "PodMonitor", "PodDisruptionBudget")
        ),
    ]
    assert all(one == other for one, other in pairwise(selectors))
    assert selectors[0].items() <= labels.items()
    service = objects["Service"]["metadata"]["labels"]
    wanted = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service.items()
    assert labels["team"] == "search"
