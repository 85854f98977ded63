//! The controller on kernels in memory: start, restart, faults, strangers, drains, and what a change costs.
//!
//! Bugs of kube-router that must not come back have their number in the name of their test (`w12_…`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common_informer::object::{Batch, Change, Kind, ObjectKey, ObjectRef};
use kernel_netlink::conntrack::{self, Conntrack};
use kernel_netlink::ipvs::{
    self, Command, CommitError, Destination, DestinationKey, DestinationState, Ipvs, Protocol, ServiceKey,
    ServiceState, Timeouts,
};
use kernel_netlink::route::{self, Address, LinkName, Rtnetlink};
use kernel_nft::{Counter, Family, Name, Nftables, Observed, Op, Ruleset, TableFlags, Transaction};
use node_runtime::{Cause, Controller, SyncError, SyncReport};
use support::{NODE, changes, config};
use svc_proxy_ipvs::controller::{Proxy, Surroundings};

const OWNED: TableFlags = TableFlags { owner: true, persist: true, dormant: false };
const UNOWNED: TableFlags = TableFlags { owner: false, persist: false, dormant: false };

/// Messages to the kernel, in order.
type Log = Arc<Mutex<Vec<String>>>;

/// A kernel, and what is said to it.
struct Told<T> {
    kernel: T,
    log: Log,
}

impl<T> Told<T> {
    fn note(&self, message: impl Into<String>) {
        self.log.lock().unwrap().push(message.into());
    }
}

impl Ipvs for Told<ipvs::Fake> {
    fn observe_services(&mut self) -> Result<Vec<ServiceState>, ipvs::Error> {
        self.note("ipvs? services");
        self.kernel.observe_services()
    }

    fn observe_service(&mut self, key: &ServiceKey) -> Result<Option<ServiceState>, ipvs::Error> {
        self.note(format!("ipvs? {key}"));
        self.kernel.observe_service(key)
    }

    fn observe_destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>, ipvs::Error> {
        self.note(format!("ipvs? destinations of {service}"));
        self.kernel.observe_destinations(service)
    }

    fn observe_timeouts(&mut self) -> Result<Timeouts, ipvs::Error> {
        self.note("ipvs? timeouts");
        self.kernel.observe_timeouts()
    }

    fn info(&mut self) -> Result<ipvs::Info, ipvs::Error> {
        self.kernel.info()
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        commands.iter().for_each(|command| self.note(format!("ipvs! {command}")));
        self.kernel.commit(commands)
    }
}

impl Rtnetlink for Told<route::Fake> {
    fn observe_links(&mut self) -> Result<Vec<route::Link>, route::Error> {
        self.note("route? links");
        self.kernel.observe_links()
    }

    fn observe_link(&mut self, name: &LinkName) -> Result<Option<route::Link>, route::Error> {
        self.note("route? link");
        self.kernel.observe_link(name)
    }

    fn observe_addresses(&mut self) -> Result<Vec<Address>, route::Error> {
        self.note("route? addresses");
        self.kernel.observe_addresses()
    }

    fn observe_routes(&mut self, filter: &route::RouteFilter) -> Result<Vec<route::Route>, route::Error> {
        self.note("route? routes");
        self.kernel.observe_routes(filter)
    }

    fn observe_rules(&mut self, family: route::Family) -> Result<Vec<route::Rule>, route::Error> {
        self.note("route? rules");
        self.kernel.observe_rules(family)
    }

    fn commit(&mut self, commands: &[route::Command]) -> Result<(), CommitError> {
        commands.iter().for_each(|command| self.note(format!("route! {command}")));
        self.kernel.commit(commands)
    }
}

impl Conntrack for Told<conntrack::Fake> {
    fn delete_where(
        &mut self,
        protocol: Protocol,
        is_stale: &mut dyn FnMut(&conntrack::Connection) -> bool,
    ) -> Result<usize, conntrack::Error> {
        self.note("conntrack! delete");
        self.kernel.delete_where(protocol, is_stale)
    }
}

impl Nftables for Told<kernel_nft::Fake> {
    fn portid(&self) -> u32 {
        self.kernel.portid()
    }

    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, kernel_nft::Error> {
        self.note("nft? table");
        self.kernel.observe(family, table)
    }

    fn observe_counters(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<BTreeMap<Name, Counter>, kernel_nft::Error> {
        self.kernel.observe_counters(family, table)
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), kernel_nft::CommitError> {
        self.note("nft! begin");
        transaction.ops.iter().for_each(|op| self.note(format!("nft! {}", op.word().0)));
        self.note("nft! end");
        self.kernel.commit(transaction)
    }
}

/// The kernel of a node, which outlives the proxy.
#[derive(Clone)]
struct Kernel {
    ipvs: ipvs::Fake,
    route: route::Fake,
    nft: kernel_nft::Fake,
    conntrack: conntrack::Fake,
}

impl Kernel {
    fn new() -> Self {
        Self::with(kernel_nft::Fake::new())
    }

