//! What the rules of a Service proxy do to real packets. Two pods, and between them a node with the table;
//! IPVS is not here.
//!
//! ```text
//!  x/a ── n1 ── y/a     10.96.0.10, fd00:96::10 are nowhere: only the table knows them
//! ```

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kernel_nft::Field::Address;
use kernel_nft::Side::{Destination, Source};
use kernel_nft::*;
use nix::sys::socket::{getsockopt, sockopt};
use test_netns::{Answer, Attachment, Cluster, ClusterSpec, Outcome, Protocol};

use crate::layout::{TCP, UDP, name};
use crate::service::address;

const VERSIONS: [(IpVersion, test_netns::Family, &str); 2] = [
    (IpVersion::V4, test_netns::Family::V4, "10.96.0.10"),
    (IpVersion::V6, test_netns::Family::V6, "fd00:96::10"),
];

fn pods() -> Cluster {
    let families = VERSIONS.map(|(_, family, _)| family);
    ClusterSpec::uniform(Attachment::Routed, &families, 1, 2)
        .serve(Protocol::Tcp, 80)
        .serve(Protocol::Udp, 53)
        .build()
        .unwrap()
}

type NamedSet<'a> = (&'a str, SetSpec, Vec<(Key, Value)>);

/// A table with one base chain and its rules, and the sets that they look into, on the node.
fn load(cluster: &Cluster, base: BaseChain, rules: Vec<Rule>, sets: Vec<NamedSet<'_>>) {
    let table =
        Table { family: Family::Inet, name: name("svc"), flags: TableFlags::default(), comment: None };
    let mut want = Ruleset::new(table);
    for (set, spec, elements) in sets {
        want.sets.insert(name(set), Set { spec, elements: elements.into_iter().collect() });
    }
    want.chains.insert(name("c"), Chain { base: Some(base), comment: None, rules });
    let node = cluster.namespace("n1").unwrap();
    let ops = [vec![Op::AddTable(want.table.clone()), Op::DeleteTable], create(&want)].concat();
    let commit = || {
        let table = name("svc");
        let transaction = Transaction { family: Family::Inet, table: &table, ops: &ops, generation: None };
        Socket::open().unwrap().commit(&transaction).unwrap();
    };
    node.run(commit).unwrap();
}

fn base(kind: ChainType, hook: Hook, priority: i32) -> BaseChain {
    BaseChain { kind, hook, priority }
}

/// Who answered, and whom the server saw.
fn answer(cluster: &Cluster, to: IpAddr, protocol: Protocol, port: u16) -> (String, IpAddr) {
    match cluster.probe("x/a", to, protocol, port).unwrap() {
        Outcome::Connected(Answer { server, seen_source: Some(source) }) => (server, source),
        other => panic!("{to} port {port}: {other}"),
    }
}

#[test]
fn a_data_map_leads_a_service_to_its_pod() {
    let cluster = pods();
    for (version, family, vip) in VERSIONS {
        let (client, pod, vip) =
            (cluster.address("x/a", family).unwrap(), cluster.address("y/a", family).unwrap(), address(vip));
        let a = version.data_type();
        let spec =
            SetSpec::data(&[a, DataType::InetProto, DataType::InetService], &[a, DataType::InetService]);
        let elements = [(TCP, 8000, 80), (UDP, 5353, 53)].map(|(proto, port, inside)| {
            (Key::address_proto_port(vip, proto, port), Value::Data(Key::address_port(pod, inside)))
        });
        let rule = Rule::new().dnat_from(version, &DESTINATION, &name("inside"), true);
        let chain = base(ChainType::Nat, Hook::Prerouting, -100);
        load(&cluster, chain, vec![rule], vec![("inside", spec, elements.to_vec())]);
        for (protocol, port) in [(Protocol::Tcp, 8000), (Protocol::Udp, 5353)] {
            assert_eq!(answer(&cluster, vip, protocol, port), ("y/a".to_owned(), client));
        }
        let elsewhere = cluster.probe("x/a", vip, Protocol::Tcp, 8001).unwrap();
        assert!(!elsewhere.is_connected(), "a port that is not in the map: {elsewhere}");
    }
}

