"""Scrapes a built component with a real Prometheus and holds dashboard and alerts against what it finds.

    metrics_check.py COMPONENT BINARY

Started by deploy/check-metrics inside a fresh network namespace.
"""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import yaml

import api_server
import chart
from checks import require, run_all, wait_for

HERE = pathlib.Path(__file__).resolve().parent
METRICS, PROMETHEUS = "127.0.0.1:20245", "127.0.0.1:9090"
# What Grafana puts into a dashboard's expressions.
GRAFANA = {"$instance": ".*", "$__rate_interval": "10s"}
# Names in expressions that are neither a metric of ours nor of the process.
SCRAPED_BY_PROMETHEUS = {"up"}
# The one thing in deploy/testdata that is wrong for the component, as the alert that it raises.
FAULTS = {
    "npc-firewall": ("NpcFirewallExcludedObjects", "NetworkPolicy"),
    "svc-proxy-ipvs": ("SvcProxyIpvsExcludedObjects", "Service"),
    "lb-ipam": ("LbIpamExcludedObjects", "Service"),
    "cni-bridge-agent": ("CniBridgeAgentExcludedObjects", "Node"),
}
# Of node-a in deploy/testdata.
NODE_ADDRESS = "192.0.2.11/24"


def fetch(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def api(path, **parameters):
    """The `data` of an answer of Prometheus' API."""
    url = f"http://{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        return json.loads(fetch(url))["data"]
    except urllib.error.HTTPError as error:
        if error.code >= 500:  # It is still starting.
            raise
        raise AssertionError(f"Prometheus refuses {parameters}: {error.read().decode()}") from None


def query(expression):
    return api("query", query=expression)["result"]


def until(expression, what):
    """Waits until Prometheus answers, and `expression` has a result."""

    def answered():
        with contextlib.suppress(OSError):
            return bool(query(expression))

    wait_for(answered, 30, lambda: what)


@contextlib.contextmanager
def process(name, *command):
    """Runs until the block ends; its output is shown when the block fails."""
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield child
        except BaseException:
            log.seek(0)
            print(f"--- output of {name}\n{log.read()[-4000:]}\n---")
            raise
        finally:
            child.terminate()
            child.wait(timeout=20)


def arguments(component):
    """Those that the chart gives, without what only a pod has."""
    args = chart.pod_of(component)["containers"][0]["args"]
    return [arg for arg in args if not arg.startswith("--sysctl-root=")]


@contextlib.contextmanager
def cluster(component):
    """Arguments by which the component gets at deploy/testdata."""
    if component == "lb-ipam":
        with api_server.serving(HERE / "testdata") as url:
            yield [f"--master={url}", "--lease-namespace=kube-system", "--pod-name=lb-ipam-a"]
        return
    objects = [f"--manifests={HERE}/testdata", "--node-name=node-a"]
    if component == "cni-bridge-agent":
        with node() as folders:
            yield [*objects, *folders]
    else:
        yield objects


@contextlib.contextmanager
def node():
    """The device that has the node's address, and arguments by which files of this machine are left alone."""
    for command in ("link add node type bridge", f"address add {NODE_ADDRESS} dev node", "link set node up"):
        subprocess.run(["ip", *command.split()], check=True)
    with tempfile.TemporaryDirectory() as folder:
        # As the kubelet makes them.
        for name in ("net.d", "bin"):
            pathlib.Path(folder, name).mkdir()
        yield [f"--cni-conf-file={folder}/net.d/10-kuberouter.conflist", f"--cni-bin-dir={folder}/bin"]


def prometheus_config(component, folder):
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(HERE / "alerts" / f"{component}.yaml")],
        "scrape_configs": [{"job_name": component, "static_configs": [{"targets": [METRICS]}]}],
    }
    path = pathlib.Path(folder, "prometheus.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def dashboard_expressions(component):
    dashboard = json.loads((HERE / "dashboards" / f"{component}.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in GRAFANA.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression


def alert_expressions(component):
    rules = yaml.safe_load((HERE / "alerts" / f"{component}.yaml").read_text())
    return [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]


def metric_names(component, expression):
    """Names of series, without the suffixes under which a histogram is stored being taken away."""
    prefix = component.replace("-", "_")
    return set(re.findall(rf"\b({prefix}_\w+|process_\w+|up)\b", expression))


def exposition_is_clean(component):
    """promtool's rules about names, types, units and help texts."""
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=fetch(f"http://{METRICS}/metrics"), capture_output=True
    )
    said = (result.stdout + result.stderr).decode()
    require(result.returncode == 0 and not said.strip(), said)


def every_metric_of_dashboard_and_alerts_is_scraped(component):
    scraped = set(api("label/__name__/values"))
    wanted = [*dashboard_expressions(component), *alert_expressions(component)]
    require(wanted, "nothing to check")
    missing = {
        f"{name} ({where})"
        for where, expression in wanted
        for name in metric_names(component, expression) - SCRAPED_BY_PROMETHEUS
        if name not in scraped
    }
    require(not missing, f"not in the scrape: {sorted(missing)}")


def every_panel_shows_data(component):
    empty = [
        f"{title}: {expression}" for title, expression in dashboard_expressions(component) if not query(expression)
    ]
    require(not empty, "panels without data:\n      " + "\n      ".join(empty))


def alert_rules_are_evaluated(component):
    rules = [rule for group in api("rules")["groups"] for rule in group["rules"]]
    bad = [rule for rule in rules if rule["health"] != "ok"]
    require(rules and not bad, f"rules: {bad or 'none loaded'}")


def only_the_faulty_object_raises_an_alert(component):
    alerts = {(a["labels"]["alertname"], a["labels"].get("kind")) for a in api("alerts")["alerts"]}
    require(alerts == {FAULTS[component]}, f"alerts: {sorted(alerts)}")


CHECKS = [
    exposition_is_clean,
    every_metric_of_dashboard_and_alerts_is_scraped,
    every_panel_shows_data,
    alert_rules_are_evaluated,
    only_the_faulty_object_raises_an_alert,
]


def main(component, binary):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    address, port = METRICS.split(":")
    metrics = [f"--metrics-addr={address}", f"--metrics-port={port}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(component) as source,
        process(component, binary, *arguments(component), *metrics, *source),
        process(
            "prometheus",
            "prometheus",
            f"--config.file={prometheus_config(component, folder)}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={PROMETHEUS}",
        ),
    ):
        prefix = component.replace("-", "_")
        until(f'up{{job="{component}"}} == 1', "Prometheus scrapes the component")
        until(f"{prefix}_last_success_timestamp_seconds > 0", "the component is in sync")
        # Rates need two scrapes after the sync, alerts an evaluation.
        until(f'count_over_time(up{{job="{component}"}}[1m]) >= 8', "there were eight scrapes")
        return run_all("metrics", CHECKS, component)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