    fn with(nft: kernel_nft::Fake) -> Self {
        let mut route = route::Fake::new();
        let card = route.plug_in(&LinkName::new("eth0").unwrap());
        for address in ["192.168.50.1/24", "fd50::1/64"] {
            let address = Address::new(card, address.parse().unwrap());
            route.commit(&[route::Command::AddAddress(address)]).unwrap();
        }
        Self { ipvs: ipvs::Fake::new(), route, nft, conntrack: conntrack::Fake::new() }
    }

    /// The virtual services as `ipvsadm -Sn` would list them, of everybody.
    fn services(&self) -> Vec<String> {
        let mut ipvs = self.ipvs.clone();
        let mut lines: Vec<_> = ipvs
            .observe_services()
            .unwrap()
            .into_iter()
            .map(|state| {
                let key = state.service.key;
                let mut to: Vec<_> = ipvs
                    .observe_destinations(&key)
                    .unwrap()
                    .into_iter()
                    .map(|state| format!(" {}*{}", state.destination.key, state.destination.weight))
                    .collect();
                to.sort();
                format!("{key}{}", to.concat())
            })
            .collect();
        lines.sort();
        lines
    }

    /// The virtual addresses.
    fn vips(&self) -> Vec<String> {
        let filter = route::RouteFilter {
            table: Some(route::Table::LOCAL),
            protocol: Some(route::RouteProtocol(44)),
            ..route::RouteFilter::default()
        };
        let routes = self.route.clone().observe_routes(&filter).unwrap();
        let mut vips: Vec<_> = routes.iter().map(|route| route.destination.addr().to_string()).collect();
        vips.sort();
        vips
    }

    fn table(&self) -> Option<Ruleset> {
        self.nft.ruleset(Family::Inet, "svc_proxy_ipvs")
    }
}

struct Rig {
    proxy: Proxy<Told<ipvs::Fake>, Told<route::Fake>, Told<kernel_nft::Fake>>,
    kernel: Kernel,
    log: Log,
    now: Instant,
}

fn service(namespace: &str, name: &str, ip: &str, protocol: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{namespace: {namespace}, name: {name}}}, \
         spec: {{clusterIP: {ip}, ports: [{{port: 80, protocol: {protocol}}}]}}}}\n---\n"
    )
}

/// A slice without name of the port; `endpoints` with their state: ` ` ready, `T` terminating, `U` unready.
fn slice(namespace: &str, service: &str, protocol: &str, endpoints: &[(&str, char)]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, state)| {
            let conditions = match state {
                'T' => "{ready: false, serving: true, terminating: true}",
                'U' => "{ready: false}",
                _ => "{ready: true}",
            };
            format!("{{addresses: [{ip}], nodeName: n2, conditions: {conditions}}}")
        })
        .collect();
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{namespace: {namespace}, \
         name: {service}-x, labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, \
         ports: [{{port: 8080, protocol: {protocol}}}], endpoints: [{}]}}\n---\n",
        endpoints.join(", ")
    )
}

/// Two Services, `web` of two endpoints and `db` of one.
fn world() -> String {
    service("shop", "web", "10.96.0.10", "TCP")
        + &slice("shop", "web", "TCP", &[("10.244.2.21", ' '), ("10.244.2.22", ' ')])
        + &service("shop", "db", "10.96.0.11", "TCP")
        + &slice("shop", "db", "TCP", &[("10.244.2.31", ' ')])
}

const SERVED: [&str; 2] =
    ["TCP 10.96.0.10:80 10.244.2.21:8080*1 10.244.2.22:8080*1", "TCP 10.96.0.11:80 10.244.2.31:8080*1"];

fn gone(kind: Kind, name: &str) -> Vec<Change> {
    vec![Change::Deleted(ObjectRef { kind, key: ObjectKey { namespace: "shop".into(), name: name.into() } })]
}

fn tcp(address: &str) -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::TCP, address: address.parse().unwrap(), port: 80 }
}

fn at(address: &str) -> DestinationKey {
    DestinationKey { address: address.parse().unwrap(), port: 8080 }
}

impl Rig {
    fn with(kernel: Kernel, flags: TableFlags, words: &[&str]) -> Self {
        let log = Log::default();
        let surroundings = Surroundings {
            ipvs: Told { kernel: kernel.ipvs.clone(), log: log.clone() },
            netlink: Told { kernel: kernel.route.clone(), log: log.clone() },
            nft: Told { kernel: kernel.nft.clone(), log: log.clone() },
            connections: Box::new(Told { kernel: kernel.conntrack.clone(), log: log.clone() }),
            health: None,
            sysctls: None,
            watch: None,
            metrics: None,
            informer: None,
        };
        Self { proxy: Proxy::new("n1", config(words), flags, surroundings), kernel, log, now: Instant::now() }
    }

    fn on(kernel: Kernel) -> Self {
        Self::with(kernel, OWNED, &[])
    }

