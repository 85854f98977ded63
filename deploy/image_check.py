"""Checks a built image by running it as the chart would: through an OCI runtime, in a network of its own.

    image_check.py COMPONENT

Started by deploy/check-image inside a fresh network namespace. The container's configuration is
translated from the pod that the chart renders (arguments, user, capabilities, read-only root, no new
privileges, mounts, the runtime's default seccomp profile), so chart and image are tested against each other.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from subprocess import PIPE

import chart
from checks import require, run_all, wait_for

HERE = pathlib.Path(__file__).resolve().parent
SECCOMP = pathlib.Path("/usr/share/containers/seccomp.json")
BRIDGE_SYSCTL = pathlib.Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
NODE = "node-a"
# The kernel's numbers (linux/capability.h).
CAPABILITY = {"DAC_OVERRIDE": 1, "NET_ADMIN": 12, "SYS_ADMIN": 21}
# Only these files are in an image, beside its program; anything else is a surprise.
FILES = {"etc/ssl/certs/ca-certificates.crt"}
MORE_FILES = {"cni-bridge-agent": {"cni-bridge"}}
# What `plan` says of deploy/testdata.
PLANS = {
    "npc-firewall": ["table inet npc_firewall", "10.244.1.10"],
    "svc-proxy-ipvs": ["-A -t 10.96.0.10:80 -s rr", "-r 10.244.1.10:8080", "table inet svc_proxy_ipvs"],
    "lb-ipam": ["shop/public 192.0.2.1 (new)", "shop/elsewhere none"],
    "cni-bridge-agent": ["cni-bridge", "kube-bridge", "10.244.1.0/24"],
}
# Of node-a in deploy/testdata.
NODE_ADDRESS = "192.0.2.11/24"
# Of the plugin, which is read anew for each pod.
PLUGIN_LIMIT = 3_000_000
API_NAME, API_ADDRESS, API_PORT = "api.check.test", "127.0.0.2", 6443


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


def default_seccomp(capabilities):
    """The distribution's default profile, reduced to what applies with these capabilities on this machine."""
    profile = json.loads(SECCOMP.read_text())
    (machine,) = [m for m in profile["archMap"] if m["architecture"] == "SCMP_ARCH_" + os.uname().machine.upper()]
    have = set(capabilities)
    go_arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]

    def applies(rule):
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        return (
            set(includes.get("caps") or []) <= have
            and not set(excludes.get("caps") or []) & have
            and go_arch in (includes.get("arches") or [go_arch])
            and go_arch not in (excludes.get("arches") or [])
        )

    keys = ("names", "action", "args", "errnoRet")
    rules = [{k: r[k] for k in keys if r.get(k) is not None} for r in profile["syscalls"] if applies(r)]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": [machine["architecture"], *(machine.get("subArchitectures") or [])],
        "syscalls": rules,
    }


def bind(source, destination, mode):
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["bind", mode]}


def node_folder(path, node):
    """A folder of the node. Files of this machine are not written: a folder stands for its root."""
    if path.startswith(("/proc/", "/run/")):
        return path
    folder = pathlib.Path(node, path.removeprefix("/"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def oci_config(pod, rootfs, node, args, extra_mounts):
    """What a container runtime makes of the pod, in the format of the OCI runtime specification."""
    (container,) = pod["containers"]
    security = pod["securityContext"] | container["securityContext"]
    require(security["capabilities"]["drop"] == ["ALL"], "the translation assumes that all capabilities are dropped")
    capabilities = ["CAP_" + name for name in security["capabilities"].get("add", [])]
    with tempfile.TemporaryDirectory() as scratch:
        run("crun", "spec", cwd=scratch)
        config = json.loads(pathlib.Path(scratch, "config.json").read_text())
    config["root"] = {"path": str(rootfs), "readonly": security["readOnlyRootFilesystem"]}
    config["process"] |= {
        "terminal": False,
        "args": args,
        "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
        "env": [f"NODE_NAME={NODE}"],
        "noNewPrivileges": not security["allowPrivilegeEscalation"],
        "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
    }
    config["process"].pop("rlimits", None)
    # The kubelet mounts the volumes that the DaemonSet names.
    sources = {volume["name"]: node_folder(volume["hostPath"]["path"], node) for volume in pod.get("volumes", [])}
    volumes = [bind(sources[m["name"]], m["mountPath"], "rw") for m in container.get("volumeMounts", [])]
    # Cgroups are the kubelet's business, and may be of either version here.
    mounts = [m for m in config["mounts"] if m["type"] != "cgroup"]
    config["mounts"] = mounts + volumes + extra_mounts
    linux = config["linux"]
    linux.pop("resources", None)
    # hostNetwork: the network of whoever starts the container.
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] not in ("network", "cgroup")]
    linux["seccomp"] = default_seccomp(capabilities)
    return config


