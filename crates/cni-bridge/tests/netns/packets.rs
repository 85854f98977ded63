//! Packets: between pods, to the node, out of it, into it by its ports.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use test_netns::{Namespace, sctp};

use crate::lab::Lab;

/// For what is to arrive. Short of what a client takes to ask anew for a neighbour that it knows wrongly.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// For what is said on a connection, however busy who says it is.
const ANSWER: Duration = Duration::from_secs(60);
/// How often a datagram is sent that is to be answered, and one that is not; each waits for so long.
const TRIES: u32 = 60;
const TRIES_IN_VAIN: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// For what is not to arrive.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);

/// Answers each connection with the client's address, as the server sees it.
pub(crate) fn serve(namespace: &Namespace, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = namespace.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let udp = namespace.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let client = stream.peer_addr().unwrap();
            let _ = write!(stream, "{}", client.ip());
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(client.ip().to_string().as_bytes(), client);
        }
    });
}

/// The address that the server sees; `None` if there is no answer.
pub(crate) fn ask(namespace: &Namespace, server: &str, patience: Duration) -> Option<String> {
    let server: SocketAddr = server.parse().unwrap();
    namespace
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&server, patience).ok()?;
            stream.set_read_timeout(Some(ANSWER)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
        .unwrap()
}

fn ask_udp(namespace: &Namespace, server: &str) -> Option<String> {
    let server: SocketAddr = server.parse().unwrap();
    namespace
        .run(|| {
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PAUSE)).unwrap();
            let mut buffer = [0; 64];
            (0..TRIES).find_map(|_| {
                socket.send_to(b"?", server).ok()?;
                let length = socket.recv(&mut buffer).ok()?;
                Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
            })
        })
        .unwrap()
}

/// All SCTP packets of a family in a namespace. Raw, as not every kernel has sockets for SCTP; it travels as an
/// `UdpSocket`, whose system calls are right for it.
fn raw_sctp(namespace: &Namespace, any: IpAddr) -> UdpSocket {
    let here = SocketAddr::new(any, 0);
    let protocol = Some(Protocol::from(nix::libc::IPPROTO_SCTP));
    let open = || Socket::new(Domain::for_address(here), Type::RAW, protocol).unwrap();
    namespace.run(open).unwrap().into()
}

/// The next packet; it comes with its IP header if it is IPv4.
fn receive_sctp(socket: &UdpSocket) -> Option<(sctp::Packet, IpAddr)> {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let header = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
    Some((sctp::parse(&buffer[header..length])?, from.ip()))
}

/// Accepts associations with the client's address, as the server sees it.
fn serve_sctp(namespace: &Namespace, any: IpAddr, port: u16) {
    let socket = raw_sctp(namespace, any);
    thread::spawn(move || {
        loop {
            let Some((packet, from)) = receive_sctp(&socket) else { continue };
            if let (sctp::Chunk::Init { tag }, true) = (packet.chunk, packet.destination_port == port) {
                let answer = sctp::init_ack(port, packet.source_port, tag, &from.to_string());
                let _ = socket.send_to(&answer, SocketAddr::new(from, 0));
            }
        }
    });
}

/// The address that the server sees; `None` if there is no answer.
fn ask_sctp(namespace: &Namespace, server: &str, own_port: u16, tries: u32) -> Option<String> {
    let server: SocketAddr = server.parse().unwrap();
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = raw_sctp(namespace, any);
    socket.set_read_timeout(Some(PAUSE)).unwrap();
    (0..tries).find_map(|_| {
        socket.send_to(&sctp::init(own_port, server.port(), 7), SocketAddr::new(server.ip(), 0)).ok()?;
        let (packet, from) = receive_sctp(&socket)?;
        match packet.chunk {
            sctp::Chunk::InitAck { text }
                if (packet.source_port, packet.destination_port, from)
                    == (server.port(), own_port, server.ip()) =>
            {
                Some(text)
            }
            _ => None,
        }
    })
}

/// KERNEL: also without duplicate address detection an IPv6 address becomes local in a work item, and only once its
/// link has a carrier (net/ipv6/addrconf.c, `addrconf_dad_work`; net/core/link_watch.c).
fn wait_until_local(namespace: &Namespace, address: &str) {
    let end = Instant::now() + ANSWER;
    let route = || namespace.output("ip", &["route", "get", address], "").unwrap_or_default();
    while !route().starts_with("local ") {
        assert!(Instant::now() < end, "{address} is not local: {}", route());
        thread::sleep(Duration::from_millis(10));
    }
}

/// A host that has no way back to pods: it answers the node only.
fn outside(lab: &Lab) -> Namespace {
    let outside = Namespace::new("outside").unwrap();
    let path = outside.path();
    lab.node
        .ip(&format!(
            "link add out type veth peer name eth0 netns {}\naddr add 192.0.2.1/24 dev out\n\
             addr add 2001:db8::1/64 dev out nodad\nlink set out up",
            path.display()
        ))
        .unwrap();
    outside
        .ip("addr add 192.0.2.9/24 dev eth0\naddr add 2001:db8::9/64 dev eth0 nodad\nlink set eth0 up")
        .unwrap();
    wait_until_local(&lab.node, "2001:db8::1");
    wait_until_local(&outside, "2001:db8::9");
    outside
}

