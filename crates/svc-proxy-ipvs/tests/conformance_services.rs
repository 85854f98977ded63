//! What becomes of packets to Services, against the public suites: every flow of kube-proxy's nftables tests, and
//! the virtual servers of its ipvs tests.
//!
//! `make test-conformance` runs this; the suites are not part of the project: they are data in
//! `../shared/conformance`, or in `CONFORMANCE_DIR`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use common_informer::decode::{self, ServiceDetail};
use common_informer::intern::Interner;
use common_informer::object::{Change, Kind, Protocol};
use kernel_netlink::ipvs::ServiceKey;
use serde_json::{Value, json};
use svc_proxy_ipvs::model::addresses::LocalAddress;
use svc_proxy_ipvs::plan::Virtual;

use support::node::{Connection, Fate, Place, Seen, fate};
use support::{Pure, config};

fn suite(name: &str) -> Vec<Value> {
    let directory = std::env::var_os("CONFORMANCE_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
        PathBuf::from,
    );
    let path = directory.join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; CONFORMANCE_DIR must name the folder with the suites", path.display())
    });
    serde_json::from_str(&text).unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap())
}

/// The node of a state, with all its objects.
fn node_of(case: &Value, flags: &[String], addresses: &[&str]) -> Pure {
    let mut flags = flags.to_vec();
    flags.push("--strict-external-ip-validation=false".into());
    if case["masqueradeAll"] == true {
        flags.push("--masquerade-all".into());
    }
    let ranges = case["nodePortAddresses"].as_str().unwrap().trim_matches(['[', ']']);
    flags.push(format!("--nodeport-addresses={}", ranges.replace(' ', ",")));
    let name = case["nodeName"].as_str().unwrap();
    let mut pure = Pure::new(name, config(&flags));
    pure.local =
        addresses.iter().map(|ip| LocalAddress { ip: ip.parse().unwrap(), device: "eth0".into() }).collect();
    let mut interner = Interner::new();
    let mut read = |kind, value: &Value| {
        Change::Applied(
            decode::object_of_with(ServiceDetail::Full, kind, value, &mut interner).unwrap().object,
        )
    };
    let labels = &case["topologyLabels"];
    let node = json!({"metadata": {"name": name, "labels": labels}});
    let mut changes = vec![read(Kind::Node, &node)];
    for (field, kind) in [("services", Kind::Service), ("endpointSlices", Kind::EndpointSlice)] {
        for value in case[field].as_array().unwrap() {
            let mut value = value.clone();
            if value["addressType"] == "" {
                // Written past the API server, which takes no slice without.
                value["addressType"] = case["ipFamily"].clone();
            }
            changes.push(read(kind, &value));
        }
    }
    pure.update(changes);
    pure
}

/// A flow that does not go as kube-proxy has it.
struct Different {
    line: String,
    /// Where the client is, as far as the node can know.
    place: Place,
    /// kube-proxy changes the source.
    changes: bool,
    /// It goes to the endpoints that kube-proxy chooses.
    same_endpoints: bool,
    /// The endpoints, as whom each sees its client, and whether it is on this node.
    seen: Vec<(Seen, bool)>,
    masquerade_all: bool,
    knows_pods: bool,
}

impl Different {
    fn all_see(&self, seen: Seen) -> bool {
        self.seen.iter().all(|(other, _)| *other == seen)
    }

    /// The source is changed just for endpoints on other nodes.
    fn only_elsewhere(&self) -> bool {
        self.seen.iter().all(|(seen, here)| *seen == if *here { Seen::Client } else { Seen::Node })
    }
}