@contextlib.contextmanager
def mounted(image):
    """The image's root file system, and its configuration."""
    name = run("buildah", "from", "--pull-never", image).strip()
    try:
        config = json.loads(run("buildah", "inspect", "--type", "image", image))["OCIv1"]["config"]
        yield pathlib.Path(run("buildah", "mount", name).strip()), config
    finally:
        run("buildah", "rm", name)


class Container:
    """Containers made from one image, each with other arguments."""

    def __init__(self, component, rootfs, node):
        self.rootfs, self.component, self.node = rootfs, component, node
        self.pod = chart.pod_of(component)
        self.own_args = self.pod["containers"][0]["args"]

    @contextlib.contextmanager
    def bundle(self, command, mounts):
        with tempfile.TemporaryDirectory() as folder:
            # A runtime makes the mount points that are missing, in a layer above the image.
            layers = {name: pathlib.Path(folder, name) for name in ("upper", "work", "root")}
            for layer in layers.values():
                layer.mkdir()
            options = f"lowerdir={self.rootfs},upperdir={layers['upper']},workdir={layers['work']}"
            run("mount", "-t", "overlay", "overlay", "-o", options, layers["root"])
            try:
                config = oci_config(self.pod, layers["root"], self.node, command, mounts)
                pathlib.Path(folder, "config.json").write_text(json.dumps(config))
                yield folder
            finally:
                run("umount", layers["root"])

    @contextlib.contextmanager
    def started(self, args, mounts=(), program=None):
        """A running container; ended by SIGTERM when the block ends."""
        command = [f"/{program or self.component}", *args]
        name = f"check-{self.component}-{os.getpid()}-{time.monotonic_ns()}"
        with self.bundle(command, list(mounts)) as folder, tempfile.TemporaryFile("w+") as log:
            crun = ["crun", "--cgroup-manager=disabled", "run", "--bundle", folder, name]
            process = subprocess.Popen(crun, stdout=log, stderr=subprocess.STDOUT)

            def output():
                log.seek(0)
                return log.read()

            try:
                yield process, output
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(timeout=20)

    def run_to_end(self, args, mounts=(), program=None):
        with self.started(args, mounts, program) as (process, output):
            code = process.wait(timeout=60)
            require(code == 0, f"{args} exited with {code}:\n{output()}")
            return output()