    /// One that serves [`world`].
    fn started() -> Self {
        let mut rig = Self::on(Kernel::new());
        rig.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world()))).unwrap();
        assert_eq!(rig.kernel.services(), SERVED);
        rig.said();
        rig
    }

    /// The next process on the same node: the sockets of the last one are closed.
    fn restarted(&self) -> Self {
        let mut kernel = self.kernel.clone();
        kernel.nft.restart();
        let mut next = Self::on(kernel);
        next.now = self.now;
        next
    }

    fn sync(&mut self, cause: Cause, changes: Vec<Change>) -> Result<SyncReport, SyncError> {
        self.proxy.receive(Batch { changes, synced: true });
        self.proxy.sync(cause, self.now)
    }

    fn change(&mut self, yaml: &str) -> SyncReport {
        self.sync(Cause::Change, changes(yaml)).unwrap()
    }

    fn after(&mut self, seconds: u64) -> SyncReport {
        self.now += Duration::from_secs(seconds);
        self.sync(Cause::Timer, Vec::new()).unwrap()
    }

    /// What was said to the kernel since the last look.
    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// The same, without questions.
    fn changed(&self) -> Vec<String> {
        self.said().into_iter().filter(|message| message.contains("! ")).collect()
    }

    fn state(&self) -> serde_json::Value {
        serde_json::to_value(self.proxy.state()).unwrap()
    }

    fn is_in_step(&self) -> bool {
        kernel_nft::diff(self.proxy.planner().ruleset(), &self.kernel.table().expect("a table")).is_empty()
    }
}

// Start and what a change costs.

#[test]
fn nothing_is_synced_before_the_caches_are() {
    let mut rig = Rig::on(Kernel::new());
    rig.proxy.receive(Batch { changes: changes(&world()), synced: false });
    assert!(!rig.proxy.is_synced());
    rig.proxy.receive(Batch { changes: Vec::new(), synced: true });
    assert!(rig.proxy.is_synced());
    assert_eq!(rig.said(), [""; 0]);
}

#[test]
fn the_table_comes_before_services_and_services_before_their_addresses() {
    let mut rig = Rig::on(Kernel::new());
    rig.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world()))).unwrap();
    let said = rig.changed();
    let last = |word: &str| said.iter().rposition(|message| message.starts_with(word)).unwrap();
    let first = |word: &str| said.iter().position(|message| message.starts_with(word)).unwrap();
    assert!(last("nft! end") < first("ipvs! add service"), "{said:#?}");
    assert!(last("ipvs! add destination") < first("route! replace route"), "{said:#?}");
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11"]);
    assert!(rig.is_in_step());
    assert_eq!(rig.state()["in_force"], true);
}

#[test]
fn addresses_go_before_the_services_behind_them() {
    let mut rig = Rig::started();
    rig.sync(Cause::Change, gone(Kind::Service, "db")).unwrap();
    let said = rig.changed();
    let place = |word: &str| said.iter().position(|message| message.starts_with(word)).unwrap();
    assert!(place("route! delete route") < place("ipvs! delete service"), "{said:#?}");
    assert_eq!(rig.kernel.services(), SERVED[..1]);
    assert_eq!(rig.kernel.vips(), ["10.96.0.10"]);
}

#[test]
fn a_change_that_changes_nothing_asks_nothing_and_says_nothing() {
    let mut rig = Rig::started();
    let report = rig.change(&world());
    assert_eq!(rig.said(), [""; 0]);
    assert_eq!(report.kernel_op_count(), 0);
}

#[test]
fn an_audit_of_what_is_as_it_should_be_changes_nothing() {
    let mut rig = Rig::started();
    for _ in 0..2 {
        rig.sync(Cause::Periodic, Vec::new()).unwrap();
        assert_eq!(rig.changed(), [""; 0]);
    }
    let difference = rig.proxy.difference(rig.now).unwrap();
    assert_eq!((difference.table, difference.commands), (vec![], vec![]));
    assert_eq!((difference.new_addresses, difference.gone_addresses), (vec![], vec![]));
}

/// Many Services of two endpoints each.
fn many(count: u16) -> String {
    let mut yaml = NODE.to_owned() + "---\n";
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        yaml += &service("shop", &format!("s{number}"), &format!("10.97.{high}.{low}"), "TCP");
        let one = format!("10.244.{high}.{low}");
        let other = format!("10.245.{high}.{low}");
        yaml += &slice("shop", &format!("s{number}"), "TCP", &[(&one, ' '), (&other, ' ')]);
    }
    yaml
}

/// Messages that one endpoint more and one less cost, and those of a Service that comes and goes.
fn costs(count: u16) -> [usize; 4] {
    let mut rig = Rig::on(Kernel::new());
    rig.sync(Cause::Start, changes(&many(count))).unwrap();
    rig.said();
    let both = [("10.244.0.7", ' '), ("10.245.0.7", ' ')];
    let more = slice("shop", "s7", "TCP", &[both[0], both[1], ("10.246.0.7", ' ')]);
    let less = slice("shop", "s7", "TCP", &both);
    let added = service("shop", "new", "10.98.0.1", "TCP") + &slice("shop", "new", "TCP", &both);
    let mut cost = |changes| {
        rig.sync(Cause::Change, changes).unwrap();
        rig.said().len()
    };
    [cost(changes(&more)), cost(changes(&less)), cost(changes(&added)), cost(gone(Kind::Service, "new"))]
}

