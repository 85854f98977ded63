//! Endpoint selection against the public suites: the table of kube-proxy's own unit tests, and where the packets
//! of its nftables tests go.
//!
//! `make test-conformance` runs this; the suites are not part of the project: they are data in
//! `../shared/conformance`, or in `CONFORMANCE_DIR`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common_informer::decode::{self, ServiceDetail};
use common_informer::endpoints::{
    Candidate, Fate, Place, Policies, PortKey, Selection, Slices, Traffic, select,
};
use common_informer::intern::Interner;
use common_informer::object::{
    AddressType, Change, Endpoint, EndpointPort, EndpointSlice, Family, FullService, FullServicePort, Hints,
    Kind, Object, ObjectKey, Protocol, Str, TrafficPolicy,
};
use ipnet::IpNet;
use serde_json::Value;

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

/// A field that is a list of strings; `null` is `None`.
fn strings(value: &Value) -> Option<Vec<Str>> {
    let list = value.as_array()?;
    Some(list.iter().map(|text| text.as_str().unwrap().into()).collect())
}

fn socket(endpoint: &Candidate) -> SocketAddr {
    (endpoint.address, endpoint.port).into()
}

/// The only case that is about a feature gate being off. It is always on since Kubernetes 1.35.
const GATE_OFF: &str = "PreferSameNode falls back to same-zone when feature gate disabled";
const THIS_NODE: &str = "this-node";
const TCP_80: PortKey<'_> = PortKey { name: "", protocol: Protocol::Tcp, family: Family::V4 };

#[test]
fn endpoints_are_those_that_kube_proxy_chooses() {
    let cases = suite("service-endpoint-selection.json");
    let cases: Vec<_> = cases.iter().filter(|case| case["name"] != GATE_OFF).collect();
    assert_eq!(cases.len(), 31);
    for case in cases {
        judge(case);
    }
}

fn judge(case: &Value) {
    let name = &case["name"];
    let flag = |field: &str| case["service"][field].as_bool().unwrap();
    let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let external = flag("externallyAccessible").then(|| policy(flag("externalTrafficPolicyLocal")));
    let policies = Policies { internal: policy(flag("internalTrafficPolicyLocal")), external };
    let zone = case["nodeLabels"]["topology.kubernetes.io/zone"].as_str();
    let node = case["nodeName"].as_str().filter(|node| !node.is_empty()).unwrap_or(THIS_NODE);
    let place = Place { node: node.into(), zone: zone.filter(|zone| !zone.is_empty()).map(Str::from) };
    let slice = slice_of(case, &place);
    let selection = select(TCP_80, &place, [&slice]);

    let expect = &case["expect"];
    let set = |list: &Value| -> BTreeSet<SocketAddr> {
        strings(list).unwrap_or_default().iter().map(|text| text.parse().unwrap()).collect()
    };
    for (field, policy) in
        [("clusterEndpoints", TrafficPolicy::Cluster), ("localEndpoints", TrafficPolicy::Local)]
    {
        if !expect[field].is_null() {
            let serving: BTreeSet<_> = selection.serving(policy).map(socket).collect();
            assert_eq!(serving, set(&expect[field]), "{name}: {field}");
        }
        if !slice.endpoints.is_empty() {
            assert_eq!(!expect[field].is_null(), policies.uses(policy), "{name}: {field}");
        }
    }
    let reachable: BTreeSet<_> = selection.reachable(policies).map(socket).collect();
    assert_eq!(reachable, set(&expect["allReachableEndpoints"]), "{name}");
    assert_eq!(selection.has_any(), expect["hasAnyEndpoints"].as_bool().unwrap(), "{name}");
}

fn slice_of(case: &Value, place: &Place) -> Arc<EndpointSlice> {
    let endpoint = |value: &Value| {
        let socket: SocketAddr = value["endpoint"].as_str().unwrap().parse().unwrap();
        assert_eq!(socket.port(), 80);
        let names = |field: &str| strings(&value[field]).unwrap_or_default().into();
        let flag = |field: &str| value[field].as_bool().unwrap();
        Endpoint {
            address: socket.ip(),
            ready: flag("ready"),
            serving: flag("serving"),
            terminating: flag("terminating"),
            node: flag("isLocal").then(|| place.node.clone()),
            hints: Some(Hints { zones: names("zoneHints"), nodes: names("nodeHints") }.into()),
        }
    };
    let endpoints = case["endpoints"].as_array().into_iter().flatten().map(endpoint).collect();
    Arc::new(EndpointSlice {
        key: ObjectKey { namespace: "x".into(), name: "s-1".into() },
        service: Some("s".into()),
        address_type: AddressType::Ip(Family::V4),
        ports: [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: Some(80) }].into(),
        endpoints,
    })
}

/// The objects of one state.
struct State {
    services: Vec<Arc<FullService>>,
    slices: Slices,
    place: Place,
    node_ports: Vec<IpNet>,
    node_ips: Vec<IpAddr>,
    /// Packets from pods can be told from those from outside.
    knows_pods: bool,
}

