//! What the fake promises is what the kernel does: one suite, run on both.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use kernel_netlink::ipvs::*;
use nix::libc;

/// A kernel without services, and conversations with it.
pub(crate) trait World {
    /// A new conversation, as a process of its own would have it.
    fn open(&mut self) -> Box<dyn Ipvs>;
}

/// Makes a test of every function below: `$run` is called with each of them.
macro_rules! contract {
    ($run:path) => {
        $crate::contract::contract! { $run =>
            a_new_kernel_has_no_services
            services_of_every_kind_read_back_equal
            destinations_of_every_kind_read_back_equal
            netmasks_read_back_as_what_they_mean
            a_service_is_changed_and_keeps_its_destinations
            a_destination_is_changed
            a_deleted_service_takes_its_destinations_along
            present_things_are_refused
            missing_things_are_refused
            an_unknown_scheduler_is_refused
            an_ipv6_persistence_without_prefix_is_refused
            limits_that_make_no_sense_are_refused
            addresses_of_many_hosts_are_refused
            only_tunnels_lead_to_another_family
            one_bad_command_costs_itself_alone
            a_thousand_refusals_are_all_told
            ports_and_marks_are_keys_of_their_own
            zero_is_for_services_that_are_there
            timeouts_are_set_one_by_one
            timeouts_that_are_too_long_are_refused
            ipvs_tells_its_version
            two_conversations_see_the_same
            nothing_to_do_succeeds
        }
    };
    ($run:path => $($test:ident)*) => {
        $(#[test] fn $test() { $run($crate::contract::$test); })*
    };
}
pub(crate) use contract;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn tcp(address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::TCP, address: ip(address), port }
}

fn on(protocol: Protocol, address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol, address: ip(address), port }
}

fn mark(family: Family, mark: u32) -> ServiceKey {
    ServiceKey::Mark { family, mark: NonZeroU32::new(mark).unwrap() }
}

pub(crate) fn scheduler(name: &str) -> Scheduler {
    Scheduler::new(name).unwrap()
}

pub(crate) fn rr(key: ServiceKey) -> Service {
    Service::new(key, scheduler("rr"))
}

pub(crate) fn to(address: &str, port: u16) -> Destination {
    Destination::new(ip(address), port)
}

fn through(tunnel: Tunnel, destination: Destination) -> Destination {
    Destination { forward: Forward::Tunnel(tunnel), ..destination }
}

fn services(ipvs: &mut dyn Ipvs) -> BTreeMap<ServiceKey, Service> {
    let found = ipvs.observe_services().unwrap();
    let count = found.len();
    let map: BTreeMap<_, _> = found.into_iter().map(|state| (state.service.key, state.service)).collect();
    assert_eq!(map.len(), count, "a service twice");
    map
}

fn destinations(ipvs: &mut dyn Ipvs, service: &ServiceKey) -> BTreeMap<DestinationKey, Destination> {
    let found = ipvs.observe_destinations(service).unwrap();
    let count = found.len();
    let map: BTreeMap<_, _> =
        found.into_iter().map(|state| (state.destination.key, state.destination)).collect();
    assert_eq!(map.len(), count, "a destination twice");
    map
}

/// (command, errno) of what was refused.
fn refusals(result: Result<(), CommitError>) -> Vec<(usize, i32)> {
    match result {
        Err(CommitError::Refused(refusals)) => {
            assert!(refusals.iter().all(|refusal| !refusal.description.is_empty()));
            refusals.iter().map(|refusal| (refusal.command, refusal.errno)).collect()
        }
        other => panic!("not refused by the kernel: {other:?}"),
    }
}

/// The errno of each of the commands, which are all refused.
fn errnos(ipvs: &mut dyn Ipvs, commands: &[Command]) -> Vec<i32> {
    let refusals = refusals(ipvs.commit(commands));
    let indices: Vec<usize> = refusals.iter().map(|refusal| refusal.0).collect();
    assert_eq!(indices, (0..commands.len()).collect::<Vec<_>>(), "not all were refused: {refusals:?}");
    refusals.into_iter().map(|refusal| refusal.1).collect()
}

pub(crate) fn a_new_kernel_has_no_services(world: &mut dyn World) {
    let mut ipvs = world.open();
    assert_eq!(ipvs.observe_services().unwrap(), []);
    assert_eq!(ipvs.observe_service(&tcp("10.96.0.1", 443)).unwrap(), None);
    assert_eq!(ipvs.observe_destinations(&tcp("10.96.0.1", 443)).unwrap(), []);
}

