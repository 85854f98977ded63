//! Packets are counted, and statistics go to zero.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kernel_netlink::ipvs::*;

use crate::contract::{rr, tcp, to};
use crate::namespace::{in_netns, run};

/// One connection through a service on loopback that has carried 1000 bytes, both of its ends, and the service.
struct Connected {
    ipvs: Socket,
    service: ServiceKey,
    _ends: (TcpStream, TcpStream),
}

fn connect() -> Connected {
    run("ip", &["address", "add", "10.96.0.1/32", "dev", "lo"], "");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (service, host) = (tcp("10.96.0.1", 80), to("127.0.0.1", server.local_addr().unwrap().port()));
    let mut ipvs = Socket::open().unwrap();
    ipvs.commit(&[Command::AddService(rr(service)), Command::AddDestination(service, host)]).unwrap();
    let mut client = TcpStream::connect("10.96.0.1:80").unwrap();
    let (mut served, _) = server.accept().unwrap();
    client.write_all(&[1; 1000]).unwrap();
    served.read_exact(&mut [0; 1000]).unwrap();
    Connected { ipvs, service, _ends: (client, served) }
}

impl Connected {
    fn service(&mut self) -> Stats {
        self.ipvs.observe_service(&self.service).unwrap().unwrap().stats
    }

    fn destination(&mut self) -> DestinationState {
        self.ipvs.observe_destinations(&self.service).unwrap()[0]
    }

    /// Statistics of service and destination, when the connection is in them.
    fn counted(&mut self, patience: Duration) -> Option<[Stats; 2]> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            let stats = [self.service(), self.destination().stats];
            if stats.iter().all(|stats| stats.in_bytes >= 1000) {
                return Some(stats);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    }
}

#[test]
fn connections_packets_and_bytes_are_counted_until_they_are_set_to_zero() {
    in_netns(|| {
        let mut connected = connect();
        let state = connected.destination();
        assert_eq!((state.active_connections, state.inactive_connections), (1, 0));
        for stats in connected.counted(Duration::from_secs(20)).expect("counted") {
            assert_eq!(stats.connections, 1);
            assert!(stats.in_packets >= 3, "{stats:?}");
        }
        connected.ipvs.commit(&[Command::Zero(connected.service)]).unwrap();
        assert_eq!(connected.service().connections, 0);
        let state = connected.destination();
        assert_eq!((state.stats.connections, state.active_connections), (0, 1));
    });
}

#[test]
fn without_estimation_statistics_stand_still_and_connections_are_seen() {
    in_netns(|| {
        // The sysctls come with the first socket.
        drop(Socket::open().unwrap());
        std::fs::write("/proc/sys/net/ipv4/vs/run_estimation", "0").unwrap();
        let mut connected = connect();
        assert_eq!(connected.counted(Duration::from_secs(6)), None);
        assert_eq!(connected.destination().active_connections, 1);
    });
}
