//! The sysctls that the data path needs; read again in each audit.

use common_informer::object::Family;
use kernel_netlink::sysctl::{Name, State, Sysctls};

use crate::owned;

/// What was found for each.
pub type Found = Vec<(&'static str, State)>;

/// Sets what is not as it should be, for the families that are served.
///
/// KERNEL: a machine that forwards IPv6 ignores router advertisements unless `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst); one whose default route comes by them would lose it.
pub fn ensure(sysctls: &Sysctls, families: &[Family]) -> Found {
    let wanted = |name: &str| match name {
        "net/ipv6/conf/all/forwarding" => families.contains(&Family::V6),
        "net/ipv4/ip_forward" => families.contains(&Family::V4),
        _ => true,
    };
    let mut found = Found::new();
    for (name, value) in owned::SYSCTLS.iter().chain(&owned::BRIDGE_SYSCTLS).filter(|(name, _)| wanted(name))
    {
        let Some(parsed) = Name::parse(name) else { continue };
        if *name == "net/ipv6/conf/all/forwarding" {
            keep_router_advertisements(sysctls, &parsed);
        }
        found.push((*name, sysctls.ensure(&parsed, value)));
    }
    found
}

fn keep_router_advertisements(sysctls: &Sysctls, forwarding: &Name) {
    if !matches!(sysctls.read(forwarding), Ok(Some(value)) if value.trim() == "0") {
        return;
    }
    let Some(folder) = Name::parse("net/ipv6/conf") else { return };
    let devices = sysctls.list(&folder).unwrap_or_default();
    for device in devices.iter().filter(|device| !["all", "default"].contains(&device.as_str())) {
        let Some(name) = Name::of(["net", "ipv6", "conf", device.as_str(), "accept_ra"]) else { continue };
        if matches!(sysctls.read(&name), Ok(Some(value)) if value.trim() == "1") {
            let state = sysctls.ensure(&name, "2");
            tracing::info!(sysctl = %name, ?state, "router advertisements are still heeded when the node forwards");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_node_that_begins_to_forward_keeps_its_default_route() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, value: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap().trim().to_owned();
        write("net/ipv6/conf/all/forwarding", "0\n");
        write("net/ipv6/conf/eth0.5/accept_ra", "1\n");
        write("net/ipv6/conf/eth1/accept_ra", "0\n");
        let sysctls = Sysctls::new(root.path());
        ensure(&sysctls, &[Family::V6]);
        assert_eq!(read("net/ipv6/conf/all/forwarding"), "1");
        assert_eq!(read("net/ipv6/conf/eth0.5/accept_ra"), "2");
        assert_eq!(read("net/ipv6/conf/eth1/accept_ra"), "0");
    }

    #[test]
    fn what_does_not_exist_is_told() {
        let root = tempfile::tempdir().unwrap();
        let found = ensure(&Sysctls::new(root.path()), &[Family::V4]);
        assert!(found.iter().all(|(_, state)| *state == State::Missing), "{found:?}");
        assert!(found.iter().all(|(name, _)| !name.starts_with("net/ipv6")));
    }
}