/// Why a flow differs, what such a flow looks like, and how many there are.
type Reason = (&'static str, fn(&Different) -> bool, usize);

/// Every difference has a reason here. The endpoints are always the same.
const REASONS: [Reason; 5] = [
    (
        "an endpoint of this node answers through it anyway, so it sees the client; kube-proxy hides every client \
         from outside",
        |flow| flow.changes && flow.place == Place::Elsewhere && flow.only_elsewhere(),
        30,
    ),
    (
        "a pod of this node has its answers through it anyway, so endpoints see the pod; kube-proxy hides it where \
         it uses an external address",
        |flow| flow.changes && flow.place == Place::Pod && flow.all_see(Seen::Client),
        7,
    ),
    (
        "--masquerade-all is kube-router's: it hides the clients of every front; kube-proxy's leaves policy Local \
         alone",
        |flow| !flow.changes && flow.masquerade_all && flow.all_see(Seen::Node),
        8,
    ),
    (
        "what the node sends has its address from the start (a hint of the route), so there is nothing to change",
        |flow| !flow.changes && flow.place == Place::Node && flow.all_see(Seen::Node),
        3,
    ),
    (
        "where no range of pods is known everybody is from elsewhere, and answers must come back by this node; \
         kube-proxy then changes no source of packets to cluster IPs",
        |flow| !flow.changes && !flow.knows_pods && flow.place == Place::Elsewhere && flow.only_elsewhere(),
        4,
    ),
];

/// Where a flow goes, in the words of the suite.
fn told(fate: &Fate) -> String {
    match fate {
        Fate::Passed => String::new(),
        Fate::Refused => "REJECT".to_owned(),
        Fate::Dropped => "DROP".to_owned(),
        Fate::Served(endpoints) => {
            let sockets: BTreeSet<_> =
                endpoints.iter().map(|(ip, port, _)| SocketAddr::new(*ip, *port)).collect();
            let text: Vec<_> = sockets.iter().map(ToString::to_string).collect();
            text.join(", ")
        }
    }
}

/// Whether an address is that of an endpoint on the node of a state.
fn is_here(case: &Value, ip: IpAddr) -> bool {
    let slices = case["endpointSlices"].as_array().unwrap();
    let mut endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    endpoints.any(|endpoint| {
        endpoint["nodeName"] == case["nodeName"]
            && list(&endpoint["addresses"]).any(|text| text.parse() == Ok(ip))
    })
}

/// Whether packets of pods can be told from others.
fn knows_pods(case: &Value) -> bool {
    !case["localDetector"].as_str().unwrap().starts_with("none")
}

/// A flow; `None` if it goes as kube-proxy has it.
fn judge(case: &Value, node: &Pure, flow: &Value) -> Option<Different> {
    let text = |field: &str| flow[field].as_str().unwrap();
    let knows_pods = knows_pods(case);
    let source: IpAddr = text("sourceIP").parse().unwrap();
    let place = match text("sourceClass") {
        // A packet from a virtual address is one that this node sends.
        _ if node.planner.wants_vip(source) => Place::Node,
        "node" => Place::Node,
        "pod" if knows_pods => Place::Pod,
        _ => Place::Elsewhere,
    };
    let connection = Connection {
        place,
        source,
        destination: text("destIP").parse().unwrap(),
        protocol: Protocol::parse(text("protocol")).unwrap(),
        port: u16::try_from(flow["destPort"].as_u64().unwrap()).unwrap(),
    };
    let fate = fate(node, &connection);
    let seen: Vec<_> = match &fate {
        Fate::Served(endpoints) => {
            endpoints.iter().map(|(ip, _, seen)| (*seen, is_here(case, *ip))).collect()
        }
        _ => Vec::new(),
    };
    let (where_to, changes) = (told(&fate), flow["masquerade"].as_bool().unwrap());
    let same_endpoints = where_to == text("output");
    if same_endpoints && seen.iter().all(|(seen, _)| (*seen != Seen::Client) == changes) {
        return None;
    }
    let line = format!(
        "{}, {}: {connection:?} goes to {where_to:?} as {seen:?}, expected {:?}, source changed: {changes}",
        case["test"], flow["name"], flow["output"],
    );
    let masquerade_all = case["masqueradeAll"] == true;
    Some(Different { line, place, changes, same_endpoints, seen, masquerade_all, knows_pods })
}

#[test]
fn packets_go_where_kube_proxy_sends_them_or_we_say_why_not() {
    let (mut flows, mut reasons, mut wrong) = (0, REASONS.map(|_| 0), Vec::new());
    let states = suite("service-flows-nftables.json");
    for case in &states {
        let mut flags = vec!["--service-cluster-ip-range=172.30.0.0/16,fd00:172:30::/112".to_owned()];
        if knows_pods(case) {
            // Clients in pods are the pods of this node; endpoints are where their slices say.
            let clients =
                case["flows"].as_array().unwrap().iter().filter(|flow| flow["sourceClass"] == "pod");
            flags.extend(clients.map(|flow| format!("--pod-cidr={}", flow["sourceIP"].as_str().unwrap())));
        }
        let addresses: Vec<_> = list(&case["nodeIPs"]).collect();
        let node = node_of(case, &flags, &addresses);
        for flow in case["flows"].as_array().unwrap() {
            flows += 1;
            let Some(different) = judge(case, &node, flow) else { continue };
            let reason = REASONS.iter().position(|(_, applies, _)| applies(&different));
            match reason.filter(|_| different.same_endpoints) {
                Some(number) => reasons[number] += 1,
                None => wrong.push(different.line),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    // So that a suite that was lost on the way does not count as passed.
    assert_eq!((states.len(), flows), (41, 207));
    assert_eq!(reasons, REASONS.map(|(.., count)| count));
}

/// A virtual server in the words of the suite, on one line.
fn line(server: &Value) -> String {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap().to_owned();
    let mut reals: Vec<_> = server["realServers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|real| format!("{}:{}*{}", text(real, "address"), real["port"], real["weight"]))
        .collect();
    reals.sort();
    format!(
        "{} {}:{} {} flags {} for {} s: {}",
        text(server, "protocol"),
        text(server, "address"),
        server["port"],
        text(server, "scheduler"),
        server["flags"],
        server["persistentTimeoutSeconds"],
        reals.join(" ")
    )
}

fn our_line(wanted: &Virtual) -> String {
    let ServiceKey::Address { protocol, address, port } = wanted.service.key else { panic!("{wanted:?}") };
    let mut reals: Vec<_> = wanted
        .destinations
        .iter()
        .map(|to| format!("{}:{}*{}", to.key.address, to.key.port, to.weight))
        .collect();
    reals.sort();
    // KERNEL: IP_VS_SVC_F_PERSISTENT is 1.
    let flags = wanted.service.flags.bits() | u32::from(wanted.service.persistence.is_some());
    let seconds = wanted.service.persistence.map_or(0, |persistence| persistence.timeout);
    let scheduler = wanted.service.scheduler;
    format!("{protocol} {address}:{port} {scheduler} flags {flags} for {seconds} s: {}", reals.join(" "))
}

/// Virtual servers that kube-proxy has and we do not, and why. There are none that only we have.
const MISSING: [(&str, &str, usize); 1] =
    [("TCP 127.0.0.1:80 ", "an external address cannot be loopback: it would be the node's own port", 2)];

/// A state of the ipvs suite as the API server could have it.
fn corrected(case: &Value) -> Value {
    let mut case = case.clone();
    for service in case["services"].as_array_mut().unwrap() {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            // Written past the API server: there is no port 0.
            if port["port"] == 0 {
                port["port"] = json!(80);
            }
        }
    }
    for server in case["expectVirtualServers"].as_array_mut().unwrap() {
        if server["port"] == 0 {
            server["port"] = json!(80);
        }
    }
    // Where the node's addresses were not recorded, this is the one that node ports were found on.
    if case["nodePortAddresses"] == "[100.101.102.0/24]" {
        case["nodeLocalAddresses"] = json!(["100.101.102.103"]);
    }
    case
}

#[test]
fn virtual_services_are_those_of_kube_proxy_or_we_say_why_not() {
    let (mut servers, mut missing, mut wrong) = (0, MISSING.map(|_| 0), Vec::new());
    let states = suite("service-ipvs-state.json");
    for case in states.iter().map(corrected) {
        let other = if case["ipFamily"] == "IPv6" { "--enable-ipv4=false" } else { "--enable-ipv6=false" };
        let mut flags = vec![other.to_owned()];
        for flag in ["service-cluster-ip-range", "service-external-ip-range", "loadbalancer-ip-range"] {
            let everything = if case["ipFamily"] == "IPv6" { "::/0" } else { "0.0.0.0/0" };
            flags.push(format!("--{flag}={everything}"));
        }
        let addresses: Vec<_> = list(&case["nodeLocalAddresses"]).collect();
        let node = node_of(&case, &flags, &addresses);
        let ours: BTreeSet<_> = node.planner.virtuals().values().map(|wanted| our_line(wanted)).collect();
        let theirs: BTreeSet<_> = case["expectVirtualServers"].as_array().unwrap().iter().map(line).collect();
        servers += theirs.len();
        wrong.extend(ours.difference(&theirs).map(|line| format!("{}: only we have {line}", case["test"])));
        for line in theirs.difference(&ours) {
            match MISSING.iter().position(|(start, ..)| line.starts_with(start)) {
                Some(number) => missing[number] += 1,
                None => wrong.push(format!("{}: only kube-proxy has {line}", case["test"])),
            }
        }
        // kube-proxy binds them to its dummy device, we route them: the addresses are the same.
        let vips: BTreeSet<_> = node.planner.vips().map(|ip| ip.to_string()).collect();
        let bound: BTreeSet<_> =
            list(&case["expectBoundVIPs"]).filter(|ip| *ip != "127.0.0.1").map(str::to_owned).collect();
        if vips != bound {
            wrong.push(format!("{}: virtual addresses {vips:?}, expected {bound:?}", case["test"]));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(states.len(), 50);
    assert!(servers >= 80, "{servers}");
    assert_eq!(missing, MISSING.map(|(.., count)| count));
}