#[test]
fn w14_what_a_change_costs_does_not_depend_on_the_number_of_services() {
    let few = costs(10);
    assert_eq!(few, costs(1500));
    assert!(few[0] <= 10 && few[1] <= 10, "one endpoint: {few:?}");
    assert!(few[2] <= 20 && few[3] <= 20, "one Service: {few:?}");
}

// Names and odd objects.

#[test]
fn w3_services_whose_names_collide_with_dashes_have_their_own_endpoints() {
    let mut rig = Rig::on(Kernel::new());
    let yaml = service("a", "b-c", "10.96.0.1", "TCP")
        + &slice("a", "b-c", "TCP", &[("10.244.2.1", ' ')])
        + &service("a-b", "c", "10.96.0.2", "TCP")
        + &slice("a-b", "c", "TCP", &[("10.244.2.2", ' ')]);
    rig.sync(Cause::Start, changes(&yaml)).unwrap();
    assert_eq!(
        rig.kernel.services(),
        ["TCP 10.96.0.1:80 10.244.2.1:8080*1", "TCP 10.96.0.2:80 10.244.2.2:8080*1"]
    );
    let deleted =
        ObjectRef { kind: Kind::Service, key: ObjectKey { namespace: "a".into(), name: "b-c".into() } };
    rig.sync(Cause::Change, vec![Change::Deleted(deleted)]).unwrap();
    assert_eq!(rig.kernel.services(), ["TCP 10.96.0.2:80 10.244.2.2:8080*1"]);
}

#[test]
fn w13_a_slice_port_without_a_number_serves_nothing_and_harms_nothing() {
    let mut rig = Rig::started();
    let report = rig.change(
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: odd, \
         labels: {kubernetes.io/service-name: db}}, addressType: IPv4, ports: [{name: x}, {}], \
         endpoints: [{addresses: [10.244.9.9]}]}",
    );
    assert_eq!(report.degraded, []);
    assert_eq!(rig.kernel.services(), SERVED);
}

#[test]
fn a_service_that_can_no_longer_be_read_is_told_and_not_kept_in_force() {
    let mut rig = Rig::started();
    let object =
        ObjectRef { kind: Kind::Service, key: ObjectKey { namespace: "shop".into(), name: "db".into() } };
    let report = rig
        .sync(Cause::Change, vec![Change::Excluded { object, reason: "spec.ports is a word".into() }])
        .unwrap();
    assert_eq!(rig.kernel.services(), SERVED[..1]);
    assert!(report.degraded.iter().any(|d| d.message.contains("shop/db")), "{report:?}");
    let report = rig.change(&world());
    assert_eq!(rig.kernel.services(), SERVED);
    assert_eq!(report.degraded, []);
}

#[test]
fn services_that_swap_an_address_are_both_served() {
    let mut rig = Rig::started();
    let swapped = service("shop", "web", "10.96.0.11", "TCP") + &service("shop", "db", "10.96.0.10", "TCP");
    rig.change(&swapped);
    assert_eq!(
        rig.kernel.services(),
        [
            "TCP 10.96.0.10:80 10.244.2.21:8080*0 10.244.2.22:8080*0 10.244.2.31:8080*1",
            "TCP 10.96.0.11:80 10.244.2.21:8080*1 10.244.2.22:8080*1 10.244.2.31:8080*0"
        ],
        "and what is connected stays so for a while"
    );
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11"]);
    assert!(rig.is_in_step());
}

// Faults.

#[test]
fn w12_a_refused_endpoint_costs_itself_alone_and_is_told_and_tried_again() {
    let mut rig = Rig::started();
    let bad =
        |command: &Command| matches!(command, Command::AddDestination(_, to) if to.key == at("10.244.9.9"));
    rig.kernel.ipvs.refuse(bad, nix::libc::EINVAL, None);
    let yaml = service("shop", "new", "10.96.0.12", "TCP")
        + &slice("shop", "new", "TCP", &[("10.244.9.9", ' '), ("10.244.2.41", ' ')])
        + &service("shop", "other", "10.96.0.13", "TCP")
        + &slice("shop", "other", "TCP", &[("10.244.2.51", ' ')]);
    let wanted = [
        SERVED[0],
        SERVED[1],
        "TCP 10.96.0.12:80 10.244.2.41:8080*1",
        "TCP 10.96.0.13:80 10.244.2.51:8080*1",
    ];
    let report = rig.sync(Cause::Change, changes(&yaml)).unwrap();
    assert_eq!(rig.kernel.services(), wanted);
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13"]);
    assert!(report.degraded.iter().any(|d| d.message.contains("Service shop/new")), "{report:?}");
    assert!(report.wake_at.is_some_and(|at| at > rig.now), "it is tried again: {report:?}");
    assert!(rig.state()["excluded"].to_string().contains("kernel_refused"), "{}", rig.state());
    for cause in [Cause::Timer, Cause::Periodic, Cause::Change] {
        rig.said();
        rig.sync(cause, Vec::new()).unwrap();
        assert_eq!(rig.kernel.services(), wanted, "nothing else suffers at {cause:?}");
        let tries = rig.changed();
        assert_eq!(
            tries,
            ["ipvs! add destination 10.244.9.9:8080 to service TCP 10.96.0.12:80"],
            "{cause:?}"
        );
    }
    rig.kernel.ipvs.refuse_nothing();
    let report = rig.sync(Cause::Timer, Vec::new()).unwrap();
    assert_eq!(rig.kernel.services()[2], "TCP 10.96.0.12:80 10.244.2.41:8080*1 10.244.9.9:8080*1");
    assert_eq!(report.degraded, []);
    assert_eq!(rig.state()["excluded"], serde_json::json!([]));
}

