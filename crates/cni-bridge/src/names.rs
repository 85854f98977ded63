//! Names of a configuration's fields, in any case.
//!
//! The reference is written in Go, whose `encoding/json` takes a field's name in any case, and runtimes count on it:
//! containerd (go-cni, up to 1.1 at least) writes `{"HostPort": 8080, "ContainerPort": 80, …}` into
//! `runtimeConfig.portMappings`, of which the conventions say `hostPort`.

use serde_json::{Map, Value};

/// The fields of an object, each with those of its value, through lists.
struct Fields(&'static [(&'static str, Self)]);

const NONE: Fields = Fields(&[]);
const RANGE: Fields =
    Fields(&[("subnet", NONE), ("rangeStart", NONE), ("rangeEnd", NONE), ("gateway", NONE)]);
const ADDRESSES: Fields = Fields(&[
    ("type", NONE),
    ("subnet", NONE),
    ("rangeStart", NONE),
    ("rangeEnd", NONE),
    ("gateway", NONE),
    ("ranges", RANGE),
    ("routes", ROUTE),
    ("dataDir", NONE),
    ("resolvConf", NONE),
]);
const ROUTE: Fields = Fields(&[
    ("dst", NONE),
    ("gw", NONE),
    ("mtu", NONE),
    ("advmss", NONE),
    ("priority", NONE),
    ("table", NONE),
    ("scope", NONE),
]);
const PORT: Fields =
    Fields(&[("hostPort", NONE), ("containerPort", NONE), ("protocol", NONE), ("hostIP", NONE)]);
const ARGS: Fields = Fields(&[("cni", Fields(&[("mac", NONE), ("ips", NONE)]))]);
const RUNTIME: Fields = Fields(&[("mac", NONE), ("ips", NONE), ("portMappings", PORT)]);
const TRUNK: Fields = Fields(&[("id", NONE), ("minID", NONE), ("maxID", NONE)]);
const DNS: Fields = Fields(&[("nameservers", NONE), ("domain", NONE), ("search", NONE), ("options", NONE)]);
const CONF: Fields = Fields(&[
    ("cniVersion", NONE),
    ("name", NONE),
    ("type", NONE),
    ("bridge", NONE),
    ("isGateway", NONE),
    ("isDefaultGateway", NONE),
    ("forceAddress", NONE),
    ("ipMasq", NONE),
    ("ipMasqBackend", NONE),
    ("mtu", NONE),
    ("hairpinMode", NONE),
    ("promiscMode", NONE),
    ("vlan", NONE),
    ("vlanTrunk", TRUNK),
    ("preserveDefaultVlan", NONE),
    ("macspoofchk", NONE),
    ("enabledad", NONE),
    ("disableContainerInterface", NONE),
    ("portIsolation", NONE),
    // Its own fields are names that the configuration makes up.
    ("capabilities", NONE),
    ("dns", DNS),
    ("ipam", ADDRESSES),
    ("args", ARGS),
    ("runtimeConfig", RUNTIME),
    ("prevResult", NONE),
]);

/// Gives the fields that are known the names that they have here. Where a name is there in two cases, the right one
/// counts.
pub fn fold(conf: &mut Value) {
    CONF.fold(conf);
}

impl Fields {
    fn fold(&self, value: &mut Value) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(|value| self.fold(value)),
            Value::Object(object) => {
                for (name, fields) in self.0 {
                    rename(object, name);
                    if let Some(value) = object.get_mut(*name) {
                        fields.fold(value);
                    }
                }
            }
            _ => {}
        }
    }
}