pub(crate) fn services_of_every_kind_read_back_equal(world: &mut dyn World) {
    let mut ipvs = world.open();
    let sticky = |service: Service, timeout| Service {
        persistence: Some(Persistence::per_client(timeout, service.key.family())),
        ..service
    };
    let flagged = |service: Service, flags| Service { flags, ..service };
    let wanted = [
        rr(tcp("10.96.0.1", 443)),
        rr(on(Protocol::UDP, "10.96.0.10", 53)),
        rr(on(Protocol::SCTP, "10.96.0.11", 3868)),
        rr(tcp("fd00:10:96::1", 443)),
        rr(on(Protocol::UDP, "fd00:10:96::a", 53)),
        rr(mark(Family::Ipv4, 1)),
        rr(mark(Family::Ipv6, u32::MAX)),
        sticky(rr(tcp("10.96.0.2", 80)), 10800),
        sticky(rr(tcp("fd00:10:96::2", 80)), 1),
        sticky(rr(mark(Family::Ipv4, 7)), 86400),
        sticky(rr(mark(Family::Ipv6, 7)), 86400),
        flagged(Service::new(tcp("10.96.0.3", 80), scheduler("sh")), Flags::SCHEDULER_1 | Flags::SCHEDULER_2),
        flagged(Service::new(tcp("10.96.0.4", 80), scheduler("mh")), Flags::SCHEDULER_2),
        flagged(rr(on(Protocol::UDP, "10.96.0.5", 53)), Flags::ONE_PACKET),
        sticky(flagged(rr(tcp("10.96.0.6", 80)), Flags::SCHEDULER_3), 60),
        Service::new(tcp("10.96.0.7", 80), scheduler("wlc")),
        Service::new(tcp("10.96.0.8", 80), scheduler("none")),
    ];
    ipvs.commit(&wanted.map(Command::AddService)).unwrap();
    assert_eq!(services(&mut *ipvs), wanted.map(|service| (service.key, service)).into());
    for service in wanted {
        let state = ipvs.observe_service(&service.key).unwrap().unwrap();
        assert_eq!(state, ServiceState { service, stats: Stats::default() });
    }
}

pub(crate) fn destinations_of_every_kind_read_back_equal(world: &mut dyn World) {
    let mut ipvs = world.open();
    let port = NonZeroU16::new(5555).unwrap();
    for (number, (key, hosts)) in [
        (tcp("10.96.0.1", 80), ["10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5"]),
        (tcp("fd00:10:96::1", 80), ["fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5"]),
        (mark(Family::Ipv4, 9), ["10.244.2.1", "10.244.2.2", "10.244.2.3", "10.244.2.4", "10.244.2.5"]),
    ]
    .into_iter()
    .enumerate()
    {
        let wanted = [
            Destination { weight: i32::MAX as u32, ..to(hosts[0], 80) },
            Destination { weight: 0, ..to(hosts[0], 81) },
            Destination { upper_threshold: 400, lower_threshold: 300, ..to(hosts[1], 80) },
            Destination { forward: Forward::Route, ..to(hosts[1], 0) },
            through(Tunnel::Ipip, to(hosts[2], 80)),
            through(Tunnel::Gue { port, checksum: Checksum::FULL }, to(hosts[3], 80)),
            through(Tunnel::Gue { port, checksum: Checksum::REMOTE }, to(hosts[3], 65535)),
            through(Tunnel::Gre { checksum: Checksum::NONE }, to(hosts[4], 80)),
            through(Tunnel::Gre { checksum: Checksum::FULL }, to(hosts[4], 81)),
        ];
        let mut commands = vec![Command::AddService(rr(key))];
        commands.extend(wanted.map(|destination| Command::AddDestination(key, destination)));
        ipvs.commit(&commands).unwrap();
        let found = ipvs.observe_destinations(&key).unwrap();
        for state in &found {
            assert_eq!(state.stats, Stats::default());
            assert_eq!((state.active_connections, state.inactive_connections), (0, 0));
        }
        assert_eq!(
            destinations(&mut *ipvs, &key),
            wanted.map(|destination| (destination.key, destination)).into()
        );
        assert_eq!(services(&mut *ipvs).len(), number + 1);
    }
}