def get(path, port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def image_holds_the_binary_and_certificates_only(container, config, component):
    found = {str(p.relative_to(container.rootfs)) for p in container.rootfs.rglob("*") if not p.is_dir()}
    require(found == FILES | {component} | MORE_FILES.get(component, set()), f"files in the image: {sorted(found)}")
    require(config["Entrypoint"] == [f"/{component}"], f"entry point: {config['Entrypoint']}")
    labels = config["Labels"]
    for label in ("title", "description", "version", "revision", "source", "licenses"):
        require(labels.get(f"org.opencontainers.image.{label}"), f"label {label} is missing: {labels}")
    size = sum(p.stat().st_size for p in container.rootfs.rglob("*") if p.is_file())
    print(f"    image size: {size / 2**20:.1f} MiB")


def binary_tells_its_version(container, config, component):
    said = container.run_to_end(["--version"])
    version = config["Labels"]["org.opencontainers.image.version"]
    require(said.split() == [component, version], f"--version said {said!r}")


def plan_is_printed(container, config, component):
    manifests = bind(HERE / "testdata", "/manifests", "ro")
    said = container.run_to_end(["plan", *container.own_args, "--manifests=/manifests"], [manifests])
    for want in PLANS[component]:
        require(want in said, f"{want} is not in the plan:\n{said}")


def once_puts_policies_in_force_with_net_admin_only(container, config, component):
    run("ip", "link", "add", "br-check", "type", "bridge")
    BRIDGE_SYSCTL.write_text("0\n")
    manifests = bind(HERE / "testdata", "/manifests", "ro")
    container.run_to_end([*container.own_args, "--manifests=/manifests", "--once"], [manifests])
    table = run("nft", "list", "table", "inet", component.replace("-", "_"))
    for want in ("10.244.1.10", "10.244.2.20", "fd00:244:1::10", "8080", "hook forward"):
        require(want in table, f"{want} is not in the table:\n{table}")
    require(BRIDGE_SYSCTL.read_text().strip() == "1", "the bridge sysctl was not set through /host/proc/sys")


def health_port(container):
    ports = {port["name"]: port["containerPort"] for port in container.pod["containers"][0]["ports"]}
    return ports[container.pod["containers"][0]["readinessProbe"]["httpGet"]["port"]]


def confinement(process):
    """What the kernel says of the program inside of the container that `process` runs."""
    pid = run("pgrep", "--parent", str(process.pid)).split()[0]
    return dict(re.findall(r"^(\w+):\s+(\S+)", pathlib.Path("/proc", pid, "status").read_text(), re.M))


def require_confinement(container, process):
    """It has the capabilities of the chart, and no other privileges."""
    (security,) = [c["securityContext"] for c in container.pod["containers"]]
    added = sum(1 << CAPABILITY[name] for name in security["capabilities"].get("add", []))
    status = confinement(process)
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        require(int(status[kind], 16) == added, f"{kind} is {status[kind]}")
    require(status["NoNewPrivs"] == "1", "new privileges are possible")
    require(status["Seccomp"] == "2", "no seccomp filter")


def require_end_by_signal(process, output):
    process.send_signal(signal.SIGTERM)
    require(process.wait(timeout=20) == 0, f"SIGTERM ended it with {process.returncode}:\n{output()}")


def daemon_runs_confined(container, config, component):
    manifests = bind(HERE / "testdata", "/manifests", "ro")
    port = health_port(container)
    with container.started([*container.own_args, "--manifests=/manifests"], [manifests]) as (process, output):
        wait_for(lambda: get("/readyz", port) == 200, 20, lambda: f"not ready:\n{output()}")
        require(get("/healthz", port) == 200, "/healthz is not 200")
        require_confinement(container, process)
        require_end_by_signal(process, output)


def table_outlives_the_daemon(container, config, component):
    run("nft", "list", "table", "inet", component.replace("-", "_"))


def lack_of_ipvs_is_told(container, config, component):
    manifests = bind(HERE / "testdata", "/manifests", "ro")
    with container.started([*container.own_args, "--manifests=/manifests"], [manifests]) as (process, output):
        require(process.wait(timeout=30) != 0, f"it runs without IPVS:\n{output()}")
        require("IPVS" in output(), f"it does not say what is missing:\n{output()}")


def no_capability_is_needed(container, config, component):
    args = [*container.own_args, "--master=http://127.0.0.1:1"]
    with container.started(args) as (process, output):
        wait_for(lambda: get("/healthz", health_port(container)) == 200, 20, lambda: f"not alive:\n{output()}")
        require_confinement(container, process)
        require(confinement(process)["Uid"] != "0", "it runs as root")
        require_end_by_signal(process, output)


def plugin_needs_no_libraries(container, config, component):
    """In the image there are none. On the node there may be others."""
    said = container.run_to_end([], program="cni-bridge")
    version = config["Labels"]["org.opencontainers.image.version"]
    require(f"cni-bridge {version}" in said and "1.1.0" in said, f"the plugin says of itself {said!r}")
    size = pathlib.Path(container.rootfs, "cni-bridge").stat().st_size
    print(f"    plugin: {size / 1e6:.1f} MB")
    require(size <= PLUGIN_LIMIT, f"the plugin has {size} bytes")


@contextlib.contextmanager
def pod_network():
    """The path of a network namespace of a pod."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo made; read _"], stdin=PIPE, stdout=PIPE) as pod:
        pod.stdout.readline()
        yield f"/proc/{pod.pid}/ns/net"
        pod.communicate(b"\n")


def once_installs_what_connects_pods(container, config, component):
    """Plugin and configuration are where a runtime looks for them, and work on the node, outside of the container."""
    for command in ("link add node type bridge", f"address add {NODE_ADDRESS} dev node", "link set node up mtu 1400"):
        run("ip", *command.split())
    manifests = bind(HERE / "testdata", "/manifests", "ro")
    container.run_to_end([*container.own_args, "--manifests=/manifests", "--once"], [manifests])
    conf = pathlib.Path(container.node, "etc/cni/net.d/10-kuberouter.conflist")
    network = json.loads(conf.read_text())
    ours = network["plugins"][0]
    require(ours["type"] == "cni-bridge", f"the configuration is {network}")
    # The reservations of this machine are left alone.
    ours["ipam"]["dataDir"] = f"{container.node}/networks"
    conf = pathlib.Path(container.node, "try.conflist")
    conf.write_text(json.dumps(network))
    plugin = pathlib.Path(container.node, "opt/cni/bin/cni-bridge")
    with pod_network() as netns:
        call = [f"--conf={conf}", "--id=try", f"--netns={netns}"]
        call = [word for option in call for word in option.split("=", 1)]
        result = json.loads(run(plugin, "exec", "add", *call))
        require(result["ips"][0]["address"] == "10.244.1.2/24", f"the pod has {result['ips']}")
        link = json.loads(run("nsenter", f"--net={netns}", "ip", "-json", "link", "show", "eth0"))
        # Of the node's device, less the overlay.
        require(link[0]["mtu"] == 1380, f"the pod's link is {link}")
        run(plugin, "exec", "del", *call)


def answer_names(server, asked):
    """A DNS server that knows one IPv4 address."""
    while True:
        try:
            query, client = server.recvfrom(512)
        except OSError:
            return
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += query[at] + 1
        (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
        asked.append(".".join(labels))
        known, question = asked[-1] == API_NAME, query[12 : at + 5]
        answer = b""
        if known and kind == 1:
            answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04" + socket.inet_aton(API_ADDRESS)
        flags = b"\x81\x80" if known else b"\x81\x83"
        header = query[:2] + flags + b"\0\x01" + struct.pack(">H", bool(answer)) + b"\0\0\0\0"
        server.sendto(header + question + answer, client)


def static_binary_resolves_names_by_dns(container, config, component):
    asked = []
    with (
        tempfile.NamedTemporaryFile("w", prefix="resolv") as resolv,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns,
        socket.create_server((API_ADDRESS, API_PORT)) as api,
    ):
        resolv.write("nameserver 127.0.0.1\nsearch check.test\noptions ndots:2\n")
        resolv.flush()
        os.chmod(resolv.name, 0o644)
        dns.bind(("127.0.0.1", 53))
        threading.Thread(target=answer_names, args=(dns, asked), daemon=True).start()
        api.settimeout(20)
        mounts = [bind(resolv.name, "/etc/resolv.conf", "ro")]
        # The search list has to be used too: `api` is only known as api.check.test.
        args = [*container.own_args, f"--master=https://api:{API_PORT}"]
        with container.started(args, mounts) as (_, output):
            try:
                connection, _ = api.accept()
            except TimeoutError:
                raise AssertionError(f"no connection came; names asked for: {asked}\n{output()}") from None
            connection.close()
    require(API_NAME in asked, f"names asked for: {asked}")


def has_ipvs():
    # The kernel would load it for the daemon too, with the same program.
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["modprobe", "--quiet", "ip_vs"], check=False)
    return pathlib.Path("/proc/net/ip_vs").exists()


def checks_of(component):
    """What every image must do, and what only this one must."""
    of_all = [image_holds_the_binary_and_certificates_only, binary_tells_its_version, plan_is_printed]
    match component:
        case "npc-firewall":
            own = [once_puts_policies_in_force_with_net_admin_only, daemon_runs_confined, table_outlives_the_daemon]
        case "svc-proxy-ipvs" if has_ipvs():
            own = [daemon_runs_confined, table_outlives_the_daemon]
        case "svc-proxy-ipvs":
            own = [lack_of_ipvs_is_told]
        case "lb-ipam":
            own = [no_capability_is_needed]
        case "cni-bridge-agent":
            own = [plugin_needs_no_libraries, once_installs_what_connects_pods, daemon_runs_confined]
        case _:
            raise SystemExit(f"image_check.py does not know what {component} must do")
    return [*of_all, *own, static_binary_resolves_names_by_dns]


def main(component):
    run("ip", "link", "set", "lo", "up")
    with mounted(f"localhost/{component}:latest") as (rootfs, config), tempfile.TemporaryDirectory() as node:
        return run_all("image", checks_of(component), Container(component, rootfs, node), config, component)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
