"""The Helm chart and the manifests: valid, and in agreement with the configuration files."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.command.config_file import check_access, read_config
from tests.chart import CHART, MANIFESTS, manifest, objects
from tests.repo.source import ROOT

Objects = dict[tuple[str, str], dict[str, Any]]

KUBERNETES = ("1.28", "1.37")  #: the oldest and the newest version that are checked
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parent / "rayservice_v1.schema.json").read_text("utf-8"))
)
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
GPU_VALUES = yaml.safe_load((CHART / "values-gpu.yaml").read_text("utf-8"))
CONFIG_FILES = {"cpu": ROOT / "serve_config.yaml", "gpu": ROOT / "configs" / "gpu.yaml"}


def service(values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return objects(values)["RayService", "embedserve"]


def cluster(documents: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = documents["RayService", "embedserve"]["spec"]["rayClusterConfig"]
    return spec


def serve_config(documents: Objects) -> dict[str, Any]:
    text = documents["RayService", "embedserve"]["spec"]["serveConfigV2"]
    config: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return config


def deployment(documents: Objects, name: str) -> dict[str, Any]:
    deployments = serve_config(documents)["applications"][0]["deployments"]
    found: dict[str, Any] = next(d for d in deployments if d["name"] == name)
    return found


def head(documents: Objects) -> dict[str, Any]:
    template: dict[str, Any] = cluster(documents)["headGroupSpec"]["template"]
    return template


def worker(documents: Objects) -> dict[str, Any]:
    template: dict[str, Any] = cluster(documents)["workerGroupSpecs"][0]["template"]
    return template


def container(template: Mapping[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def with_value(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    result: dict[str, Any] = value
    return result


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path


# Valid


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_a_manifest_is_valid(file: Path, version: str) -> None:
    for document in yaml.load_all(file.read_text("utf-8"), yaml.CSafeLoader):
        pods = []
        if document["kind"] == "RayService":
            SCHEMA.validate(document)
            groups = document["spec"]["rayClusterConfig"]
            pods = [groups["headGroupSpec"], *groups["workerGroupSpecs"]]
            service_ = {"apiVersion": "v1", "kind": "Service", **document["spec"]["serveService"]}
            kubernetes_validate.validate(service_, version, strict=True)
        else:
            kubernetes_validate.validate(document, version, strict=True)
        for group in pods:
            pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
            kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["rayClusterConfig"].update(headGroupSpecs={}),
        lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].update(replicas="two"),
        lambda spec: spec["rayClusterConfig"]["authOptions"].update(mode="none"),
        lambda spec: spec.pop("rayClusterConfig"),
    ],
)
def test_the_schema_of_the_resource_refuses_what_kuberay_would(change: Callable[..., Any]) -> None:
    document = copy.deepcopy(service())
    change(document["spec"])
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(document)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_a_manifest_is_what_the_chart_renders(file: Path) -> None:
    assert file.read_text("utf-8") == manifest(MANIFESTS[file]), "Run `python -m tests.chart`."


def test_the_chart_has_no_faults() -> None:
    result = helm_python.lint(str(CHART), strict=True)
    assert result["errors"] == []
    assert [m["error"] for m in result["messages"]] == ["icon is recommended"]


def test_misspelled_values_are_refused() -> None:
    with pytest.raises(helm_python.HelmError, match="minReplica"):
        objects({"models": {"minReplica": 3}})


# The configuration of the service


@pytest.mark.parametrize("values", [None, GPU_VALUES], ids=["cpu", "gpu"])
def test_the_service_accepts_the_configuration(
    values: Mapping[str, Any] | None, tmp_path: Path
) -> None:
    text = service(values)["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.load(text, yaml.CSafeLoader))
    file = tmp_path / "config.yaml"
    file.write_text(text, "utf-8")
    config, _ = read_config(file)
    check_access(config)


@pytest.mark.parametrize(("name", "values"), [("cpu", None), ("gpu", GPU_VALUES)])
def test_it_differs_from_the_file_only_where_a_cluster_does(
    name: str, values: Mapping[str, Any] | None
) -> None:
    expected = yaml.safe_load(CONFIG_FILES[name].read_text("utf-8"))
    expected["proxy_location"] = "EveryNode"
    expected["http_options"]["host"] = "0.0.0.0"
    env = expected["controller_options"]["runtime_env"]["env_vars"]
    env["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "30"
    application = expected["applications"][0]
    application["args"]["cache"] = {"url": "redis://embedserve-cache:6379/0"}
    ingress, lookup, embedder = application["deployments"]
    if name == "cpu":
        application["args"]["precision"] = "fp32"
        embedder["ray_actor_options"] = {"num_cpus": 2}
    for fixed in (ingress, lookup):
        fixed |= {"num_replicas": 2, "max_replicas_per_node": 1}
        fixed["ray_actor_options"] = {"num_cpus": 0.5}
    ingress.setdefault("user_config", {})["access"] = {"keys_file": "/etc/embedserve/keys.yaml"}
    ingress["graceful_shutdown_timeout_s"] = 60
    embedder["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 8}
    policy = embedder["autoscaling_config"]["policy"]
    policy["policy_kwargs"] = {**policy.get("policy_kwargs", {}), "cluster_grows": True}
    assert serve_config(objects(values)) == expected


def test_a_file_of_another_topology_gets_keys_too() -> None:
    content = (ROOT / "configs" / "one-machine.yaml").read_text("utf-8")
    documents = objects({"config": {"content": content}})
    server = deployment(documents, "EmbedServer")
    assert server["user_config"]["access"] == {"keys_file": "/etc/embedserve/keys.yaml"}
    assert server["autoscaling_config"]["min_replicas"] == 2


def test_unknown_and_malformed_files_are_refused() -> None:
    with pytest.raises(helm_python.HelmError, match="config"):
        objects({"config": {"name": "tpu"}})
    with pytest.raises(helm_python.HelmError, match=r"config\.content"):
        objects({"config": {"content": "a: [1"}})


# What pods and configuration agree on


@pytest.fixture(params=[None, GPU_VALUES], ids=["cpu", "gpu"])
def documents(request: pytest.FixtureRequest) -> Objects:
    return objects(request.param)


def test_ports_are_those_of_the_configuration(documents: Objects) -> None:
    port = serve_config(documents)["http_options"]["port"]
    for template in (head(documents), worker(documents)):
        ports = {p["name"]: p["containerPort"] for p in container(template)["ports"]}
        assert ports["serve"] == port
    readiness = container(worker(documents))["readinessProbe"]["httpGet"]
    assert readiness == {"path": "/-/healthz", "port": port}
    rules = documents["NetworkPolicy", "embedserve"]["spec"]["ingress"]
    assert {"ports": [{"port": port}]} in rules


def test_another_port_moves_everywhere() -> None:
    content = CONFIG_FILES["cpu"].read_text("utf-8").replace("port: 8000", "port: 9000")
    text = yaml.safe_dump([*objects({"config": {"content": content}}).values()])
    assert "8000" not in text
    assert text.count("9000") == 6  # two containers, a probe, two rules, and the configuration


def test_a_pod_has_room_for_a_replica_of_each_deployment(documents: Objects) -> None:
    limits = container(worker(documents))["resources"]["limits"]
    deployments = serve_config(documents)["applications"][0]["deployments"]
    needs = [d["ray_actor_options"] for d in deployments]
    assert sum(need["num_cpus"] for need in needs) <= float(limits["cpu"])
    gpus = sum(need.get("num_gpus", 0) for need in needs)
    assert gpus == limits.get("nvidia.com/gpu", 0)
    workers = cluster(documents)["workerGroupSpecs"][0]
    assert workers["minReplicas"] >= deployment(documents, "Ingress")["num_replicas"]


def test_nothing_but_rays_control_runs_in_the_head_pod(documents: Objects) -> None:
    assert cluster(documents)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    deployments = serve_config(documents)["applications"][0]["deployments"]
    assert all(d["ray_actor_options"]["num_cpus"] > 0 for d in deployments)
    assert documents["RayService", "embedserve"]["spec"]["excludeHeadPodFromServeSvc"] is True


def test_shared_memory_holds_the_object_store(documents: Objects) -> None:
    for group in (cluster(documents)["headGroupSpec"], cluster(documents)["workerGroupSpecs"][0]):
        bytes_ = int(group["rayStartParams"]["object-store-memory"])
        volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert bytes_ < volumes["shm"]["emptyDir"]["sizeLimit"] < 2 * bytes_


def test_a_pod_outlives_its_requests(documents: Objects) -> None:
    ingress = deployment(documents, "Ingress")
    env = serve_config(documents)["controller_options"]["runtime_env"]["env_vars"]
    notice_s = int(env["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
    template = worker(documents)
    command = container(template)["lifecycle"]["preStop"]["exec"]["command"][-1]
    sleep_s = int(command.rsplit("sleep ", 1)[1])
    probe = container(template)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < notice_s
    assert notice_s < ingress["graceful_shutdown_timeout_s"] <= sleep_s
    assert sleep_s < template["spec"]["terminationGracePeriodSeconds"]
    spec = documents["RayService", "embedserve"]["spec"]
    assert spec["rayClusterDeletionDelaySeconds"] >= sleep_s


def test_serve_reads_the_same_variables_in_each_process(documents: Objects) -> None:
    expected = serve_config(documents)["controller_options"]["runtime_env"]["env_vars"]
    for template in (head(documents), worker(documents)):
        env = {e["name"]: e["value"] for e in container(template)["env"] if "value" in e}
        assert env == {n: v for n, v in expected.items() if n.startswith("RAY_SERVE_")}


def test_rays_version_is_that_of_the_image(documents: Objects) -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert f"ray=={cluster(documents)['rayVersion']}" in pins


# Safe


def test_pods_have_no_privileges(documents: Objects) -> None:
    for template in (head(documents), worker(documents)):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert f"USER {pod['runAsUser']}\n" in (ROOT / "Dockerfile").read_text("utf-8")
        assert container(template)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_rays_ports_are_closed_to_others(documents: Objects) -> None:
    policy = documents["NetworkPolicy", "embedserve"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for template in (head(documents), worker(documents)):
        labels = template["metadata"]["labels"].items()
        assert policy["podSelector"]["matchLabels"].items() <= labels
    own, clients, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [p["port"] for p in clients["ports"]] == [8000]
    assert sorted(p["port"] for p in operator["ports"]) == [8000, 8265, 52365]
    (peer,) = operator["from"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_the_budget_selects_the_workers_only(documents: Objects) -> None:
    budget = documents["PodDisruptionBudget", "embedserve-workers"]["spec"]
    selected = budget["selector"]["matchLabels"].items()
    assert selected <= worker(documents)["metadata"]["labels"].items()
    assert not selected <= head(documents)["metadata"]["labels"].items()


def test_keys_come_from_a_secret(documents: Objects) -> None:
    for template in (head(documents), worker(documents)):
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        assert volumes["keys"] == {"name": "keys", "secret": {"secretName": "embedserve-keys"}}
        mounts = {m["name"]: m for m in container(template)["volumeMounts"]}
        assert mounts["keys"] == {
            "name": "keys",
            "mountPath": "/etc/embedserve",
            "readOnly": True,
        }


# Each value has an effect


def env_secret(template: Mapping[str, Any]) -> list[str]:
    env = container(template)["env"]
    return [e["valueFrom"]["secretKeyRef"]["name"] for e in env if "valueFrom" in e]


def policy_rules(documents: Objects) -> list[Any]:
    rules: list[Any] = documents["NetworkPolicy", "embedserve"]["spec"]["ingress"]
    return rules


def valkey(documents: Objects, kind: str, name: str) -> dict[str, Any]:
    return container(documents[kind, name]["spec"]["template"])


def scaling(documents: Objects) -> dict[str, Any]:
    found: dict[str, Any] = deployment(documents, "Embedder")["autoscaling_config"]
    return found


ENV = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
PEER = {"podSelector": {"matchLabels": {"a": "b"}}}
#: Value → what it is set to, what is read from the objects, and what that is then.
EFFECTS: dict[str, tuple[Any, Callable[[Objects], Any], Any]] = {
    "image.repository": ("r/e", lambda d: container(head(d))["image"], "r/e:0.1.0"),
    "image.tag": ("2", lambda d: container(worker(d))["image"], "embedserve:2"),
    "image.pullPolicy": ("Always", lambda d: container(head(d))["imagePullPolicy"], "Always"),
    "image.pullSecrets": (
        [{"name": "registry"}],
        lambda d: worker(d)["spec"]["imagePullSecrets"],
        [{"name": "registry"}],
    ),
    "config.name": ("gpu", lambda d: serve_config(d)["applications"][0]["args"]["device"], "cuda"),
    "config.content": (
        (ROOT / "configs" / "search.yaml").read_text("utf-8"),
        lambda d: deployment(d, "Reranker")["ray_actor_options"],
        {"num_cpus": 2},
    ),
    "config.precision": (
        "bf16",
        lambda d: serve_config(d)["applications"][0]["args"]["precision"],
        "bf16",
    ),
    "ingress.replicas": (3, lambda d: deployment(d, "CacheLookup")["num_replicas"], 3),
    "ingress.cpus": (
        0.25,
        lambda d: deployment(d, "Ingress")["ray_actor_options"]["num_cpus"],
        0.25,
    ),
    "models.cpus": (4, lambda d: deployment(d, "Embedder")["ray_actor_options"]["num_cpus"], 4),
    "models.minReplicas": (3, lambda d: scaling(d)["min_replicas"], 3),
    "models.maxReplicas": (30, lambda d: scaling(d)["max_replicas"], 30),
    "head.resources.cpu": ("2", lambda d: container(head(d))["resources"]["limits"]["cpu"], "2"),
    "head.resources.memory": (
        "6Gi",
        lambda d: container(head(d))["resources"]["requests"]["memory"],
        "6Gi",
    ),
    "workers.replicas": (5, lambda d: cluster(d)["workerGroupSpecs"][0]["replicas"], 5),
    "workers.minReplicas": (1, lambda d: cluster(d)["workerGroupSpecs"][0]["minReplicas"], 1),
    "workers.maxReplicas": (9, lambda d: cluster(d)["workerGroupSpecs"][0]["maxReplicas"], 9),
    "workers.resources.cpu": (
        "8",
        lambda d: container(worker(d))["resources"]["limits"]["cpu"],
        "8",
    ),
    "workers.resources.memory": (
        "9Gi",
        lambda d: container(worker(d))["resources"]["limits"]["memory"],
        "9Gi",
    ),
    "workers.resources.gpus": (
        2,
        lambda d: container(worker(d))["resources"]["limits"]["nvidia.com/gpu"],
        2,
    ),
    "workers.nodeSelector": ({"a": "b"}, lambda d: worker(d)["spec"]["nodeSelector"], {"a": "b"}),
    "workers.tolerations": (
        [{"key": "a", "operator": "Exists"}],
        lambda d: worker(d)["spec"]["tolerations"],
        [{"key": "a", "operator": "Exists"}],
    ),
    "objectStore.bytes": (
        1 << 30,
        lambda d: cluster(d)["headGroupSpec"]["rayStartParams"]["object-store-memory"],
        str(1 << 30),
    ),
    "autoscaler.enabled": (
        False,
        lambda d: ("enableInTreeAutoscaling" in cluster(d), "cluster_grows" in str(scaling(d))),
        (False, False),
    ),
    "autoscaler.idleTimeoutSeconds": (
        60,
        lambda d: cluster(d)["autoscalerOptions"]["idleTimeoutSeconds"],
        60,
    ),
    "drain.loadBalancerSeconds": (
        45,
        lambda d: serve_config(d)["controller_options"]["runtime_env"]["env_vars"][ENV],
        "45",
    ),
    "drain.requestSeconds": (
        120,
        lambda d: worker(d)["spec"]["terminationGracePeriodSeconds"],
        180,
    ),
    "keys.secret": (
        "mine",
        lambda d: worker(d)["spec"]["volumes"][0]["secret"]["secretName"],
        "mine",
    ),
    "providers.secret": (
        "openai",
        lambda d: container(worker(d))["envFrom"],
        [{"secretRef": {"name": "openai"}}],
    ),
    "cache.url": (
        "redis://cache:6379/1",
        lambda d: (
            serve_config(d)["applications"][0]["args"]["cache"]["url"],
            ("Deployment", "embedserve-cache") in d,
        ),
        ("redis://cache:6379/1", False),
    ),
    "cache.passwordSecret": (
        "c",
        lambda d: (
            serve_config(d)["applications"][0]["args"]["cache"]["password_env"],
            env_secret(worker(d)),
        ),
        ("EMBEDSERVE_CACHE_PASSWORD", ["c"]),
    ),
    "cache.maxMemory": (
        "2gb",
        lambda d: valkey(d, "Deployment", "embedserve-cache")["args"][1],
        "2gb",
    ),
    "gcsFaultTolerance.enabled": (
        False,
        lambda d: ("gcsFaultToleranceOptions" in cluster(d), ("Service", "embedserve-gcs") in d),
        (False, False),
    ),
    "gcsFaultTolerance.address": (
        "redis:6379",
        lambda d: (
            cluster(d)["gcsFaultToleranceOptions"]["redisAddress"],
            ("StatefulSet", "embedserve-gcs") in d,
        ),
        ("redis:6379", False),
    ),
    "gcsFaultTolerance.passwordSecret": (
        "g",
        lambda d: cluster(d)["gcsFaultToleranceOptions"]["redisPassword"],
        {"valueFrom": {"secretKeyRef": {"name": "g", "key": "password"}}},
    ),
    "gcsFaultTolerance.storage": (
        "3Gi",
        lambda d: d["StatefulSet", "embedserve-gcs"]["spec"]["volumeClaimTemplates"][0]["spec"][
            "resources"
        ]["requests"]["storage"],
        "3Gi",
    ),
    "valkey.image": ("v:9", lambda d: valkey(d, "StatefulSet", "embedserve-gcs")["image"], "v:9"),
    "service.type": (
        "LoadBalancer",
        lambda d: d["RayService", "embedserve"]["spec"]["serveService"]["spec"]["type"],
        "LoadBalancer",
    ),
    "service.annotations": (
        {"a": "b"},
        lambda d: d["RayService", "embedserve"]["spec"]["serveService"]["metadata"]["annotations"],
        {"a": "b"},
    ),
    "auth.token": (False, lambda d: "authOptions" in cluster(d), False),
    "networkPolicy.enabled": (False, lambda d: ("NetworkPolicy", "embedserve") in d, False),
    "networkPolicy.clients": ([PEER], lambda d: policy_rules(d)[1]["from"], [PEER]),
    "networkPolicy.monitoring": (
        [PEER],
        lambda d: policy_rules(d)[3],
        {"ports": [{"port": 8080}], "from": [PEER]},
    ),
    "networkPolicy.operatorNamespace": (
        {"a": "b"},
        lambda d: policy_rules(d)[2]["from"][0]["namespaceSelector"],
        {"matchLabels": {"a": "b"}},
    ),
    "podDisruptionBudget.minAvailable": (
        4,
        lambda d: d["PodDisruptionBudget", "embedserve-workers"]["spec"]["minAvailable"],
        4,
    ),
}


def test_the_effect_of_each_value_is_tested() -> None:
    assert sorted(EFFECTS) == sorted(leaves(VALUES))


@pytest.mark.parametrize("path", EFFECTS)
def test_a_value_has_its_effect(path: str) -> None:
    value, read, expected = EFFECTS[path]
    rendered = objects(with_value(path, value))
    assert read(rendered) == expected
    SCHEMA.validate(rendered["RayService", "embedserve"])


def test_each_value_is_described() -> None:
    lines = (CHART / "values.yaml").read_text("utf-8").splitlines()
    keys = [n for n, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"]
    undescribed = [
        lines[n]
        for n in keys
        if not lines[n].endswith(":") and not lines[n - 1].lstrip().startswith("#")
    ]
    assert undescribed == []