fn rename(object: &mut Map<String, Value>, name: &str) {
    if object.contains_key(name) {
        return;
    }
    let other = object.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
    if let Some(value) = other.and_then(|other| object.remove(&other)) {
        object.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conf::{self, NetConf};
    use crate::spec::{Call, Verb, Version};

    /// A configuration with every field that is read.
    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br7", "isGateway": true,
            "isDefaultGateway": true, "forceAddress": true, "ipMasq": true, "ipMasqBackend": "nftables",
            "mtu": 1400, "hairpinMode": true, "promiscMode": true, "vlan": 7,
            "vlanTrunk": [{"id": 3}, {"minID": 5, "maxID": 9}], "preserveDefaultVlan": false,
            "macspoofchk": true, "enabledad": true, "disableContainerInterface": true, "portIsolation": true,
            "capabilities": {"portMappings": true},
            "dns": {"nameservers": ["10.0.0.53"], "domain": "d", "search": ["s"], "options": ["o"]},
            "ipam": {"type": "host-local", "dataDir": "/d", "resolvConf": "/r", "subnet": "10.3.0.0/24",
                "rangeStart": "10.3.0.9", "rangeEnd": "10.3.0.99", "gateway": "10.3.0.2",
                "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.99",
                    "gateway": "10.1.0.2"}]],
                "routes": [{"dst": "10.2.0.0/16", "gw": "10.1.0.3", "mtu": 1, "advmss": 2, "priority": 3,
                    "table": 4, "scope": 5}]},
            "args": {"cni": {"mac": "02:00:00:00:00:01", "ips": ["10.1.0.10"]}},
            "runtimeConfig": {"ips": ["10.3.0.10"], "portMappings":
                [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"}]},
            "prevResult": {"cniVersion": "1.1.0"},
        })
    }

    fn call() -> Call {
        Call {
            verb: Verb::Add,
            container_id: "c".into(),
            netns: "/n".into(),
            ifname: "eth0".into(),
            args: Vec::new(),
        }
    }

    fn with_names(value: &Value, of: &impl Fn(&str) -> String) -> Value {
        match value {
            Value::Object(object) => {
                object.iter().map(|(name, value)| (of(name), with_names(value, of))).collect()
            }
            Value::Array(list) => list.iter().map(|value| with_names(value, of)).collect(),
            value => value.clone(),
        }
    }

    #[test]
    fn every_field_is_read_in_any_case() {
        let call = call();
        let read = |value: &Value| {
            let value = conf::parse_json(&value.to_string()).unwrap();
            let ipam = conf::ipam(&value, Version::V1_1_0, &call).unwrap();
            let udp = conf::has_udp_ports(&value);
            (NetConf::parse(&value, &call).unwrap(), ipam, udp, conf::data_dir(&value))
        };
        let expected = read(&full());
        assert!(expected.2 && expected.0.port_mappings.len() == 1);
        for other in [str::to_uppercase, str::to_lowercase] {
            let conf = with_names(&full(), &|name| other(name));
            // What is data, or passed on as it is.
            let mut found = read(&conf);
            found.0.previous = expected.0.previous.clone();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn ports_are_read_as_containerd_writes_them() {
        // pkg/cri of containerd 1.6, for a hostPort.
        let text = r#"{"cniVersion": "1.0.0", "name": "n", "type": "cni-bridge", "runtimeConfig": {"portMappings":
            [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]}}"#;
        let call = call();
        let conf = NetConf::parse(&conf::parse_json(text).unwrap(), &call).unwrap();
        let ports: Vec<_> =
            conf.port_mappings.iter().map(|port| (port.host_port, port.container_port)).collect();
        assert_eq!(ports, [(8080, 80)]);
    }

    #[test]
    fn the_right_name_counts_and_what_is_not_known_stays() {
        let mut conf = json!({"MTU": 1, "mtu": 2, "Other": {"MTU": 3}, "capabilities": {"IPS": true},
            "runtimeConfig": {"portMappings": [{"HostPort": 1}, 5]}});
        fold(&mut conf);
        assert_eq!(
            conf,
            json!({"MTU": 1, "mtu": 2, "Other": {"MTU": 3}, "capabilities": {"IPS": true},
                "runtimeConfig": {"portMappings": [{"hostPort": 1}, 5]}})
        );
    }
}