#[test]
fn w12_an_address_that_is_refused_costs_itself_alone() {
    let mut rig = Rig::on(Kernel::new());
    let bad = |command: &route::Command| matches!(command, route::Command::ReplaceRoute(route) if route.destination.addr() == IpAddr::from([10, 96, 0, 10]));
    rig.kernel.route.refuse(bad, nix::libc::EINVAL, Some(1));
    let all = NODE.to_owned() + "---\n" + &world();
    let report = rig.sync(Cause::Start, changes(&all)).unwrap();
    assert_eq!(rig.kernel.services(), SERVED);
    assert_eq!(rig.kernel.vips(), ["10.96.0.11"]);
    assert!(report.degraded.iter().any(|d| d.message.contains("Service shop/web")), "{report:?}");
    rig.sync(Cause::Timer, Vec::new()).unwrap();
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11"]);
}

#[test]
fn w12_a_refused_endpoint_does_not_hold_up_the_drain_of_another() {
    let mut rig = Rig::started();
    let bad =
        |command: &Command| matches!(command, Command::AddDestination(_, to) if to.key == at("10.244.9.9"));
    rig.kernel.ipvs.refuse(bad, nix::libc::EINVAL, None);
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    let changed = slice("shop", "web", "TCP", &[("10.244.2.21", ' '), ("10.244.9.9", ' ')]);
    rig.sync(Cause::Change, changes(&changed)).unwrap();
    for _ in 0..20 {
        rig.now += Duration::from_secs(2);
        rig.sync(Cause::Timer, Vec::new()).unwrap();
    }
    assert_eq!(rig.kernel.services()[0], "TCP 10.96.0.10:80 10.244.2.21:8080*1", "its 30 seconds are over");
}

#[test]
fn answers_of_ipvs_that_are_lost_are_looked_up() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.lose_next_answers();
    let more = slice("shop", "db", "TCP", &[("10.244.2.31", ' '), ("10.244.2.32", ' ')]);
    rig.sync(Cause::Change, changes(&more)).unwrap_err();
    rig.said();
    rig.sync(Cause::Retry, Vec::new()).unwrap();
    assert_eq!(rig.changed(), [""; 0], "it was done");
    assert_eq!(rig.kernel.services()[1], "TCP 10.96.0.11:80 10.244.2.31:8080*1 10.244.2.32:8080*1");
}

#[test]
fn answers_of_rtnetlink_that_are_lost_are_looked_up() {
    let mut rig = Rig::started();
    rig.kernel.route.lose_next_answers();
    let more = service("shop", "new", "10.96.0.12", "TCP");
    rig.sync(Cause::Change, changes(&more)).unwrap_err();
    rig.said();
    rig.sync(Cause::Retry, Vec::new()).unwrap();
    assert_eq!(rig.changed(), [""; 0], "it was done");
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11", "10.96.0.12"]);
}

#[test]
fn a_transaction_of_unknown_outcome_is_looked_up() {
    for carried_out in [true, false] {
        let mut rig = Rig::started();
        rig.kernel.nft.break_next_commit(carried_out);
        rig.change(&service("shop", "new", "10.96.0.12", "TCP"));
        assert!(rig.is_in_step(), "carried out: {carried_out}");
    }
}

#[test]
fn a_transaction_refused_once_is_mended_in_the_same_sync() {
    let mut rig = Rig::started();
    rig.kernel.nft.refuse(|op| matches!(op, Op::AddElements(..)), nix::libc::ENOMEM, Some(1));
    rig.change(&service("shop", "new", "10.96.0.12", "TCP"));
    assert!(rig.is_in_step());
}

#[test]
fn a_table_that_cannot_be_read_fails_the_sync_and_the_next_one_mends() {
    let mut rig = Rig::on(Kernel::new());
    rig.kernel.nft.break_observations(1);
    let all = NODE.to_owned() + "---\n" + &world();
    rig.sync(Cause::Start, changes(&all)).unwrap_err();
    assert_eq!(rig.state()["in_force"], false);
    rig.sync(Cause::Retry, Vec::new()).unwrap();
    assert!(rig.is_in_step());
    assert_eq!(rig.kernel.services(), SERVED);
}