#[test]
fn a_source_is_translated_by_what_the_connection_was_opened_to() {
    let cluster = pods();
    for (version, family, vip) in VERSIONS {
        let [client, pod] = ["x/a", "y/a"].map(|pod| cluster.address(pod, family).unwrap());
        let vip = address(vip);
        cluster
            .namespace("n1")
            .unwrap()
            .nft(&format!(
                "add table inet other; flush table inet other
                 add chain inet other c {{ type nat hook prerouting priority -100; }}
                 add rule inet other c {ip} daddr {vip} dnat {ip} to {pod}",
                ip = if version == IpVersion::V4 { "ip" } else { "ip6" }
            ))
            .unwrap();
        let to_vip = || Rule::new().fields_in(version, &[Field::OriginalAddress(Destination)], &name("vip"));
        let chain = base(ChainType::Nat, Hook::Postrouting, 100);
        let sets =
            || vec![("vip", SetSpec::set(&[version.data_type()]), vec![(Key::from(vip), Value::Member)])];
        let masquerade = vec![to_vip().masquerade(NatFlags::FULLY_RANDOM)];
        load(&cluster, chain, masquerade, sets());
        let (server, seen) = answer(&cluster, vip, Protocol::Tcp, 80);
        assert!(server == "y/a" && seen != client && seen != vip, "{seen} is the node");
        assert_eq!(answer(&cluster, pod, Protocol::Tcp, 80), ("y/a".to_owned(), client), "not by the VIP");
        let original = vec![to_vip().snat_to_original_destination(version, NatFlags::default())];
        load(&cluster, chain, original, sets());
        assert_eq!(answer(&cluster, vip, Protocol::Tcp, 80), ("y/a".to_owned(), vip));
        let constant = address(if version == IpVersion::V4 { "10.96.0.99" } else { "fd00:96::99" });
        load(&cluster, chain, vec![to_vip().snat_to(constant, NatFlags::default())], sets());
        assert_eq!(answer(&cluster, vip, Protocol::Udp, 53), ("y/a".to_owned(), constant));
    }
}

/// What the client may send in one segment to port 80 of the other pod.
fn segment(cluster: &Cluster, to: IpAddr) -> u32 {
    let connect = || {
        let wait = Duration::from_secs(30);
        let stream = TcpStream::connect_timeout(&SocketAddr::new(to, 80), wait).unwrap();
        getsockopt(&stream, sockopt::TcpMaxSeg).unwrap()
    };
    cluster.namespace("x/a").unwrap().run(connect).unwrap()
}

#[test]
fn the_maximum_segment_size_is_made_smaller_and_never_larger() {
    let cluster = pods();
    for (version, family, _) in VERSIONS {
        let pod = cluster.address("y/a", family).unwrap();
        let whole = segment(&cluster, pod);
        let service = (Key::address_proto_port(pod, TCP, 80), Value::Member);
        let spec = SetSpec::set(&[version.data_type(), DataType::InetProto, DataType::InetService]);
        let clamp = |size: u16| {
            let rule = Rule::new()
                .fields_in(version, &SOURCE, &name("services"))
                .tcp_flags(&[TcpFlag::Syn, TcpFlag::Rst], &[TcpFlag::Syn])
                .clamp_mss(size);
            let sets = vec![("services", spec.clone(), vec![service.clone()])];
            load(&cluster, base(ChainType::Filter, Hook::Prerouting, -300), vec![rule], sets);
            segment(&cluster, pod)
        };
        // The time stamps of each segment take 12 bytes.
        assert_eq!(clamp(700), 700 - 12);
        assert_eq!(clamp(9000), whole);
    }
}

#[test]
fn a_mark_from_a_data_map_is_seen_by_later_chains() {
    let cluster = pods();
    for (version, family, _) in VERSIONS {
        let pod = cluster.address("y/a", family).unwrap();
        let spec = SetSpec::data(
            &[version.data_type(), DataType::InetProto, DataType::InetService],
            &[DataType::Mark],
        );
        let marked = vec![(Key::address_proto_port(pod, TCP, 80), Value::Data(Key::mark(0x1001)))];
        let rules = vec![
            Rule::new().set_mark_from(version, &DESTINATION, &name("marks")),
            Rule::new().mark_equals(0xff00, 0x1000).reject(Reject::TcpReset),
        ];
        let chain = base(ChainType::Filter, Hook::Forward, 0);
        load(&cluster, chain, rules, vec![("marks", spec, marked)]);
        assert_eq!(cluster.probe("x/a", pod, Protocol::Tcp, 80).unwrap(), Outcome::Refused);
        assert_eq!(answer(&cluster, pod, Protocol::Udp, 53).0, "y/a", "not in the map");
    }
}

