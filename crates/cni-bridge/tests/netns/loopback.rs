//! Called as `loopback`: the container's own loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use cni_bridge::verbs::Program;
use serde_json::{Value, json};
use test_netns::Namespace;

use crate::support::{Answer, call};

/// A node, and a pod whose loopback is down as the kernel makes it.
struct Lab(Namespace, Namespace);

impl Lab {
    fn new() -> Self {
        let lab = Self(Namespace::new("node").unwrap(), Namespace::new("pod").unwrap());
        lab.1.ip("link set lo down").unwrap();
        lab
    }

    fn netns(&self) -> String {
        self.1.path().to_str().unwrap().to_owned()
    }

    fn call(&self, verb: &str, netns: &str, more: Value) -> Answer {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "lo"),
            ("CNI_NETNS", netns),
            ("CNI_PATH", "/"),
        ];
        self.0.run(|| call(Program::Loopback, &variables, &conf.to_string())).unwrap()
    }

    fn reaches_itself(&self) -> bool {
        self.1.run(reaches_itself).unwrap()
    }
}

fn reaches_itself() -> bool {
    let reaches = |ip: IpAddr| {
        let server = TcpListener::bind((ip, 0))?;
        TcpStream::connect_timeout(&server.local_addr()?, Duration::from_secs(5))
    };
    reaches(Ipv4Addr::LOCALHOST.into()).is_ok() && reaches(Ipv6Addr::LOCALHOST.into()).is_ok()
}

#[test]
fn a_containers_loopback_comes_up_is_checked_and_goes_down() {
    let lab = Lab::new();
    let netns = lab.netns();
    let down = (999, "loopback interface is down".to_owned());
    assert_eq!(lab.call("CHECK", &netns, json!({})).refusal(), down);
    assert!(!lab.reaches_itself());

    let added = lab.call("ADD", &netns, json!({})).success().json();
    assert_eq!(
        added,
        json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
            "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}]})
    );
    assert!(lab.reaches_itself());
    lab.call("CHECK", &netns, json!({})).success();
    lab.call("ADD", &netns, json!({})).success();

    lab.call("DEL", &netns, json!({})).success();
    assert_eq!(lab.call("CHECK", &netns, json!({})).refusal(), down);
    lab.call("DEL", &netns, json!({})).success();
}

#[test]
fn the_result_of_a_plugin_before_it_is_passed_on() {
    let lab = Lab::new();
    let before = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]});
    let added = lab.call("ADD", &lab.netns(), json!({"prevResult": before})).success().json();
    assert_eq!(added["ips"], before["ips"]);
    assert!(lab.reaches_itself());
}

#[test]
fn a_namespace_that_is_gone_is_an_error_for_add_alone_and_the_nodes_own_is_not_touched() {
    let lab = Lab::new();
    lab.0.ip("link set lo up").unwrap();
    lab.call("DEL", "/run/netns/none", json!({})).success();
    lab.call("DEL", "", json!({})).success();
    assert_eq!(lab.call("ADD", "/run/netns/none", json!({})).refusal().0, 999);
    let own = "/proc/thread-self/ns/net";
    assert_eq!(lab.call("DEL", own, json!({})).refusal().0, 8);
    assert!(lab.0.run(reaches_itself).unwrap());
}
