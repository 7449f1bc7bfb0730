"""Builds manifests for tests: by hand, and at random."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

PROFILE = {
    "initContainers": [{"name": "fetch", "image": "fetch:1", "volumeMounts": [{"name": "shared", "mountPath": "/s"}]}],
    "containers": [
        {"name": "agent", "image": "agent:1", "args": ["run"], "env": [{"name": "LEVEL", "value": "1"}]},
        {"name": "meter", "image": "meter:1"},
    ],
    "volumes": [{"name": "shared", "emptyDir": {}}],
    "updateStrategy": "RollingUpdate",
}
PROFILES = {"rolls": PROFILE, "stays": {**PROFILE, "updateStrategy": "NoUpdate"}}


def role(name: str, *command: str, replicas: int = 1, after: tuple[str, ...] = (), **container: Any) -> dict[str, Any]:
    """A role of a manifest; further keywords are fields of its container."""
    template = {"spec": {"containers": [{"name": "server", "command": list(command), **container}]}}
    return {"name": name, "replicas": replicas, "dependencies": list(after), "template": template}


def manifest(*roles: dict[str, Any], name: str = "g", **spec: Any) -> dict[str, Any]:
    """A RoleBasedGroup; further keywords are fields of its spec."""
    return {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroup",
        "metadata": {"name": name},
        "spec": {"roles": list(roles), **spec},
    }


ROLE_NAMES = ("encoder", "prefill", "decode", "router", "a-b", "0", "true", "x1")
SERVER = ("python3", "-m", "epd_runtime.launch_server", "--port")
COMMANDS = (
    (*SERVER, "30002", "--encoder-only"),
    (*SERVER, "30000", "--disaggregation-mode", "prefill"),
    (*SERVER, "30001", "--disaggregation-mode", "decode"),
    ("python3", "-m sglang.launch_server", "--port 81", "--encoder-only"),
    ("python3", "-m", "epd_runtime.router", "--pd-disaggregation", "--port", "8000"),
    ("sh", "-c", "exec python3 -m sglang.launch_server --encoder-urls http://s-g-encoder-0:1 --port 80"),
    ("sleep", "1000m"),
    (),
)
ENV = (
    {"name": "EMPTY", "value": ""},
    {"name": "BARE"},
    {"name": "MINE", "value": "$(RBG_ROLE_NAME)"},
    {"name": "POD_IP", "value": "mine"},
    {"name": "ENCODER_URLS", "value": "http://mine:1"},
    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    {"name": "CPU_M", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0.001"}}},
    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": False}}},
)
QUANTITIES = (1, "1", "1000m", "0.5", "1e3", "1024Mi", "1Gi", "1.5Gi", "100M")
VOLUMES = (
    {"name": "empty", "emptyDir": {}},
    {"name": "sized", "emptyDir": {"medium": "Memory", "sizeLimit": "2048Mi"}},
    {"name": "mine", "configMap": {"name": "c", "optional": True, "items": [{"key": "a", "path": "b", "mode": 0}]}},
    {"name": "rbg-config", "secret": {"secretName": "s", "defaultMode": 256}},
    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                                                {"configMap": {"name": "c"}}]}},
    {"name": "claim", "ephemeral": {"volumeClaimTemplate": {"spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1024Mi"}}}}}},
    {"name": "downward", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    {"name": "host", "hostPath": {"path": "/dev/shm", "type": ""}},
)  # fmt: skip
SELECTOR = {"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "k", "operator": "Exists"}]}
POD_FIELDS: dict[str, tuple[Any, ...]] = {
    "hostNetwork": (False, True),
    "nodeSelector": ({}, {"gpu": "h200"}),
    "terminationGracePeriodSeconds": (2, 30),
    "automountServiceAccountToken": (False,),
    "enableServiceLinks": (False,),
    "shareProcessNamespace": (False, True),
    "serviceAccountName": ("default",),
    "schedulerName": ("default-scheduler",),
    "imagePullSecrets": ([], [{"name": "pull"}]),
    "securityContext": ({}, {"runAsUser": 0, "runAsNonRoot": False, "fsGroup": 0, "supplementalGroups": [1, 2]}),
    "hostAliases": ([{"ip": "10.0.0.1", "hostnames": ["x", "y"]}],),
    "tolerations": ([], [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
                         {"operator": "Exists", "key": "", "value": ""}]),
    "topologySpreadConstraints": ([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                                    "labelSelector": SELECTOR}],),
    "affinity": ({}, {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "host", "labelSelector": SELECTOR, "namespaces": []}]},
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}}]}}),
    "priorityClassName": ("", "system-node-critical"),
}  # fmt: skip
CONTAINER_FIELDS: dict[str, tuple[Any, ...]] = {
    "image": ("server:1",),
    "args": ([], ["1000m", "--x"]),
    "workingDir": ("", "/w"),
    "stdin": (False, True),
    "tty": (False,),
    "terminationMessagePolicy": ("File",),
    "imagePullPolicy": ("Never",),
    "envFrom": ([{"configMapRef": {"name": "c"}}], [{"prefix": "P_", "secretRef": {"name": "s", "optional": True}}]),
    "readinessProbe": ({"httpGet": {"port": 80, "httpHeaders": [{"name": "h", "value": "v"}]}},
                       {"tcpSocket": {"port": 80}, "initialDelaySeconds": 0, "periodSeconds": 1}),
    "livenessProbe": ({"exec": {"command": ["true"]}, "failureThreshold": 5},),
    "lifecycle": ({}, {"postStart": {"exec": {"command": ["true"]}}}, {"preStop": {"sleep": {"seconds": 1}}}),
    "securityContext": ({"privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": False,
                         "capabilities": {"drop": ["ALL"], "add": []}},),
    "ports": ([{"containerPort": 80}], [{"containerPort": 80, "name": "http"}, {"containerPort": 81, "hostPort": 0},
                                        {"containerPort": 80, "name": "udp", "protocol": "UDP"}]),
}  # fmt: skip


def some(fields: dict[str, tuple[Any, ...]]) -> st.SearchStrategy[dict[str, Any]]:
    """A few of the fields, each with one of its values."""
    optional = {key: st.sampled_from(values) for key, values in fields.items()}
    return st.sets(st.sampled_from(sorted(fields)), max_size=4).flatmap(
        lambda keys: st.fixed_dictionaries({key: optional[key] for key in sorted(keys)})
    )


@st.composite
def containers(draw: st.DrawFn, name: str, volumes: tuple[str, ...]) -> dict[str, Any]:
    """A container of any shape that Kubernetes takes."""
    container = {"name": name, "image": "i", **draw(some(CONTAINER_FIELDS))}
    if command := draw(st.sampled_from(COMMANDS)):
        container["command"] = list(command)
    container["env"] = draw(st.lists(st.sampled_from(ENV), max_size=3, unique_by=lambda variable: variable["name"]))
    if draw(st.booleans()):
        limits = {key: draw(st.sampled_from(QUANTITIES)) for key in ("cpu", "memory")}
        container["resources"] = {"limits": limits, "requests": {}}
    mounts = [{"name": volume, "mountPath": f"/{volume}", "readOnly": False} for volume in volumes]
    if mounts and draw(st.booleans()):
        mounts[0]["mountPath"] = "/etc/rbg"
    container["volumeMounts"] = mounts
    return container


@st.composite
def templates(draw: st.DrawFn) -> dict[str, Any]:
    """A pod template of any shape that Kubernetes takes."""
    volumes = draw(st.lists(st.sampled_from(VOLUMES), max_size=3, unique_by=lambda volume: volume["name"]))
    names = tuple(volume["name"] for volume in volumes)
    spec = {**draw(some(POD_FIELDS)), "volumes": volumes}
    spec["containers"] = [draw(containers("server", names))]
    if draw(st.booleans()):
        spec["containers"].append(draw(containers("second", ())))
    if draw(st.booleans()):
        spec["initContainers"] = [draw(containers("first", names[:1]))]
    if spec.get("hostNetwork"):  # a port of the container is then one of the node
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            container.pop("ports", None)
    for container in spec.get("initContainers", ()):
        for key in ("readinessProbe", "livenessProbe", "lifecycle"):
            container.pop(key, None)
    labels = {"app": "x", "rbg.workloads.x-k8s.io/group-name": "not-mine"}
    metadata = draw(st.sampled_from([{}, {"labels": labels}, {"annotations": {"a": ""}}]))
    return {"metadata": metadata, "spec": spec}


@st.composite
def roles(draw: st.DrawFn, name: str, earlier: tuple[str, ...]) -> dict[str, Any]:
    """A role that may depend on earlier ones."""
    kind = draw(st.sampled_from(["StatefulSet", "StatefulSet", "Deployment", "LeaderWorkerSet", "InstanceSet"]))
    found: dict[str, Any] = {
        "name": name,
        "replicas": draw(st.integers(0, 3)),
        "dependencies": draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else [],
        "template": draw(templates()),
        "workload": {"kind": kind},
        "minReadySeconds": draw(st.sampled_from([0, 5])),
        "annotations": draw(st.sampled_from([
            {}, {"rbg.workloads.x-k8s.io/stage-urls": "PerReplica"}, {"rbg.workloads.x-k8s.io/restarted-at": "now"},
            {"rbg.workloads.x-k8s.io/ordinal-services": "true"},
        ])),
        "labels": draw(st.sampled_from([{}, {"team": "vision", "rbg.workloads.x-k8s.io/role-name": "not-mine"}])),
        "scalingAdapter": {"enable": draw(st.booleans()), "labels": {"scaled": "yes"}},
        "servicePorts": draw(st.sampled_from([[], [{"port": 80, "name": "http", "targetPort": "http"},
                                                   {"port": 80, "name": "udp", "protocol": "UDP"}]])),
    }  # fmt: skip
    if kind != "Deployment" and draw(st.booleans()):
        patch = {"spec": {"containers": [{"name": "server", "args": ["worker"]}]}}
        found["leaderWorkerSet"] = {"size": draw(st.integers(1, 3)), "patchWorkerTemplate": patch}
    if draw(st.booleans()):
        surge = draw(st.sampled_from([1, "20%"]))
        found["rolloutStrategy"] = {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": 0, "paused": True}}
    if draw(st.booleans()):
        override = {"name": "agent", "args": ["walk"], "env": [{"name": "LEVEL", "value": "2"}]}
        runtime = {"profileName": draw(st.sampled_from(sorted(PROFILES))), "containers": [override]}
        found["engineRuntimes"] = [draw(st.sampled_from([runtime, {**runtime, "injectContainers": ["agent"]}]))]
    return found


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid group of up to four roles; its profiles are PROFILES."""
    names = tuple(draw(st.lists(st.sampled_from(ROLE_NAMES), min_size=1, max_size=4, unique=True)))
    found = manifest(*(draw(roles(name, names[:index])) for index, name in enumerate(names)))
    if draw(st.booleans()):
        gangs = [{"kubeScheduling": {}}, {"volcanoScheduling": {"queue": "q", "priorityClassName": ""}}]
        found["spec"]["podGroupPolicy"] = draw(st.sampled_from(gangs))
    found["metadata"]["annotations"] = draw(st.sampled_from([{}, {"rbg.workloads.x-k8s.io/stage-urls": "PerReplica"}]))
    return found
