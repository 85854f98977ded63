//! What we write, `ipvsadm` reads, and the other way round.

use std::num::{NonZeroU16, NonZeroU32};

use kernel_netlink::ipvs::*;
use nix::libc;

use crate::contract::{ip, rr, scheduler, tcp, to};
use crate::namespace::{in_empty_netns, in_netns, run};

const THRESHOLDS: &str = " -x 400 -y 300";

/// `ipvsadm -Sn`, in order.
fn saved() -> Vec<String> {
    let mut lines: Vec<_> =
        run("ipvsadm", &["-Sn"], "").lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

/// Services with their destinations, and how `ipvsadm` restores and saves them (but for [`THRESHOLDS`], which
/// it does not save).
fn examples() -> Vec<(Service, Vec<Destination>, Vec<&'static str>)> {
    let mark = |family, mark| ServiceKey::Mark { family, mark: NonZeroU32::new(mark).unwrap() };
    let udp = ServiceKey::Address { protocol: Protocol::UDP, address: ip("10.96.0.10"), port: 53 };
    let sctp = ServiceKey::Address { protocol: Protocol::SCTP, address: ip("10.96.0.11"), port: 3868 };
    let port = NonZeroU16::new(5555).unwrap();
    let tunnel = |tunnel, destination| Destination { forward: Forward::Tunnel(tunnel), ..destination };
    vec![
        (
            rr(tcp("10.96.0.1", 443)),
            vec![
                to("10.244.1.1", 6443),
                Destination { weight: 0, ..to("10.244.1.2", 6443) },
                Destination { upper_threshold: 400, lower_threshold: 300, ..to("10.244.1.3", 6443) },
            ],
            vec![
                "-A -t 10.96.0.1:443 -s rr",
                "-a -t 10.96.0.1:443 -r 10.244.1.1:6443 -m -w 1",
                "-a -t 10.96.0.1:443 -r 10.244.1.2:6443 -m -w 0",
                "-a -t 10.96.0.1:443 -r 10.244.1.3:6443 -m -w 1 -x 400 -y 300",
            ],
        ),
        (
            Service {
                persistence: Some(Persistence::per_client(10800, Family::Ipv6)),
                ..rr(tcp("fd00::1", 80))
            },
            vec![to("fd00:244::1", 8080)],
            vec!["-A -t [fd00::1]:80 -s rr -p 10800", "-a -t [fd00::1]:80 -r [fd00:244::1]:8080 -m -w 1"],
        ),
        (
            Service {
                persistence: Some(Persistence { timeout: 60, netmask: Netmask::Prefix(24) }),
                ..Service::new(udp, scheduler("wrr"))
            },
            vec![],
            vec!["-A -u 10.96.0.10:53 -s wrr -p 60 -M 255.255.255.0"],
        ),
        (
            Service { flags: Flags::SCHEDULER_1 | Flags::SCHEDULER_2, ..Service::new(sctp, scheduler("sh")) },
            vec![],
            vec!["-A --sctp-service 10.96.0.11:3868 -s sh -b sh-fallback,sh-port"],
        ),
        (
            rr(mark(Family::Ipv4, 4097)),
            vec![
                tunnel(Tunnel::Ipip, to("10.244.2.1", 80)),
                tunnel(Tunnel::Gue { port, checksum: Checksum::NONE }, to("10.244.2.2", 80)),
                Destination { forward: Forward::Route, ..to("10.244.2.3", 80) },
            ],
            vec![
                "-A -f 4097 -s rr",
                "-a -f 4097 -r 10.244.2.1:80 -i -w 1 --tun-type ipip",
                "-a -f 4097 -r 10.244.2.2:80 -i -w 1 --tun-type gue --tun-port 5555 --tun-nocsum",
                "-a -f 4097 -r 10.244.2.3:80 -g -w 1",
            ],
        ),
        (rr(mark(Family::Ipv6, 4098)), vec![], vec!["-A -f 4098 -6 -s rr"]),
    ]
}

#[test]
fn ipvsadm_sees_what_we_wrote() {
    in_netns(|| {
        let mut ipvs = Socket::open().unwrap();
        let mut commands = Vec::new();
        let mut expected = Vec::new();
        for (service, destinations, lines) in examples() {
            commands.push(Command::AddService(service));
            commands.extend(destinations.into_iter().map(|to| Command::AddDestination(service.key, to)));
            expected.extend(lines.into_iter().map(|line| line.replace(THRESHOLDS, "")));
        }
        ipvs.commit(&commands).unwrap();
        expected.sort();
        assert_eq!(saved(), expected);
        let listed = run("ipvsadm", &["-Ln", "--thresholds"], "");
        let limits: Vec<_> = listed
            .lines()
            .filter(|line| line.contains("10.244.1.3:6443"))
            .map(|line| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>())
            .collect();
        assert_eq!(limits, [["400", "300"]], "{listed}");
    });
}

#[test]
fn we_see_what_ipvsadm_wrote() {
    in_netns(|| {
        let lines: Vec<_> = examples().into_iter().flat_map(|(_, _, lines)| lines).collect();
        run("ipvsadm", &["-R"], &format!("{}\n", lines.join("\n")));
        let mut ipvs = Socket::open().unwrap();
        let mut found: Vec<_> =
            ipvs.observe_services().unwrap().into_iter().map(|state| state.service).collect();
        let mut expected: Vec<_> = examples().into_iter().map(|(service, _, _)| service).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        for (service, mut expected, _) in examples() {
            let states = ipvs.observe_destinations(&service.key).unwrap();
            let mut found: Vec<_> = states.into_iter().map(|state| state.destination).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{}", service.key);
        }
    });
}

#[test]
fn ipvsadm_sees_our_timeouts() {
    in_netns(|| {
        let mut ipvs = Socket::open().unwrap();
        ipvs.commit(&[Command::SetTimeouts(Timeouts { tcp: 1, tcp_fin: 2, udp: 3 })]).unwrap();
        let words = run("ipvsadm", &["-L", "--timeout"], "");
        assert_eq!(words.trim(), "Timeout (tcp tcpfin udp): 1 2 3");
    });
}

#[test]
fn a_thousand_services_of_eight_destinations_are_written_read_and_removed() {
    in_netns(|| {
        let mut ipvs = Socket::open().unwrap();
        let keys: Vec<_> =
            (0..1000).map(|n| tcp(&format!("10.96.{}.{}", n / 250, n % 250 + 1), 80)).collect();
        let mut commands = Vec::new();
        for key in &keys {
            commands.push(Command::AddService(rr(*key)));
            let host = |n| Command::AddDestination(*key, to(&format!("10.244.0.{n}"), 8080));
            commands.extend((1..=8).map(host));
        }
        ipvs.commit(&commands).unwrap();
        assert_eq!(saved().len(), 9000);
        assert_eq!(ipvs.observe_services().unwrap().len(), 1000);
        for key in &keys {
            assert_eq!(ipvs.observe_destinations(key).unwrap().len(), 8);
        }
        let delete: Vec<_> = keys.iter().map(|key| Command::DeleteService(*key)).collect();
        ipvs.commit(&delete).unwrap();
        assert_eq!(saved(), Vec::<String>::new());
    });
}

#[test]
fn services_belong_to_the_namespace_in_which_the_socket_was_opened() {
    let mut ipvs = in_netns(|| Socket::open().unwrap());
    in_netns(move || {
        ipvs.commit(&[Command::AddService(rr(tcp("10.96.0.1", 80)))]).unwrap();
        assert_eq!(saved(), Vec::<String>::new());
        assert_eq!(ipvs.observe_services().unwrap().len(), 1);
    });
}

#[test]
fn without_any_ipv4_address_no_ipv4_destination_is_taken() {
    in_empty_netns(|| {
        let mut ipvs = Socket::open().unwrap();
        let key = tcp("10.96.0.1", 80);
        let commands = [Command::AddService(rr(key)), Command::AddDestination(key, to("10.244.1.1", 80))];
        let Err(CommitError::Refused(refusals)) = ipvs.commit(&commands) else { panic!("not refused") };
        assert_eq!(refusals.iter().map(|r| (r.command, r.errno)).collect::<Vec<_>>(), [(1, libc::EINVAL)]);
        run("ip", &["link", "set", "lo", "up"], "");
        ipvs.commit(&commands[1..]).unwrap();
    });
}