pub(crate) fn netmasks_read_back_as_what_they_mean(world: &mut dyn World) {
    let mut ipvs = world.open();
    let (four, six) = (tcp("10.96.0.1", 80), tcp("fd00::1", 80));
    let cases = [
        (four, Netmask::Prefix(24), Netmask::Prefix(24)),
        (four, Netmask::Prefix(0), Netmask::Prefix(0)),
        (four, Netmask::Prefix(200), Netmask::Prefix(32)),
        (four, Netmask::Mask(0xffff_0000), Netmask::Prefix(16)),
        (four, Netmask::Mask(0xff00_ff00), Netmask::Mask(0xff00_ff00)),
        (six, Netmask::Prefix(1), Netmask::Prefix(1)),
        (six, Netmask::Prefix(64), Netmask::Prefix(64)),
        (six, Netmask::Prefix(200), Netmask::Prefix(128)),
        (six, Netmask::Mask(0xff00_ff00), Netmask::Prefix(128)),
    ];
    ipvs.commit(&[four, six].map(|key| Command::AddService(rr(key)))).unwrap();
    for (key, written, read) in cases {
        let sticky = |netmask| Service { persistence: Some(Persistence { timeout: 60, netmask }), ..rr(key) };
        ipvs.commit(&[Command::SetService(sticky(written))]).unwrap();
        assert_eq!(ipvs.observe_service(&key).unwrap().unwrap().service, sticky(read));
    }
}

pub(crate) fn a_service_is_changed_and_keeps_its_destinations(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let host = to("10.244.1.1", 80);
    ipvs.commit(&[Command::AddService(rr(key)), Command::AddDestination(key, host)]).unwrap();
    let changed = Service {
        scheduler: scheduler("mh"),
        flags: Flags::SCHEDULER_1,
        persistence: Some(Persistence::per_client(5, Family::Ipv4)),
        key,
    };
    // There and back: flags and persistence end as well as begin.
    for wanted in [changed, rr(key)] {
        ipvs.commit(&[Command::SetService(wanted)]).unwrap();
        assert_eq!(ipvs.observe_service(&key).unwrap().unwrap().service, wanted);
        assert_eq!(destinations(&mut *ipvs, &key), [(host.key, host)].into());
    }
}

pub(crate) fn a_destination_is_changed(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let host = to("10.244.1.1", 80);
    ipvs.commit(&[Command::AddService(rr(key)), Command::AddDestination(key, host)]).unwrap();
    for wanted in [
        Destination { weight: 0, ..host },
        Destination { upper_threshold: 9, lower_threshold: 3, ..host },
        through(Tunnel::Ipip, host),
        host,
    ] {
        ipvs.commit(&[Command::SetDestination(key, wanted)]).unwrap();
        assert_eq!(destinations(&mut *ipvs, &key), [(host.key, wanted)].into());
    }
    ipvs.commit(&[Command::DeleteDestination(key, host.key)]).unwrap();
    assert_eq!(destinations(&mut *ipvs, &key), [].into());
}

pub(crate) fn a_deleted_service_takes_its_destinations_along(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let host = to("10.244.1.1", 80);
    ipvs.commit(&[Command::AddService(rr(key)), Command::AddDestination(key, host)]).unwrap();
    ipvs.commit(&[Command::DeleteService(key)]).unwrap();
    assert_eq!(services(&mut *ipvs), [].into());
    ipvs.commit(&[Command::AddService(rr(key))]).unwrap();
    assert_eq!(destinations(&mut *ipvs, &key), [].into());
}

pub(crate) fn present_things_are_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let add = [Command::AddService(rr(key)), Command::AddDestination(key, to("10.244.1.1", 80))];
    ipvs.commit(&add).unwrap();
    assert_eq!(errnos(&mut *ipvs, &add), [libc::EEXIST; 2]);
    // Before anything else is looked at.
    let unknown = Service::new(key, scheduler("nosuch"));
    assert_eq!(errnos(&mut *ipvs, &[Command::AddService(unknown)]), [libc::EEXIST]);
}