#[test]
fn without_its_table_no_address_is_added_and_endpoints_are_still_kept_right() {
    let mut rig = Rig::started();
    rig.kernel.nft.refuse(|_| true, nix::libc::ENOMEM, None);
    let more =
        service("shop", "new", "10.96.0.12", "TCP") + &slice("shop", "db", "TCP", &[("10.244.2.32", ' ')]);
    rig.sync(Cause::Change, changes(&more)).unwrap_err();
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11"]);
    assert!(rig.kernel.services()[1].contains("10.244.2.32:8080*1"), "{:?}", rig.kernel.services());
    rig.kernel.nft.refuse_nothing();
    rig.sync(Cause::Retry, Vec::new()).unwrap();
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11", "10.96.0.12"]);
}

#[test]
fn a_second_proxy_beside_a_living_one_is_told_so() {
    let rig = Rig::started();
    let mut kernel = rig.kernel.clone();
    kernel.nft = kernel.nft.stranger();
    let mut second = Rig::on(kernel);
    let error = second.sync(Cause::Start, changes(&world())).unwrap_err();
    assert!(error.error.to_string().contains("owned by another process"), "{}", error.error);
}

// Strangers.

#[test]
fn w18_services_of_others_are_left_alone() {
    let kernel = Kernel::new();
    let rr = ipvs::Scheduler::new("rr").unwrap();
    let mark = ServiceKey::Mark { family: ipvs::Family::Ipv4, mark: 7.try_into().unwrap() };
    let foreign = [tcp("192.0.2.50"), tcp("192.168.50.1"), tcp("10.96.9.9"), mark];
    for key in foreign {
        let to = Destination::new([10, 9, 9, 9].into(), 80);
        kernel
            .ipvs
            .clone()
            .commit(&[Command::AddService(ipvs::Service::new(key, rr)), Command::AddDestination(key, to)])
            .unwrap();
    }
    let before = kernel.services();
    let mut rig = Rig::with(kernel, OWNED, &["--excluded-cidrs=10.96.9.0/24"]);
    let all = NODE.to_owned() + "---\n" + &world();
    rig.sync(Cause::Start, changes(&all)).unwrap();
    assert_eq!(rig.kernel.services().len(), before.len() + 2);
    for name in ["web", "db"] {
        rig.sync(Cause::Change, gone(Kind::Service, name)).unwrap();
    }
    rig.sync(Cause::Periodic, Vec::new()).unwrap();
    assert_eq!(rig.kernel.services(), before);
}

#[test]
fn what_an_earlier_process_served_and_nobody_wants_goes_wherever_its_address_is() {
    let mut rig = Rig::with(Kernel::new(), OWNED, &["--strict-external-ip-validation=false"]);
    let web = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, \
               spec: {clusterIP: 10.96.0.10, ports: [{port: 80}], externalIPs: [9.9.9.9]}}";
    rig.sync(Cause::Start, changes(web)).unwrap();
    assert_eq!(rig.kernel.services(), ["TCP 10.96.0.10:80", "TCP 9.9.9.9:80"]);
    let mut next = rig.restarted();
    next.sync(Cause::Start, changes(&world())).unwrap();
    assert_eq!(next.kernel.services(), SERVED);
    assert_eq!(next.kernel.vips(), ["10.96.0.10", "10.96.0.11"]);
}

#[test]
fn a_restart_changes_nothing() {
    let rig = Rig::started();
    let mut next = rig.restarted();
    let all = NODE.to_owned() + "---\n" + &world();
    next.sync(Cause::Start, changes(&all)).unwrap();
    assert_eq!(next.changed(), ["nft! begin", "nft! add_table", "nft! end"], "the table has a new owner");
    assert!(next.is_in_step());
}

#[test]
fn what_changed_while_no_process_ran_is_applied_as_a_difference() {
    let rig = Rig::started();
    let mut next = rig.restarted();
    let changed = slice("shop", "db", "TCP", &[("10.244.2.32", ' ')]);
    next.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world() + &changed))).unwrap();
    let said: Vec<_> = next.changed().into_iter().filter(|message| !message.starts_with("nft!")).collect();
    assert_eq!(
        said,
        [
            "ipvs! set destination 10.244.2.31:8080 of service TCP 10.96.0.11:80",
            "ipvs! add destination 10.244.2.32:8080 to service TCP 10.96.0.11:80",
        ]
    );
}

#[test]
fn a_flushed_table_is_mended_and_counted() {
    let mut rig = Rig::with(Kernel::with(kernel_nft::Fake::without_persist()), UNOWNED, &[]);
    rig.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world()))).unwrap();
    let before = rig.kernel.table().unwrap();
    rig.kernel.nft.flush_by_stranger();
    assert!(rig.kernel.table().is_none());
    rig.sync(Cause::Kernel, Vec::new()).unwrap();
    assert!(rig.kernel.table().unwrap() == before);
    assert_eq!(rig.state()["repairs"], 1);
}

#[test]
fn an_address_that_a_stranger_took_away_comes_back() {
    for cause in [Cause::Kernel, Cause::Periodic] {
        let mut rig = Rig::started();
        let routes = rig.kernel.route.observe_routes(&route::RouteFilter::default()).unwrap();
        let ours = routes.into_iter().find(|route| route.protocol.0 == 44).unwrap();
        rig.kernel.route.commit(&[route::Command::DeleteRoute(ours)]).unwrap();
        assert_eq!(rig.kernel.vips().len(), 1);
        rig.sync(cause, Vec::new()).unwrap();
        assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11"], "{cause:?}");
    }
}