#[test]
fn pods_reach_each_other_and_the_node_with_their_own_addresses() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"ipMasq": true}));
    let (a, _) = lab.pod("a", &conf);
    let (b, _) = lab.pod("b", &conf);
    for address in ["0.0.0.0:80", "[::]:81"] {
        serve(&b, address);
        serve(&lab.node, address);
    }
    for (server, client) in [
        ("10.1.2.3:80", "10.1.2.2"),
        ("[fd00:1::3]:81", "fd00:1::2"),
        ("10.1.2.1:80", "10.1.2.2"),
        ("[fd00:1::1]:81", "fd00:1::2"),
    ] {
        assert_eq!(
            ask(&a, server, TIMEOUT).map(|seen| seen.replace("::ffff:", "")).as_deref(),
            Some(client),
            "{server}"
        );
    }
}

#[test]
fn who_gets_the_address_of_another_is_reached_at_once_by_those_who_knew_that_one() {
    let lab = Lab::new();
    let mut conf = lab.conf(json!({}));
    // Two addresses of each family: the third pod has those of the first.
    conf["ipam"]["ranges"] = json!([
        [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.2", "rangeEnd": "10.1.2.3"}],
        [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::2", "rangeEnd": "fd00:1::3"}]]);
    let (a, _) = lab.pod("a", &conf);
    let (b, _) = lab.pod("b", &conf);
    let reach = |server: &Namespace| {
        for address in ["10.1.2.2:80", "[fd00:1::2]:80"] {
            serve(server, address);
            for client in [&b, &lab.node] {
                assert!(ask(client, address, TIMEOUT).is_some(), "{address} from {}", client.label());
            }
        }
    };
    reach(&a);
    lab.del("a", &a, &conf).success();
    let (c, _) = lab.pod("c", &conf);
    reach(&c);
}

#[test]
fn packets_to_other_networks_leave_with_the_nodes_address_until_del() {
    let lab = Lab::new();
    let outside = outside(&lab);
    serve(&outside, "192.0.2.9:80");
    serve(&outside, "[2001:db8::9]:80");
    let conf = lab.conf(json!({"ipMasq": true}));
    let (a, _) = lab.pod("a", &conf);
    assert_eq!(ask(&a, "192.0.2.9:80", TIMEOUT).as_deref(), Some("192.0.2.1"));
    assert_eq!(ask(&a, "[2001:db8::9]:80", TIMEOUT).as_deref(), Some("2001:db8::1"));
    // Without, nobody knows the way back.
    let (b, _) = lab.pod("b", &lab.conf(json!({})));
    assert_eq!(ask(&b, "192.0.2.9:80", PATIENCE), None);
    lab.del("a", &a, &conf).success();
    assert!(!lab.rules().contains("10.1.2.2"));
}

fn port(host: u16, container: u16, protocol: &str, address: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": address})
}

#[test]
fn ports_of_the_node_lead_to_the_container() {
    let lab = Lab::new();
    let outside = outside(&lab);
    outside.ip("route add default via 192.0.2.1\nroute add ::/0 via 2001:db8::1").unwrap();
    let ports = json!({"portMappings": [
        port(8080, 80, "tcp", ""), port(8081, 80, "TCP", "192.0.2.1"), port(8053, 80, "udp", ""),
        port(8036, 36, "sctp", "")]});
    // KERNEL: with br_netfilter the bridge itself sends what is translated to a neighbour; back by the port that it
    // came in by only with this.
    let conf = lab
        .conf(json!({"hairpinMode": true, "capabilities": {"portMappings": true}, "runtimeConfig": ports}));
    let (a, _) = lab.pod("a", &conf);
    let (b, _) = lab.pod("b", &lab.conf(json!({})));
    serve(&a, "0.0.0.0:80");
    lab.node.ip("link set lo up").unwrap();
    serve(&a, "[fd00:1::2]:80");
    for (who, server, client) in [
        (&outside, "192.0.2.1:8080", "192.0.2.9"),
        (&outside, "[2001:db8::1]:8080", "2001:db8::9"),
        (&outside, "192.0.2.1:8081", "192.0.2.9"),
        // Of the container's own subnet, and itself: by the bridge's address, or the answer would not come here.
        (&b, "192.0.2.1:8080", "10.1.2.1"),
        (&a, "192.0.2.1:8080", "10.1.2.1"),
        (&b, "[2001:db8::1]:8080", "fd00:1::1"),
        (&a, "[2001:db8::1]:8080", "fd00:1::1"),
        (&lab.node, "192.0.2.1:8080", "192.0.2.1"),
        (&lab.node, "[2001:db8::1]:8080", "2001:db8::1"),
        (&lab.node, "127.0.0.1:8080", "10.1.2.1"),
    ] {
        let seen = ask(who, server, TIMEOUT);
        assert_eq!(seen.as_deref(), Some(client), "{server} from {}", who.label());
    }
    assert_eq!(ask(&outside, "10.1.2.1:8081", PATIENCE), None, "of one address of the node only");
    assert_eq!(ask_udp(&outside, "192.0.2.1:8053").as_deref(), Some("192.0.2.9"));
    assert_eq!(ask_udp(&outside, "[2001:db8::1]:8053").as_deref(), Some("2001:db8::9"));
    assert_eq!(ask_udp(&b, "192.0.2.1:8053").as_deref(), Some("10.1.2.1"));
    assert_eq!(ask_udp(&a, "192.0.2.1:8053").as_deref(), Some("10.1.2.1"));
    serve_sctp(&a, Ipv4Addr::UNSPECIFIED.into(), 36);
    serve_sctp(&a, Ipv6Addr::UNSPECIFIED.into(), 36);
    for (who, server, client) in [
        (&outside, "192.0.2.1:8036", "192.0.2.9"),
        (&outside, "[2001:db8::1]:8036", "2001:db8::9"),
        (&b, "192.0.2.1:8036", "10.1.2.1"),
        (&b, "[2001:db8::1]:8036", "fd00:1::1"),
    ] {
        let seen = ask_sctp(who, server, 40_036, TRIES);
        assert_eq!(seen.as_deref(), Some(client), "SCTP {server} from {}", who.label());
    }
    let taken = Namespace::new("c").unwrap();
    let words = "portMappings: a port of the node already leads to 10.1.2.2";
    assert_eq!(lab.add("c", &taken, &conf).refusal().1, words);
    lab.del("a", &a, &conf).success();
    assert_eq!(ask(&outside, "192.0.2.1:8080", PATIENCE), None);
    // Another port of its own, as the kernel remembers the association of the first.
    assert_eq!(ask_sctp(&outside, "192.0.2.1:8036", 40_037, TRIES_IN_VAIN), None);
    // Free again.
    lab.add("c", &taken, &conf).success();
}

#[test]
fn flows_of_udp_end_with_the_container_also_if_del_is_not_told_of_ports() {
    let lab = Lab::new();
    let outside = outside(&lab);
    outside.ip("route add default via 192.0.2.1").unwrap();
    let capable = lab.conf(json!({"capabilities": {"portMappings": true}}));
    let mut conf = capable.clone();
    conf["runtimeConfig"] = json!({"portMappings": [port(8053, 80, "udp", "")]});
    let (a, _) = lab.pod("a", &conf);
    serve(&a, "0.0.0.0:80");
    assert_eq!(ask_udp(&outside, "192.0.2.1:8053").as_deref(), Some("192.0.2.9"));
    let flows = || lab.node.output("conntrack", &["-L", "-p", "udp"], "").unwrap();
    assert!(flows().contains("src=10.1.2.2 "), "{}", flows());
    lab.del("a", &a, &capable).success();
    assert!(!flows().contains("src=10.1.2.2 "), "{}", flows());
}

#[test]
fn the_nodes_loopback_stays_closed_to_pods() {
    let lab = Lab::new();
    let ports = json!({"portMappings": [port(8080, 80, "tcp", "")]});
    let (a, _) = lab.pod("a", &lab.conf(json!({"runtimeConfig": ports})));
    lab.node.ip("link set lo up").unwrap();
    serve(&lab.node, "127.0.0.1:99");
    // As CVE-2020-8558 did: the bridge routes 127.0.0.0/8, and so does the pod.
    a.sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
    a.ip("route add 127.0.0.1/32 via 10.1.2.1 dev eth0").unwrap();
    assert_eq!(ask(&a, "127.0.0.1:99", PATIENCE), None);
    assert_eq!(ask(&lab.node, "127.0.0.1:99", TIMEOUT).as_deref(), Some("127.0.0.1"));
}

#[test]
fn isolated_pods_reach_the_node_and_not_each_other() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"portIsolation": true}));
    let (a, _) = lab.pod("a", &conf);
    let (b, _) = lab.pod("b", &conf);
    serve(&b, "0.0.0.0:80");
    serve(&lab.node, "0.0.0.0:80");
    assert_eq!(ask(&a, "10.1.2.3:80", PATIENCE), None);
    assert_eq!(ask(&a, "10.1.2.1:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
}

#[test]
fn a_pod_with_anothers_address_on_the_ethernet_is_not_heard() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"macspoofchk": true}));
    let (a, result) = lab.pod("a", &conf);
    serve(&lab.node, "0.0.0.0:80");
    assert_eq!(ask(&a, "10.1.2.1:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
    let own = result["interfaces"][2]["mac"].as_str().unwrap();
    for (mac, heard) in [("02:00:00:00:00:99", false), (own, true)] {
        a.ip(&format!("link set eth0 address {mac}\nneigh flush dev eth0")).unwrap();
        assert_eq!(ask(&a, "10.1.2.1:80", if heard { TIMEOUT } else { PATIENCE }).is_some(), heard, "{mac}");
    }
}
