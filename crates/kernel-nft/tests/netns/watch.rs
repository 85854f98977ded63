//! Changes by others are noticed, our own are not.

use std::time::{Duration, Instant};

use kernel_nft::{Change, Family, Monitor, Nftables, Op, Socket, TableFlags};

use crate::layout::layout;
use crate::load::{commit, load};
use crate::namespace::{in_netns, run};

const SOON: Option<Duration> = Some(Duration::from_secs(60));
const NOW: Option<Duration> = Some(Duration::from_millis(50));

fn watched() -> (Socket, Monitor) {
    let mut socket = Socket::open().unwrap();
    load(&mut socket, &layout("npc", TableFlags::default()));
    let monitor = Monitor::open(Family::Inet, "npc", &[socket.portid()]).unwrap();
    (socket, monitor)
}

#[test]
fn a_change_by_nft_is_told_with_its_name() {
    in_netns(|| {
        let (_socket, mut monitor) = watched();
        run("nft", &["add", "element", "inet", "npc", "p4_f1a2", "{ 10.0.0.1 }"]);
        let change = monitor.wait(SOON).unwrap().expect("a change");
        assert_eq!(change.process.as_deref(), Some("nft"));
        assert!(change.pid.is_some_and(|pid| pid != 0) && !change.perhaps);
        assert_eq!(monitor.wait(NOW).unwrap(), None);
    });
}

#[test]
fn a_flush_of_everything_is_told() {
    in_netns(|| {
        let (_socket, mut monitor) = watched();
        run("nft", &["flush", "ruleset"]);
        assert!(monitor.wait(SOON).unwrap().is_some());
    });
}

#[test]
fn our_own_changes_and_other_tables_are_not_told() {
    in_netns(|| {
        let (mut socket, mut monitor) = watched();
        commit(&mut socket, "npc", &[Op::FlushChain("ok".into())]);
        run("nft", &["add", "table", "inet", "other"]);
        run("nft", &["add", "chain", "inet", "other", "npc"]);
        run("nft", &["add", "table", "ip", "npc"]);
        let started = Instant::now();
        assert_eq!(monitor.wait(NOW).unwrap(), None);
        assert!(started.elapsed() >= Duration::from_millis(50), "it waits for as long as it is told");
    });
}

#[test]
fn several_changes_are_one() {
    in_netns(|| {
        let (_socket, mut monitor) = watched();
        let mut stranger = Socket::open().unwrap();
        for address in ["10.0.0.1", "10.0.0.2"] {
            let element = (crate::layout::v4(address), kernel_nft::Value::Member);
            commit(&mut stranger, "npc", &[Op::AddElements("p4_f1a2".into(), vec![element])]);
        }
        let change = monitor.wait(SOON).unwrap().expect("a change");
        assert_eq!(change.pid, u32::try_from(nix::unistd::gettid().as_raw()).ok());
        assert_eq!(monitor.poll().unwrap(), None);
        monitor.ignore(stranger.portid());
        commit(&mut stranger, "npc", &[Op::FlushChain("ok".into())]);
        assert_eq!(monitor.wait(NOW).unwrap(), None);
    });
}

#[test]
fn a_flood_that_overruns_the_monitor_is_perhaps_a_change() {
    in_netns(|| {
        let (mut socket, mut monitor) = watched();
        let elements: Vec<_> =
            (0..60_000u32).map(|n| (std::net::Ipv4Addr::from(n).into(), kernel_nft::Value::Member)).collect();
        let (add, delete) = (
            Op::AddElements("p4_f1a2".into(), elements.clone()),
            Op::DeleteElements("p4_f1a2".into(), elements),
        );
        let perhaps = Change { perhaps: true, ..Change::default() };
        for _ in 0..20 {
            commit(&mut socket, "npc", std::slice::from_ref(&add));
            commit(&mut socket, "npc", std::slice::from_ref(&delete));
            if monitor.poll().unwrap() == Some(perhaps.clone()) {
                return;
            }
            // The next flood is not read meanwhile.
        }
        panic!("no flood is too much for the monitor");
    });
}