pub(crate) fn missing_things_are_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let host = to("10.244.1.1", 80);
    let of_no_service = [
        Command::SetService(rr(key)),
        Command::DeleteService(key),
        Command::AddDestination(key, host),
        Command::SetDestination(key, host),
        Command::DeleteDestination(key, host.key),
        Command::Zero(key),
    ];
    assert_eq!(errnos(&mut *ipvs, &of_no_service), [libc::ESRCH; 6]);
    ipvs.commit(&[Command::AddService(rr(key))]).unwrap();
    let of_no_destination = [Command::SetDestination(key, host), Command::DeleteDestination(key, host.key)];
    assert_eq!(errnos(&mut *ipvs, &of_no_destination), [libc::ENOENT; 2]);
}

pub(crate) fn an_unknown_scheduler_is_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let unknown = Service::new(key, scheduler("nosuch"));
    assert_eq!(errnos(&mut *ipvs, &[Command::AddService(unknown)]), [libc::ENOENT]);
    ipvs.commit(&[Command::AddService(rr(key))]).unwrap();
    assert_eq!(errnos(&mut *ipvs, &[Command::SetService(unknown)]), [libc::ENOENT]);
    assert_eq!(services(&mut *ipvs), [(key, rr(key))].into());
}

pub(crate) fn an_ipv6_persistence_without_prefix_is_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let persistence = Some(Persistence { timeout: 60, netmask: Netmask::Prefix(0) });
    let service = Service { persistence, ..rr(tcp("fd00::1", 80)) };
    assert_eq!(errnos(&mut *ipvs, &[Command::AddService(service)]), [libc::EINVAL]);
}

pub(crate) fn limits_that_make_no_sense_are_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let host = to("10.244.1.1", 80);
    let heavy = Destination { weight: i32::MAX as u32 + 1, ..host };
    let crossed = Destination { upper_threshold: 1, lower_threshold: 2, ..host };
    ipvs.commit(&[Command::AddService(rr(key))]).unwrap();
    let add = [heavy, crossed].map(|destination| Command::AddDestination(key, destination));
    assert_eq!(errnos(&mut *ipvs, &add), [libc::ERANGE; 2]);
    // Before it is looked for.
    let set = [heavy, crossed].map(|destination| Command::SetDestination(key, destination));
    assert_eq!(errnos(&mut *ipvs, &set), [libc::ERANGE; 2]);
}

pub(crate) fn addresses_of_many_hosts_are_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let keys = [tcp("10.96.0.1", 80), tcp("fd00::1", 80)];
    ipvs.commit(&keys.map(|key| Command::AddService(rr(key)))).unwrap();
    for (key, address) in [
        (keys[0], "0.0.0.0"),
        (keys[0], "224.0.0.1"),
        (keys[0], "255.255.255.255"),
        (keys[1], "::"),
        (keys[1], "ff02::1"),
        (keys[1], "fe80::1"),
    ] {
        let add = Command::AddDestination(key, to(address, 80));
        assert_eq!(errnos(&mut *ipvs, &[add]), [libc::EINVAL], "{address}");
    }
}

pub(crate) fn only_tunnels_lead_to_another_family(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    let host = to("fd00::1", 80);
    ipvs.commit(&[Command::AddService(rr(key))]).unwrap();
    let add = [host, Destination { forward: Forward::Route, ..host }]
        .map(|destination| Command::AddDestination(key, destination));
    assert_eq!(errnos(&mut *ipvs, &add), [libc::EINVAL; 2]);
    let tunnel = through(Tunnel::Ipip, host);
    ipvs.commit(&[Command::AddDestination(key, tunnel)]).unwrap();
    assert_eq!(destinations(&mut *ipvs, &key), [(host.key, tunnel)].into());
    ipvs.commit(&[Command::DeleteDestination(key, host.key)]).unwrap();
    assert_eq!(destinations(&mut *ipvs, &key), [].into());
}

pub(crate) fn one_bad_command_costs_itself_alone(world: &mut dyn World) {
    let mut ipvs = world.open();
    let (one, two) = (tcp("10.96.0.1", 80), tcp("10.96.0.2", 80));
    let host = to("10.244.1.1", 80);
    let commands = [
        Command::AddService(rr(one)),
        Command::AddService(rr(one)),
        Command::AddDestination(one, host),
        Command::DeleteService(two),
        Command::AddService(Service::new(two, scheduler("nosuch"))),
        Command::AddService(rr(two)),
        Command::AddDestination(two, to("0.0.0.0", 80)),
        Command::AddDestination(two, host),
        Command::DeleteDestination(two, to("10.244.1.9", 80).key),
    ];
    let expected = [
        (1, libc::EEXIST),
        (3, libc::ESRCH),
        (4, libc::ENOENT),
        (6, libc::EINVAL),
        // The last, whose answer also ends the batch.
        (8, libc::ENOENT),
    ];
    assert_eq!(refusals(ipvs.commit(&commands)), expected);
    assert_eq!(services(&mut *ipvs), [one, two].map(|key| (key, rr(key))).into());
    for key in [one, two] {
        assert_eq!(destinations(&mut *ipvs, &key), [(host.key, host)].into());
    }
}

