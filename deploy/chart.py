"""Renders charts/kube-router-rs with Helm's own engine and checks what comes out.

    chart.py check               lint, render every case of chart_cases.yaml, check the objects
    chart.py manifests           fail if deploy/manifests/ differs from what the chart renders
    chart.py manifests --update  rewrite them

Run through deploy/check-chart and deploy/check-manifests, which install what it needs.
"""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import helm_python as helm
import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent
CHART = DEPLOY.parent / "charts" / "kube-router-rs"
RELEASE, NAMESPACE = "kube-router-rs", "kube-system"
# The oldest release that the chart admits, the one that the programs are compiled against, the newest known.
KUBERNETES = ["1.25", "1.33", kubernetes_validate.latest_version()]

# What each program may do, said here a second time on purpose: a change of the chart must be meant.
READ = ["list", "watch"]
EVENTS = {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}
NAMESPACES = {"apiGroups": [""], "resources": ["namespaces"], "verbs": READ}
RULES = {
    "npc-firewall": [
        {"apiGroups": [""], "resources": ["namespaces", "pods", "services"], "verbs": READ},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": READ},
    ],
    "svc-proxy-ipvs": [
        {"apiGroups": [""], "resources": ["nodes", "services"], "verbs": READ},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ},
    ],
    "cni-bridge-agent": [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": READ},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ],
    "lb-ipam": [
        {"apiGroups": [""], "resources": ["services"], "verbs": READ},
        {"apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"]},
        EVENTS,
    ],
}
LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
LOCAL_RULES = {
    "lb-ipam": [
        LEASES | {"verbs": ["create"]},
        LEASES | {"resourceNames": ["kube-router-lballoc"], "verbs": ["get", "update"]},
    ],
}
# Values that make a component's objects, with every list that is an argument only if it is not empty: the checks of
# metrics and images run the program with what comes out.
ENABLING = {
    "npc-firewall": {},
    "svc-proxy-ipvs": {
        "firewall": {"enabled": False},
        "apiServer": {"host": "192.0.2.1", "port": 6443},
        "proxy": {
            "enabled": True,
            "clusterIPRanges": ["10.96.0.0/12", "fd00:96::/112"],
            "externalIPRanges": ["198.51.100.0/25"],
            "loadBalancerIPRanges": ["198.51.100.128/25"],
            "nodePortAddresses": ["192.0.2.0/24"],
            "podCIDRs": ["10.244.1.0/24"],
            "excludedCIDRs": ["192.0.2.128/25"],
        },
    },
    "cni-bridge-agent": {"firewall": {"enabled": False}, "cni": {"enabled": True}},
    "lb-ipam": {"firewall": {"enabled": False}, "lbIpam": {"enabled": True, "ranges": ["192.0.2.0/24"]}},
}
# What a component may have of the node: capabilities, by default and at most, and folders.
CAPABILITIES = {
    "npc-firewall": [["NET_ADMIN"]],
    "svc-proxy-ipvs": [["NET_ADMIN"], ["NET_ADMIN", "SYS_ADMIN"]],
    "cni-bridge-agent": [[], ["DAC_OVERRIDE"]],
}
HOST_PATHS = {
    "npc-firewall": {"/proc/sys/net"},
    "svc-proxy-ipvs": {"/proc/sys/net", "/run/netns"},
    "cni-bridge-agent": {"/proc/sys/net", "/etc/cni/net.d", "/opt/cni/bin", "/usr/lib/cni"},
}
SECURITY = {
    "runAsUser": 0,
    "runAsGroup": 0,
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
}
NO_PRIVILEGES = {
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@contextlib.contextmanager
def quiet_native_log():
    """Drops what the Go library writes to file descriptor 2: a notice for each symbolic link of files/."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def render(values, source=CHART):
    """The chart's objects as one YAML text; raises helm.HelmError with Helm's message."""
    with quiet_native_log(), helm.Chart.load(source) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return "\n---\n".join(
        text.strip() + "\n" for name, text in sorted(files.items()) if name.endswith(".yaml") and text.strip()
    )


def objects(text):
    return [document for document in yaml.safe_load_all(text) if document]


def operator_type_errors(document):
    """Compares an object of the Prometheus operator with itself after a trip through the operator's types.

    The types ignore unknown fields, so what is lost on the trip is unknown.
    """
    types = importlib.import_module("cloudcoil.models.prometheus_operator.v1")
    model = getattr(types, document["kind"])
    seen = model.model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
    return [] if seen == document else [f"{document['kind']} has fields that its type does not know: {seen}"]


def schema_errors(document):
    if document["apiVersion"] == "monitoring.coreos.com/v1":
        return operator_type_errors(document)
    errors = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")
    return errors


def daemonset_errors(document):
    """The promises of the chart's README about a component's pod."""
    spec = document["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    paths = {volume["hostPath"]["path"] for volume in spec.get("volumes", []) if "hostPath" in volume}
    name = document["metadata"]["name"]
    capabilities = dict(container["securityContext"]["capabilities"])
    added = capabilities.pop("add", [])
    facts = {
        "security context": container["securityContext"] | {"capabilities": capabilities}
        == SECURITY | {"capabilities": {"drop": ["ALL"]}},
        "capabilities": added in CAPABILITIES[name],
        # Who sees the namespaces of pods may enter them, and nobody else.
        "pods' networks": ("/run/netns" in paths) == ("SYS_ADMIN" in added),
        "seccomp": spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
        "no host pid or ipc": not spec.get("hostPID") and not spec.get("hostIPC"),
        "host network": spec["hostNetwork"] is True,
        "own service account": spec["serviceAccountName"] == name,
        "host paths": paths <= HOST_PATHS[name],
        "node name from the field": {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        in container["env"],
        "probes on loopback": all(
            container[probe]["httpGet"]["host"] == "127.0.0.1" for probe in ("livenessProbe", "readinessProbe")
        ),
        "every node": {"operator": "Exists"} in spec["tolerations"],
        "priority": spec["priorityClassName"] == "system-node-critical",
        "distinct ports": len({p["containerPort"] for p in container["ports"]}) == len(container["ports"]),
    }
    return [f"broken promise: {promise}" for promise, kept in facts.items() if not kept]


def deployment_errors(document):
    """The same of a component that has no privileges at all."""
    spec = document["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    volumes = {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}}
    facts = {
        "security context": container["securityContext"] == NO_PRIVILEGES,
        "no root": spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0,
        "seccomp": spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
        "nothing of the node": not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys() and volumes <= {"configMap"},
        "own service account": spec["serviceAccountName"] == document["metadata"]["name"],
        "replicas apart": "podAntiAffinity" in spec["affinity"],
        "distinct ports": len({p["containerPort"] for p in container["ports"]}) == len(container["ports"]),
    }
    return [f"broken promise: {promise}" for promise, kept in facts.items() if not kept]


def role_errors(document):
    name, rules = document["metadata"]["name"], document["rules"]
    want = (LOCAL_RULES if document["kind"] == "Role" else RULES)[name]
    # Only pools that select by namespace need to know namespaces.
    if name == "lb-ipam" and document["kind"] == "ClusterRole" and NAMESPACES in rules:
        want = [*want, NAMESPACES]
    # Who does not write the node's status need not be allowed to.
    if name == "cni-bridge-agent" and not any("patch" in rule["verbs"] for rule in rules):
        want = want[:1]
    # Only who tells of what is wrong on its node writes Events; the cases say when.
    if name != "lb-ipam" and EVENTS in rules:
        want = [*want, EVENTS]
    return [] if rules == want else [f"rules are not those of chart.py: {rules}"]


def rule_errors(document):
    """Prometheus' own judgement of the rules inside a PrometheusRule."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(document["spec"], file)
        file.flush()
        result = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    return [] if result.returncode == 0 else [result.stdout + result.stderr]


def object_errors(document):
    name = document["metadata"]["name"]
    errors = schema_errors(document)
    # What follows reads fields that only a valid object has for sure.
    match None if errors else document["kind"]:
        case "DaemonSet":
            errors += daemonset_errors(document)
        case "Deployment":
            errors += deployment_errors(document)
        case "ClusterRole" | "Role":
            errors += role_errors(document)
        case "PrometheusRule":
            errors += rule_errors(document)
        case "ConfigMap" if name.endswith("-dashboard"):
            dashboard = json.loads(document["data"][name.removesuffix("-dashboard") + ".json"])
            if not dashboard.get("panels"):
                errors.append("the dashboard has no panels")
    return [f"{document['kind']} {name}: {error}" for error in errors]


def accepted_case_errors(case):
    try:
        text = render(case["values"])
    except helm.HelmError as error:
        return [f"does not render: {error}"]
    errors = [f"lacks {want!r}" for want in case.get("contains", []) if want not in text]
    errors += [f"has {bad!r}" for bad in case.get("absent", []) if bad in text]
    for document in objects(text):
        errors += object_errors(document)
    return errors


def refused_case_errors(case):
    try:
        render(case["values"])
    except helm.HelmError as error:
        said = str(error)
        return [] if re.search(case["says"], said) else [f"refused, but for another reason: {said}"]
    return ["was not refused"]


def lint_errors():
    with quiet_native_log():
        report = helm.lint(CHART, strict=True, namespace=NAMESPACE)
    return report["errors"] + [m["error"] for m in report["messages"] if m["severity"] >= 2]


def package_errors(values):
    """A packaged chart has lost the symbolic links of files/, so it must have what they pointed to."""
    with tempfile.TemporaryDirectory() as folder:
        with quiet_native_log():
            archive = helm.package(CHART, destination=folder)
        same = render(values, archive) == render(values)
    return [] if same else ["the packaged chart renders otherwise than the folder"]


def check():
    """Prints a line for each case; the number of failed ones decides the exit code."""
    cases = yaml.safe_load((DEPLOY / "chart_cases.yaml").read_text())
    (everything,) = [case["values"] for case in cases["accepted"] if case["name"] == "everything_on"]
    results = {"lint": lint_errors(), "package": package_errors(everything)}
    for case in cases["accepted"]:
        results[f"accepts {case['name']}"] = accepted_case_errors(case)
    for case in cases["refused"]:
        results[f"refuses {case['name']}"] = refused_case_errors(case)
    for name, errors in results.items():
        print(f"chart {name}: {'FAILED' if errors else 'ok'}")
        for error in errors:
            print(f"    {error}")
    failed = sum(1 for errors in results.values() if errors)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def plain_manifest(values_file):
    """What the chart renders, without the labels that only mean something to a Helm release."""
    text = render(yaml.safe_load(values_file.read_text()) or {})
    helm_only = re.compile(r"^ *(app\.kubernetes\.io/(instance|managed-by)|helm\.sh/chart): .*\n", re.MULTILINE)
    name = values_file.name.removesuffix(".values.yaml")
    return (
        f"# Rendered from charts/kube-router-rs with {values_file.name}: do not edit.\n"
        f"# `UPDATE=1 deploy/check-manifests` rewrites it, `deploy/check-manifests` fails when it is stale.\n"
        f"#   kubectl apply -f deploy/manifests/{name}.yaml\n"
        "---\n" + helm_only.sub("", text)
    )


def manifests(update):
    """Compares, or rewrites, one manifest for each *.values.yaml."""
    stale = 0
    for values_file in sorted((DEPLOY / "manifests").glob("*.values.yaml")):
        path = values_file.with_name(values_file.name.removesuffix(".values.yaml") + ".yaml")
        want = plain_manifest(values_file)
        have = path.read_text() if path.exists() else ""
        if update:
            path.write_text(want)
        elif have != want:
            stale += 1
            sys.stdout.writelines(
                difflib.unified_diff(have.splitlines(True), want.splitlines(True), str(path), "rendered")
            )
        errors = [error for document in objects(want) for error in object_errors(document)]
        for error in errors:
            print(f"{path.name}: {error}")
        stale += len(errors)
        print(f"manifest {path.name}: {'written' if update else 'checked'}")
    return 1 if stale else 0


def pod_of(component):
    """The pod template that the chart renders for a component with default values."""
    for document in objects(render(ENABLING[component])):
        if document["kind"] in ("DaemonSet", "Deployment") and document["metadata"]["name"] == component:
            return document["spec"]["template"]["spec"]
    raise SystemExit(f"the chart has no DaemonSet or Deployment {component}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("manifests").add_argument("--update", action="store_true")
    options = parser.parse_args()
    match options.command:
        case "check":
            return check()
        case "manifests":
            return manifests(options.update)


if __name__ == "__main__":
    sys.exit(main())