#[test]
fn packets_that_are_not_tracked_have_no_connection() {
    let cluster = pods();
    for (version, family, _) in VERSIONS {
        let [client, pod] = ["x/a", "y/a"].map(|pod| cluster.address(pod, family).unwrap());
        let to_pod =
            |rule: Rule| rule.fields_in(version, &[Address(Source), Address(Destination)], &name("pair"));
        let pair = Key::concat(&[Key::from(client).as_bytes(), Key::from(pod).as_bytes()]);
        let sets =
            |key: Key| vec![("pair", SetSpec::set(&[version.data_type(); 2]), vec![(key, Value::Member)])];
        let rules =
            vec![to_pod(Rule::new()).notrack(), to_pod(Rule::new()).ct_state(&[CtState::Untracked]).drop()];
        let chain = base(ChainType::Filter, Hook::Prerouting, -300);
        load(&cluster, chain, rules.clone(), sets(pair));
        assert_eq!(cluster.probe("x/a", pod, Protocol::Tcp, 80).unwrap(), Outcome::TimedOut);
        let other = Key::concat(&[Key::from(client).as_bytes(), Key::from(client).as_bytes()]);
        load(&cluster, chain, rules, sets(other));
        assert_eq!(answer(&cluster, pod, Protocol::Tcp, 80).0, "y/a");
    }
}

/// How long chains are changed under a flood, and how often at least, however slow the machine.
const FLOOD: Duration = Duration::from_secs(4);
const LEAST_CHANGES: u32 = 100;

/// KERNEL: net/netfilter/nf_tables_core.c. See `kernel_nft::stages`.
#[test]
fn no_packet_falls_through_a_chain_that_takes_the_place_of_another() {
    let cluster = pods();
    let (version, family, _) = VERSIONS[0];
    let pod = cluster.address("y/a", family).unwrap();
    let receiver = cluster
        .namespace("y/a")
        .unwrap()
        .run(|| UdpSocket::bind(SocketAddr::new(pod, 9000)).unwrap())
        .unwrap();
    receiver.set_nonblocking(true).unwrap();
    let sender = cluster.namespace("x/a").unwrap().run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let node = cluster.namespace("n1").unwrap();
    let mut keeper = node.run(|| Keeper::new(Socket::open().unwrap(), Family::Inet, "svc")).unwrap();
    let table =
        Table { family: Family::Inet, name: name("svc"), flags: TableFlags::default(), comment: None };
    let mut journal = Journal::new(Ruleset::new(table));
    keeper.commit(&[Op::AddTable(journal.ruleset().table.clone())], None).unwrap();
    journal.ensure_set(&name("pods"), || SetSpec::verdicts(&[version.data_type()]));
    let dispatch = Rule::new().address_verdict(Destination, version, &name("pods"));
    let hook = Some(base(ChainType::Filter, Hook::Forward, 0));
    journal.set_chain(&name("forward"), Some(Chain { base: hook, comment: None, rules: vec![dispatch] }));
    let stop = AtomicBool::new(false);
    let mut commits = 0_u32;
    std::thread::scope(|scope| {
        let start = Instant::now();
        while start.elapsed() < FLOOD || commits <= LEAST_CHANGES {
            let chain = name(&format!("c{commits}"));
            let rules = vec![Rule::new().drop()];
            journal.set_chain(&chain, Some(Chain { base: None, comment: None, rules }));
            journal.set_element(&name("pods"), Key::from(pod), Some(Value::Verdict(Verdict::Jump(chain))));
            if commits > 0 {
                journal.set_chain(&name(&format!("c{}", commits - 1)), None);
            }
            keeper.commit(&journal.take_steps(|_| false).ops, None).unwrap();
            commits += 1;
            if commits == 1 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        sender.send_to(b"x", (pod, 9000)).ok();
                    }
                });
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut through = 0;
    while receiver.recv(&mut [0; 8]).is_ok() {
        through += 1;
    }
    assert_eq!(through, 0, "packets of {commits} changes");
}
