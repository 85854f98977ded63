//! Work, devices and settings in other namespaces.

use std::fs;

use kernel_netlink::namespace::{Error, Namespace};
use kernel_netlink::route::*;
use kernel_netlink::sysctl::{Name, State, Sysctls};

use crate::namespace::{in_empty_netns, in_netns, run};
use crate::route_contract::{link, link_names, name, net, new_bridge};

/// A namespace that lives as long as its handle.
fn other() -> Namespace {
    in_empty_netns(|| Namespace::current().unwrap())
}

#[test]
fn work_is_done_elsewhere_and_the_caller_stays() {
    in_netns(|| {
        let here = Namespace::current().unwrap();
        let there = other();
        assert_ne!(here, there);
        let mut socket = there
            .run(|| {
                assert_eq!(Namespace::current().unwrap(), there);
                Socket::open().unwrap()
            })
            .unwrap();
        assert_eq!(Namespace::current().unwrap(), here);
        // The socket stays where it was opened.
        socket.commit(&[Command::AddLink(new_bridge("br"))]).unwrap();
        assert_eq!(Socket::open().unwrap().observe_link(&name("br")).unwrap(), None);
        let words = there.run(|| run("ip", &["-br", "link", "show", "br"], "")).unwrap();
        assert!(words.starts_with("br "), "{words}");
    });
}

#[test]
fn a_panic_of_the_work_reaches_the_caller_who_stays() {
    in_netns(|| {
        let here = Namespace::current().unwrap();
        let there = other();
        let panicked = std::panic::catch_unwind(|| there.run(|| panic!("of the work")));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"of the work"));
        assert_eq!(Namespace::current().unwrap(), here);
        assert_eq!(there.run(|| 7).unwrap(), 7);
    });
}

#[test]
fn a_visitor_comes_home_also_when_the_work_panics() {
    in_netns(|| {
        let here = Namespace::current().unwrap();
        let there = other();
        assert_eq!(there.visit(&here, || Namespace::current().unwrap()).unwrap(), there);
        assert_eq!(Namespace::current().unwrap(), here);
        let panicked =
            std::panic::catch_unwind(|| there.visit(&here, || panic!("of the work")).map_err(drop));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"of the work"));
        assert_eq!(Namespace::current().unwrap(), here);
    });
}

#[test]
fn namespaces_are_opened_by_path_and_by_process() {
    let mine = Namespace::current().unwrap();
    assert_eq!(Namespace::of_process(std::process::id()).unwrap(), mine);
    let listed = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(mine.to_string(), listed.to_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("left-over");
    fs::write(&file, "").unwrap();
    assert!(matches!(Namespace::open(&file), Err(Error::NotANamespace(path)) if path == file));
    let gone = Namespace::open(&folder.path().join("gone")).unwrap_err();
    assert!(matches!(gone, Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    // One of another kind can be opened and not entered.
    let mount = Namespace::open("/proc/self/ns/mnt".as_ref()).unwrap();
    let refused = mount.run(|| panic!("entered")).unwrap_err();
    assert!(matches!(refused, Error::Enter { .. }), "{refused}");
}

#[test]
fn a_veth_leads_into_another_namespace() {
    in_netns(|| {
        let there = other();
        let mut socket = Socket::open().unwrap();
        let peer = Peer { namespace: Some(there.clone()), ..Peer::new(name("eth0")) };
        socket.commit(&[Command::AddLink(NewLink::new(name("pod1"), NewLinkKind::Veth(peer)))]).unwrap();
        let near = link(&mut socket, "pod1");
        assert!(near.peer_namespace.is_some(), "{near:?}");
        let far = there.run(|| link(&mut Socket::open().unwrap(), "eth0")).unwrap();
        assert_eq!(near.peer, Some(far.index));
        socket.commit(&[Command::DeleteLink(near.index)]).unwrap();
        let left = there.run(|| link_names(&mut Socket::open().unwrap())).unwrap();
        assert_eq!(left, ["lo"]);
    });
}

#[test]
fn a_link_moves_to_another_namespace_under_another_name() {
    in_netns(|| {
        let there = other();
        let mut socket = Socket::open().unwrap();
        let veth = NewLink::new(name("a"), NewLinkKind::Veth(Peer::new(name("b"))));
        socket.commit(&[Command::AddLink(veth)]).unwrap();
        let moved =
            LinkChange { namespace: Some(there.clone()), name: Some(name("eth0")), ..LinkChange::default() };
        let index = link(&mut socket, "b").index;
        socket.commit(&[Command::SetLink(index, moved)]).unwrap();
        assert_eq!(socket.observe_link(&name("b")).unwrap(), None);
        let found = there.run(|| Socket::open().unwrap().observe_link(&name("eth0")).unwrap()).unwrap();
        assert_eq!(found.unwrap().kind, LinkKind::Veth);
    });
}

#[test]
fn sysctls_of_a_namespace_are_set_in_it() {
    in_netns(|| {
        let there = other();
        let sysctls = Sysctls::default();
        let forward = Name::parse("net.ipv4.ip_forward").unwrap();
        let before = sysctls.read(&forward).unwrap();
        let states = there.run(|| [sysctls.ensure(&forward, "1"), sysctls.ensure(&forward, "1")]).unwrap();
        assert_eq!(states, [State::Changed("0".to_owned()), State::On]);
        assert_eq!(sysctls.read(&forward).unwrap(), before);
    });
}

#[test]
fn the_kernel_keeps_what_it_does_not_take_and_devices_may_have_dots() {
    in_netns(|| {
        let mut socket = Socket::open().unwrap();
        socket.commit(&[Command::AddLink(new_bridge("br0.100"))]).unwrap();
        let sysctls = Sysctls::default();
        let of = |leaf| Name::of(["net", "ipv4", "conf", "br0.100", leaf]).unwrap();
        assert_eq!(sysctls.ensure(&of("rp_filter"), "2"), State::Changed("0".to_owned()));
        let State::Stuck { value, reason } = sysctls.ensure(&of("rp_filter"), "nonsense") else {
            panic!("nonsense was taken")
        };
        assert_eq!(value.as_deref(), Some("2"));
        assert!(reason.contains("writing nonsense failed"), "{reason}");
        assert_eq!(sysctls.ensure(&of("no_such"), "1"), State::Missing);
    });
}

#[test]
fn an_address_is_of_the_namespace_of_its_link() {
    in_netns(|| {
        let there = other();
        let mut socket = there.run(|| Socket::open().unwrap()).unwrap();
        socket.commit(&[Command::AddAddress(Address::new(LinkIndex(1), net("192.0.2.1/32")))]).unwrap();
        assert!(!run("ip", &["address"], "").contains("192.0.2.1"));
        assert!(there.run(|| run("ip", &["address"], "")).unwrap().contains("192.0.2.1"));
    });
}
