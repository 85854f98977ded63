//! The kernel's table of connections, filled by `conntrack -I`, by packets, and read by `conntrack -L`.

use std::net::{SocketAddr, UdpSocket};

use kernel_netlink::conntrack::*;

use crate::conntrack_contract::World;
use crate::namespace::{in_netns, run};

struct Kernel;

impl World for Kernel {
    fn open(&mut self) -> Box<dyn Conntrack> {
        Box::new(Socket::open().unwrap())
    }

    fn track(
        &mut self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
        endpoint: SocketAddr,
    ) {
        let name = if protocol == Protocol::TCP { "tcp" } else { "udp" };
        let addresses = [client.ip(), destination.ip(), endpoint.ip(), client.ip()].map(|ip| ip.to_string());
        let ports =
            [client.port(), destination.port(), endpoint.port(), client.port()].map(|port| port.to_string());
        let mut arguments = vec!["-I", "-p", name, "-t", "600"];
        for (option, value) in ["-s", "-d", "-r", "-q"].iter().zip(&addresses) {
            arguments.extend([*option, value]);
        }
        let options = ["--sport", "--dport", "--reply-port-src", "--reply-port-dst"];
        for (option, value) in options.iter().zip(&ports) {
            arguments.extend([*option, value]);
        }
        if protocol == Protocol::TCP {
            arguments.extend(["--state", "ESTABLISHED"]);
        }
        run("conntrack", &arguments, "");
    }
}

fn kernel(test: fn(&mut dyn World)) {
    in_netns(move || test(&mut Kernel));
}

mod the_kernel_keeps_the_contract {
    crate::conntrack_contract::conntrack_contract!(super::kernel);
}

/// A table that has connections tracked as they come.
const TRACKING: &str =
    "table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }";

#[test]
fn what_packets_made_is_ended_and_conntrack_sees_it() {
    in_netns(|| {
        run("nft", &["-f", "-"], TRACKING);
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let port = server.local_addr().unwrap().port();
        let listed = || run("conntrack", &["-L", "-p", "udp", "--dport", &port.to_string()], "");
        assert!(listed().contains("dst=127.0.0.1"), "{}", listed());
        let stale = Stale { destination: "127.0.0.1".parse().ok(), port, endpoint: None };
        let mut socket = Socket::open().unwrap();
        assert_eq!(delete(&mut socket, Protocol::UDP, &[stale]).unwrap(), 1);
        assert_eq!(listed(), "");
        // The next packet is a first packet.
        client.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        assert!(listed().contains("UNREPLIED"), "{}", listed());
    });
}

#[test]
fn a_connection_of_another_zone_is_ended_in_its_zone() {
    in_netns(|| {
        let mut world = Kernel;
        let at = |text: &str| text.parse().unwrap();
        world.track(Protocol::UDP, at("10.0.0.1:1001"), at("10.96.0.10:53"), at("10.96.0.10:53"));
        let insert = "-I -p udp -t 600 -s 10.0.0.1 -d 10.96.0.10 --sport 1001 --dport 53 --zone 7";
        run("conntrack", &insert.split(' ').collect::<Vec<_>>(), "");
        let mut socket = Socket::open().unwrap();
        let ended = socket.delete_where(Protocol::UDP, &mut |connection| connection.zone == 7).unwrap();
        assert_eq!(ended, 1);
        let left = run("conntrack", &["-L", "-p", "udp"], "");
        assert_eq!(left.lines().count(), 1);
        assert!(!left.contains("zone="), "{left}");
    });
}