impl State {
    fn of(case: &Value) -> Self {
        let mut interner = Interner::new();
        let mut read = |kind, value: &Value| {
            let decoded = decode::object_of_with(ServiceDetail::Full, kind, value, &mut interner).unwrap();
            assert_eq!(decoded.notes, [""; 0]);
            decoded.object
        };
        let (mut services, mut slices) = (Vec::new(), Slices::new());
        for value in case["services"].as_array().unwrap() {
            let Object::FullService(service) = read(Kind::Service, value) else { panic!() };
            services.push(service);
        }
        for value in case["endpointSlices"].as_array().unwrap() {
            let change = Change::Applied(read(Kind::EndpointSlice, value));
            slices.apply(&change, &mut BTreeSet::new());
        }
        let ranges = case["nodePortAddresses"].as_str().unwrap().trim_matches(['[', ']']);
        let zone = case["topologyLabels"]["topology.kubernetes.io/zone"].as_str().map(Str::from);
        Self {
            services,
            slices,
            place: Place { node: case["nodeName"].as_str().unwrap().into(), zone },
            node_ports: ranges.split(' ').map(|range| range.parse().unwrap()).collect(),
            node_ips: strings(&case["nodeIPs"])
                .unwrap_or_default()
                .iter()
                .map(|ip| ip.parse().unwrap())
                .collect(),
            knows_pods: !case["localDetector"].as_str().unwrap().starts_with("none"),
        }
    }

    /// The port of a Service to which packets go, and which kind of its addresses that is.
    fn port(
        &self,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Option<(&FullService, &FullServicePort, Traffic, bool)> {
        let node_port =
            self.node_ips.contains(&to.ip()) && self.node_ports.iter().any(|net| net.contains(&to.ip()));
        let ports =
            self.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
        ports.filter(|(_, port)| port.protocol == protocol).find_map(|(service, port)| {
            let guarded = service
                .settings
                .load_balancer_ips
                .iter()
                .any(|address| address.ip == to.ip() && !address.proxied);
            let traffic = if port.port == to.port() && service.cluster_ips.contains(&to.ip()) {
                Traffic::Internal
            } else if port.port == to.port() && (guarded || service.settings.external_ips.contains(&to.ip()))
                || node_port && port.node_port == Some(to.port())
            {
                Traffic::External
            } else {
                return None;
            };
            Some((&**service, port, traffic, guarded))
        })
    }
}

/// What the model says of a flow, in the words of the suite; `None` if it is about something else: a packet to
/// nobody, or one that the ranges of the load balancer keep out.
fn destinations(state: &State, flow: &Value) -> Option<String> {
    let text = |field: &str| flow[field].as_str().unwrap();
    let to = SocketAddr::new(
        text("destIP").parse().unwrap(),
        u16::try_from(flow["destPort"].as_u64().unwrap()).unwrap(),
    );
    let source: IpAddr = text("sourceIP").parse().unwrap();
    let (service, port, traffic, guarded) = state.port(to, Protocol::parse(text("protocol")).unwrap())?;
    if guarded && text("output") == "DROP" && service.settings.source_ranges.is_some() {
        let ranges = service.settings.source_ranges.as_deref().unwrap_or_default();
        assert!(!ranges.iter().any(|range| range.contains(&source)), "{flow}");
        return None;
    }
    let traffic = match traffic {
        Traffic::External => match text("sourceClass") {
            "node" => Traffic::Inside,
            "pod" if state.knows_pods => Traffic::Inside,
            _ => Traffic::External,
        },
        traffic => traffic,
    };
    let key = PortKey { name: &port.name, protocol: port.protocol, family: Family::of(to.ip()) };
    let selection = select(key, &state.place, state.slices.of(&service.key));
    let policy = Policies::of(service).to(traffic).unwrap();
    Some(told(&selection, policy))
}

fn told(selection: &Selection, policy: TrafficPolicy) -> String {
    match selection.fate(policy) {
        Fate::Refused => "REJECT".to_owned(),
        Fate::Dropped => "DROP".to_owned(),
        Fate::Served => {
            let sockets: Vec<String> =
                selection.serving(policy).map(|endpoint| socket(endpoint).to_string()).collect();
            sockets.join(", ")
        }
    }
}

#[test]
fn packets_go_where_kube_proxy_sends_them() {
    let states = suite("service-flows-nftables.json");
    let (mut judged, mut passed_over, mut wrong) = (0, Vec::new(), Vec::new());
    for case in &states {
        let state = State::of(case);
        for flow in case["flows"].as_array().unwrap() {
            let expected = flow["output"].as_str().unwrap();
            let name =
                format!("{}: {} -> {}:{}", case["test"], flow["name"], flow["destIP"], flow["destPort"]);
            match destinations(&state, flow) {
                Some(told) if told == expected => judged += 1,
                Some(told) => wrong.push(format!("{name}: {told:?}, expected {expected:?}")),
                None => passed_over.push(format!("{name}: {expected:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    // So that a suite that was lost on the way does not count as passed.
    assert_eq!((states.len(), judged, passed_over.len()), (41, 198, 9), "{}", passed_over.join("\n"));
}