pub(crate) fn a_thousand_refusals_are_all_told(world: &mut dyn World) {
    let mut ipvs = world.open();
    let add: Vec<_> = (0..1000).map(|port| Command::AddService(rr(tcp("10.96.0.1", port)))).collect();
    ipvs.commit(&add).unwrap();
    assert_eq!(services(&mut *ipvs).len(), 1000);
    assert_eq!(errnos(&mut *ipvs, &add), [libc::EEXIST; 1000]);
}

pub(crate) fn ports_and_marks_are_keys_of_their_own(world: &mut dyn World) {
    let mut ipvs = world.open();
    let keys = [
        tcp("10.96.0.1", 0),
        tcp("10.96.0.1", 80),
        on(Protocol::UDP, "10.96.0.1", 80),
        tcp("fd00::1", 80),
        mark(Family::Ipv4, 80),
        mark(Family::Ipv6, 80),
    ];
    ipvs.commit(&keys.map(|key| Command::AddService(rr(key)))).unwrap();
    ipvs.commit(&[Command::DeleteService(keys[1]), Command::DeleteService(keys[4])]).unwrap();
    let left = [keys[0], keys[2], keys[3], keys[5]].map(|key| (key, rr(key)));
    assert_eq!(services(&mut *ipvs), left.into());
}

pub(crate) fn zero_is_for_services_that_are_there(world: &mut dyn World) {
    let mut ipvs = world.open();
    let key = tcp("10.96.0.1", 80);
    ipvs.commit(&[Command::AddService(rr(key)), Command::Zero(key), Command::ZeroAll]).unwrap();
    assert_eq!(errnos(&mut *ipvs, &[Command::Zero(tcp("10.96.0.1", 81))]), [libc::ESRCH]);
}

pub(crate) fn timeouts_are_set_one_by_one(world: &mut dyn World) {
    let mut ipvs = world.open();
    let first = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    assert_eq!(ipvs.observe_timeouts().unwrap(), first);
    ipvs.commit(&[Command::SetTimeouts(Timeouts { tcp_fin: 30, ..Timeouts::default() })]).unwrap();
    assert_eq!(ipvs.observe_timeouts().unwrap(), Timeouts { tcp_fin: 30, ..first });
    let all = Timeouts { tcp: 1, tcp_fin: 2, udp: 3 };
    ipvs.commit(&[Command::SetTimeouts(all)]).unwrap();
    assert_eq!(ipvs.observe_timeouts().unwrap(), all);
}

pub(crate) fn timeouts_that_are_too_long_are_refused(world: &mut dyn World) {
    let mut ipvs = world.open();
    let first = ipvs.observe_timeouts().unwrap();
    let longest = i32::MAX as u32 / 250;
    let commands = [u32::MAX, i32::MAX as u32, longest + 1]
        .map(|udp| Command::SetTimeouts(Timeouts { tcp: 1, udp, ..Timeouts::default() }));
    assert_eq!(errnos(&mut *ipvs, &commands), [libc::EINVAL; 3]);
    assert_eq!(ipvs.observe_timeouts().unwrap(), first);
}

pub(crate) fn ipvs_tells_its_version(world: &mut dyn World) {
    let info = world.open().info().unwrap();
    assert_eq!(info.version, (1, 2, 1));
    assert!(info.connection_buckets.is_power_of_two(), "{info:?}");
}

pub(crate) fn two_conversations_see_the_same(world: &mut dyn World) {
    let (mut ours, mut stranger) = (world.open(), world.open());
    let key = tcp("10.96.0.1", 80);
    stranger.commit(&[Command::AddService(rr(key))]).unwrap();
    assert_eq!(services(&mut *ours), [(key, rr(key))].into());
    drop(stranger);
    assert_eq!(services(&mut *ours), [(key, rr(key))].into());
}

pub(crate) fn nothing_to_do_succeeds(world: &mut dyn World) {
    world.open().commit(&[]).unwrap();
}