#[test]
fn a_device_that_a_stranger_took_away_comes_back_with_its_addresses() {
    let mut rig = Rig::started();
    let device = rig.kernel.route.observe_link(&LinkName::new("kube-dummy-if").unwrap()).unwrap().unwrap();
    rig.kernel.route.commit(&[route::Command::DeleteLink(device.index)]).unwrap();
    assert_eq!(rig.kernel.vips(), [""; 0]);
    rig.sync(Cause::Kernel, Vec::new()).unwrap();
    assert_eq!(rig.kernel.vips(), ["10.96.0.10", "10.96.0.11"]);
}

#[test]
fn virtual_services_that_a_stranger_changed_are_mended_by_the_audit() {
    let mut rig = Rig::started();
    let heavy = Destination { weight: 9, ..Destination::new([10, 244, 2, 31].into(), 8080) };
    let foreign = Destination::new([10, 9, 9, 9].into(), 80);
    rig.kernel
        .ipvs
        .commit(&[
            Command::DeleteService(tcp("10.96.0.10")),
            Command::SetDestination(tcp("10.96.0.11"), heavy),
            Command::AddDestination(tcp("10.96.0.11"), foreign),
        ])
        .unwrap();
    rig.sync(Cause::Periodic, Vec::new()).unwrap();
    assert_eq!(rig.kernel.services()[0], SERVED[0]);
    assert_eq!(rig.kernel.services()[1], "TCP 10.96.0.11:80 10.244.2.31:8080*1 10.9.9.9:80*0");
    rig.after(2);
    rig.after(2);
    assert_eq!(rig.kernel.services(), SERVED);
}

// Endpoints that leave.

/// `web` without its second endpoint.
fn without() -> String {
    slice("shop", "web", "TCP", &[("10.244.2.21", ' ')])
}

const DRAINING: &str = "TCP 10.96.0.10:80 10.244.2.21:8080*1 10.244.2.22:8080*0";
const DRAINED: &str = "TCP 10.96.0.10:80 10.244.2.21:8080*1";

#[test]
fn an_endpoint_is_drained_until_its_connections_have_ended() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 2));
    let report = rig.change(&without());
    assert!(report.wake_at.is_some());
    assert_eq!(rig.kernel.services()[0], DRAINING);
    for _ in 0..5 {
        rig.after(2);
        assert_eq!(rig.kernel.services()[0], DRAINING);
    }
    assert!(rig.state()["draining"].to_string().contains("10.244.2.22:8080"), "{}", rig.state());
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (0, 0));
    let report = rig.after(2);
    assert_eq!(rig.kernel.services()[0], DRAINED);
    assert_eq!(report.wake_at, None);
    assert_eq!(rig.state()["draining"], serde_json::json!([]));
}

#[test]
fn a_drain_ends_when_its_time_is_over() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    rig.change(&without());
    for _ in 0..14 {
        rig.after(2);
    }
    assert_eq!(rig.kernel.services()[0], DRAINING, "28 seconds");
    rig.after(2);
    rig.after(2);
    assert_eq!(rig.kernel.services()[0], DRAINED);
}

#[test]
fn an_endpoint_that_terminates_keeps_its_connections_until_it_is_gone_and_its_time_over() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    rig.change(&slice("shop", "web", "TCP", &[("10.244.2.21", ' '), ("10.244.2.22", 'T')]));
    for _ in 0..40 {
        rig.after(2);
    }
    assert_eq!(rig.kernel.services()[0], DRAINING, "its pod is still there");
    rig.change(&without());
    rig.after(29);
    assert_eq!(rig.kernel.services()[0], DRAINING);
    rig.after(2);
    assert_eq!(rig.kernel.services()[0], DRAINED);
}

#[test]
fn w16_an_endpoint_that_returns_serves_again_and_its_old_drain_does_not_end_it() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    rig.change(&without());
    rig.after(2);
    rig.change(&world());
    assert_eq!(rig.kernel.services(), SERVED);
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (0, 0));
    for _ in 0..30 {
        rig.after(2);
    }
    assert_eq!(rig.kernel.services(), SERVED);
}

#[test]
fn w16_a_drain_that_an_earlier_process_began_is_ended_by_the_next() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    rig.change(&without());
    let mut next = rig.restarted();
    next.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world() + &without()))).unwrap();
    assert_eq!(next.kernel.services()[0], DRAINING);
    next.after(2);
    assert_eq!(next.kernel.services()[0], DRAINING, "it has connections and time");
    next.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (0, 0));
    next.after(2);
    assert_eq!(next.kernel.services()[0], DRAINED);
}

#[test]
fn w16_a_drain_that_an_earlier_process_began_is_cancelled_when_the_endpoint_is_back() {
    let mut rig = Rig::started();
    rig.change(&without());
    assert_eq!(rig.kernel.services()[0], DRAINING);
    let mut next = rig.restarted();
    next.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world()))).unwrap();
    assert_eq!(next.kernel.services(), SERVED);
    for _ in 0..30 {
        next.after(2);
    }
    assert_eq!(next.kernel.services(), SERVED);
}

#[test]
fn an_audit_does_not_prolong_a_drain() {
    let mut rig = Rig::started();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    rig.change(&without());
    for _ in 0..16 {
        rig.now += Duration::from_secs(2);
        rig.sync(Cause::Periodic, Vec::new()).unwrap();
    }
    assert_eq!(rig.kernel.services()[0], DRAINED);
}

#[test]
fn udp_leaves_at_once() {
    let mut rig = Rig::started();
    let both = [("10.244.2.61", ' '), ("10.244.2.62", ' ')];
    rig.change(&(service("shop", "dns", "10.96.0.53", "UDP") + &slice("shop", "dns", "UDP", &both)));
    rig.change(&slice("shop", "dns", "UDP", &both[..1]));
    assert_eq!(rig.kernel.services()[2], "UDP 10.96.0.53:80 10.244.2.61:8080*1");
}

#[test]
fn without_graceful_termination_endpoints_leave_at_once() {
    let mut rig = Rig::with(Kernel::new(), OWNED, &["--ipvs-graceful-termination=false"]);
    rig.sync(Cause::Start, changes(&(NODE.to_owned() + "---\n" + &world()))).unwrap();
    rig.kernel.ipvs.connect(&tcp("10.96.0.10"), &at("10.244.2.22"), (1, 0));
    rig.change(&without());
    assert_eq!(rig.kernel.services()[0], DRAINED);
}

// Beside the virtual services.

fn flow(destination: [u8; 4], port: u16) -> conntrack::Connection {
    let client = IpAddr::from([192, 0, 2, 5]);
    conntrack::Connection {
        protocol: Protocol::UDP,
        original: conntrack::Tuple {
            source: client,
            destination: destination.into(),
            source_port: 4000,
            destination_port: port,
        },
        reply: conntrack::Tuple {
            source: destination.into(),
            destination: client,
            source_port: port,
            destination_port: 4000,
        },
        zone: 0,
        id: None,
    }
}

#[test]
fn udp_flows_that_are_older_than_their_service_are_forgotten_and_no_others() {
    let mut rig = Rig::started();
    let other = flow([10, 96, 0, 54], 80);
    rig.kernel.conntrack.track(flow([10, 96, 0, 53], 80));
    rig.kernel.conntrack.track(other);
    rig.change(&service("shop", "dns", "10.96.0.53", "UDP"));
    assert_eq!(rig.kernel.conntrack.connections(), [other]);
    let passes = rig.kernel.conntrack.passes();
    rig.change(&service("shop", "tcp", "10.96.0.54", "TCP"));
    assert_eq!(rig.kernel.conntrack.passes(), passes, "of TCP nothing is forgotten");
}

#[test]
fn stale_udp_flows_are_forgotten_when_nothing_can_begin_them_anew() {
    let mut rig = Rig::started();
    rig.change(&service("shop", "dns", "10.96.0.53", "UDP"));
    let said = rig.changed();
    let at = |word: &str| said.iter().position(|message| message.starts_with(word)).unwrap();
    assert!(at("ipvs! add service") < at("conntrack! delete"), "{said:#?}");
    assert!(at("route! replace route") < at("conntrack! delete"), "{said:#?}");
}

#[test]
fn timeouts_of_ipvs_are_set_where_they_are_asked_for_and_once() {
    let mut rig = Rig::with(Kernel::new(), OWNED, &["--service-udp-timeout=30s"]);
    rig.sync(Cause::Start, changes(&world())).unwrap();
    assert_eq!(rig.kernel.ipvs.observe_timeouts().unwrap(), Timeouts { tcp: 900, tcp_fin: 120, udp: 30 });
    rig.said();
    rig.sync(Cause::Periodic, Vec::new()).unwrap();
    assert_eq!(rig.changed(), [""; 0]);
}

#[test]
fn an_address_that_the_node_gets_serves_node_ports_after_the_audit() {
    let mut rig = Rig::with(Kernel::new(), OWNED, &["--nodeport-bindon-all-ip"]);
    let web = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, \
               spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}}";
    rig.sync(Cause::Start, changes(web)).unwrap();
    assert_eq!(rig.kernel.services(), ["TCP 10.96.0.10:80", "TCP 192.168.50.1:30080"]);
    let card = rig.kernel.route.observe_link(&LinkName::new("eth0").unwrap()).unwrap().unwrap();
    let address = Address::new(card.index, "192.168.50.9/24".parse().unwrap());
    rig.kernel.route.commit(&[route::Command::AddAddress(address)]).unwrap();
    rig.sync(Cause::Periodic, Vec::new()).unwrap();
    assert_eq!(
        rig.kernel.services(),
        ["TCP 10.96.0.10:80", "TCP 192.168.50.1:30080", "TCP 192.168.50.9:30080"]
    );
}
