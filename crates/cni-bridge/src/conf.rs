//! The configuration of a network, with the keys of the reference's `bridge`. Unknown keys are passed over.

use std::net::IpAddr;
use std::path::PathBuf;

use kernel_netlink::route::{LinkName, MacAddress};
use serde::Deserialize;
use serde_json::Value;

use crate::ipam::conf::DATA_DIR;
use crate::ipam::{IpamConf, Owner};
use crate::spec::{Call, CniError, Code, Dns, Outcome, Version};
use crate::{names, vlan};

/// The bridge if none is named: the reference's.
const BRIDGE: &str = "cni0";

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    name: String,
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<vlan::Trunk>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    dns: Option<Dns>,
    args: Option<Args>,
    runtime_config: Option<RuntimeConfig>,
    prev_result: Option<Value>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            name: String::new(),
            bridge: BRIDGE.to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: None,
            preserve_default_vlan: true,
            macspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            port_isolation: false,
            dns: None,
            args: None,
            runtime_config: None,
            prev_result: None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Option<CniArgs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    mac: String,
    port_mappings: Option<Vec<PortMapping>>,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

/// A port of the node that leads to one of the container (`runtimeConfig.portMappings`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Of the node.
    pub host_port: i64,
    /// Of the container.
    pub container_port: i64,
    /// `tcp` if absent.
    #[serde(default)]
    pub protocol: String,
    /// The node's address; all of them if empty.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

/// The configuration, checked, addresses aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// Of the specification.
    pub version: Version,
    /// The network.
    pub name: String,
    /// The bridge.
    pub bridge: LinkName,
    /// Whether the bridge has the gateway's addresses.
    pub is_gateway: bool,
    /// Whether containers get a default route to it; then it is a gateway too.
    pub is_default_gateway: bool,
    /// Whether other addresses of the bridge make way.
    pub force_address: bool,
    /// Whether packets to other networks leave with the node's address.
    pub masquerade: bool,
    /// Bytes of the largest packet; the kernel's choice if absent.
    pub mtu: Option<u32>,
    /// Whether a container may be reached by itself through the bridge.
    pub hairpin: bool,
    /// Whether the bridge takes all packets.
    pub promiscuous: bool,
    /// The VLAN of containers.
    pub vlan: Option<u16>,
    /// VLANs with tags.
    pub trunk: Vec<vlan::Range>,
    /// Whether ports stay in the bridge's own VLAN too.
    pub preserve_default_vlan: bool,
    /// Whether containers may send from their own address on the Ethernet only.
    pub mac_spoof_check: bool,
    /// Whether IPv6 addresses are looked for elsewhere before they are used.
    pub duplicate_address_detection: bool,
    /// Whether the container's interface is left down.
    pub disable_container_interface: bool,
    /// Whether containers are kept from each other.
    pub port_isolation: bool,
    /// The container's address on the Ethernet; a random one if absent.
    pub mac: Option<MacAddress>,
    /// Ports of the node.
    pub port_mappings: Vec<PortMapping>,
    /// Name servers; those of `ipam` if it says nothing.
    pub dns: Dns,
    /// What ADD has given.
    pub previous: Option<Value>,
}

/// Reads a configuration as a runtime hands it over, and whatever the verbs need of it before they read all of it.
///
/// # Errors
/// [`Code::Decode`], [`Code::Config`], in the words of the reference.
pub fn parse_json(input: &str) -> Result<Value, CniError> {
    let mut value: Value = serde_json::from_str(input).map_err(|error| {
        let words =
            if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
        CniError::new(Code::Decode, format!("error unmarshall network config: {words}"))
    })?;
    if !value.is_object() {
        return Err(CniError::new(Code::Decode, "error unmarshall network config: it is no object"));
    }
    names::fold(&mut value);
    let name = match value.get("name") {
        None | Some(Value::Null) => "",
        Some(Value::String(name)) => name,
        Some(_) => {
            return Err(CniError::new(Code::Decode, "error unmarshall network config: name is no text"));
        }
    };
    crate::spec::call::check_network_name(name)?;
    Ok(value)
}

/// `cniVersion`
///
/// # Errors
/// [`Code::Version`] for versions that do not exist.
pub fn version(conf: &Value) -> Result<Version, CniError> {
    let text = match conf.get("cniVersion") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(_) => {
            return Err(CniError::new(Code::Decode, "decoding version from network config: it is no text"));
        }
    };
    Version::parse(text).ok_or_else(|| {
        let known: Vec<_> = Version::ALL.iter().map(|version| format!("\"{version}\"")).collect();
        CniError::new(Code::Version, "incompatible CNI versions")
            .with_details(format!("config is \"{text}\", plugin supports [{}]", known.join(" ")))
    })
}

/// `name`; [`parse_json`] has looked at it.
pub fn name(conf: &Value) -> &str {
    conf.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The attachments that there are, for GC.
///
/// # Errors
/// When they are not told: that is no reason to think that there are none.
pub fn valid_attachments(conf: &Value) -> Result<Vec<Owner>, CniError> {
    // The other is how early runtimes of 1.1.0 wrote it; some write both.
    let listed = conf.get("cni.dev/valid-attachments").or_else(|| conf.get("cni.dev/attachments"));
    let listed =
        listed.ok_or_else(|| CniError::new(Code::Config, "GC: cni.dev/valid-attachments is missing"))?;
    // Runtimes write an empty list as null.
    let valid: Option<Vec<ValidAttachment>> = Deserialize::deserialize(listed)
        .map_err(|error| CniError::new(Code::Decode, format!("GC: cni.dev/valid-attachments: {error}")))?;
    let valid = valid.unwrap_or_default();
    Ok(valid.iter().map(|valid| Owner::new(&valid.container, &valid.interface)).collect())
}

/// The addresses that ADD has given, as far as the runtime tells.
pub fn previous_addresses(conf: &Value) -> Vec<IpAddr> {
    let outcome = conf.get("prevResult").and_then(|previous| Outcome::from_json(previous).ok());
    outcome.unwrap_or_default().ips.iter().map(|ip| ip.address.addr()).collect()
}

/// Whether attachments of the network may have ports of the node.
pub fn has_host_ports(conf: &Value) -> bool {
    let capable = conf.pointer("/capabilities/portMappings").and_then(Value::as_bool) == Some(true);
    capable || !host_ports(conf).is_empty()
}

/// Whether the runtime tells of ports of the node for UDP.
pub fn has_udp_ports(conf: &Value) -> bool {
    let is_udp = |port: &Value| port["protocol"].as_str().is_some_and(|p| p.eq_ignore_ascii_case("udp"));
    host_ports(conf).iter().any(is_udp)
}

fn host_ports(conf: &Value) -> &[Value] {
    conf.pointer("/runtimeConfig/portMappings").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Where the reservations of a network are, if `ipam` says that addresses are given out here. Reads less than
/// [`IpamConf::parse`]: what was reserved can be released when the ranges are no longer valid.
pub fn data_dir(conf: &Value) -> Option<PathBuf> {
    let text = |name: &str| conf.pointer(name).and_then(Value::as_str);
    if text("/ipam/type") != Some("host-local") {
        return None;
    }
    Some(text("/ipam/dataDir").unwrap_or(DATA_DIR).into())
}

/// `ipam`, with the addresses that `CNI_ARGS` asks for.
///
/// # Errors
/// As [`IpamConf::parse`]; also that a version has no room for so many addresses.
pub fn ipam(conf: &Value, version: Version, call: &Call) -> Result<Option<IpamConf>, CniError> {
    let asked: Vec<String> =
        call.arg("IP").filter(|ip| !ip.is_empty()).map(str::to_owned).into_iter().collect();
    let Some(ipam) = IpamConf::parse(conf, &asked)? else { return Ok(None) };
    let v4 = ipam.sets.iter().filter(|set| set.ranges().iter().any(|range| range.start.is_ipv4())).count();
    if version < Version::V0_3_0 && (v4 > 1 || ipam.sets.len() - v4 > 1) {
        return Err(CniError::other(format!(
            "CNI version {version} does not support more than 1 address per family"
        )));
    }
    Ok(Some(ipam))
}

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is not valid, in the words of the reference.
    pub fn parse(value: &Value, call: &Call) -> Result<Self, CniError> {
        let version = version(value)?;
        let wire = Wire::deserialize(value)
            .map_err(|error| CniError::other(format!("failed to load netconf: {error}")))?;
        let vlan = vlan::access(wire.vlan)?;
        let trunk = vlan::trunk(&wire.vlan_trunk.unwrap_or_default())?;
        if let Some(backend) = wire.ip_masq_backend.filter(|backend| !backend.is_empty())
            && backend != "iptables"
            && backend != "nftables"
        {
            return Err(CniError::other(format!("unknown ipmasq backend {backend:?}")));
        }
        let bridge = LinkName::new(&wire.bridge).ok_or_else(|| {
            CniError::new(Code::Config, format!("bridge: {:?} cannot be the name of a device", wire.bridge))
        })?;
        let mtu = match u32::try_from(wire.mtu) {
            Ok(0) => None,
            Ok(mtu) => Some(mtu),
            Err(_) => return Err(CniError::new(Code::Config, format!("mtu: {} is not valid", wire.mtu))),
        };
        let runtime = wire.runtime_config.unwrap_or_default();
        let asked = wire.args.and_then(|args| args.cni).unwrap_or_default().mac;
        // The later the stronger, as in the reference.
        let macs = [call.arg("MAC").unwrap_or_default(), &asked, &runtime.mac];
        Ok(Self {
            version,
            name: wire.name,
            bridge,
            is_gateway: wire.is_gateway || wire.is_default_gateway,
            is_default_gateway: wire.is_default_gateway,
            force_address: wire.force_address,
            masquerade: wire.ip_masq,
            mtu,
            hairpin: wire.hairpin_mode,
            promiscuous: wire.promisc_mode,
            vlan,
            trunk,
            preserve_default_vlan: wire.preserve_default_vlan,
            mac_spoof_check: wire.macspoofchk,
            duplicate_address_detection: wire.enabledad,
            disable_container_interface: wire.disable_container_interface,
            port_isolation: wire.port_isolation,
            mac: macs.iter().rev().find(|mac| !mac.is_empty()).map(|mac| parse_mac(mac)).transpose()?,
            port_mappings: runtime.port_mappings.unwrap_or_default(),
            dns: wire.dns.unwrap_or_default(),
            previous: wire.prev_result.filter(|previous| !previous.is_null()),
        })
    }

    /// What cannot be had together.
    ///
    /// # Errors
    /// In the words of the reference.
    pub fn check_together(&self, has_ipam: bool) -> Result<(), CniError> {
        if has_ipam && self.disable_container_interface {
            return Err(CniError::other("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        if self.hairpin && self.promiscuous {
            return Err(CniError::other("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        Ok(())
    }
}

fn parse_mac(text: &str) -> Result<MacAddress, CniError> {
    let invalid =
        || CniError::other(format!("failed to make veth pair: address {text}: invalid MAC address"));
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
    }
    if parts.next().is_some() { Err(invalid()) } else { Ok(MacAddress(bytes)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Verb;

    fn call(args: &[(&str, &str)]) -> Call {
        Call {
            verb: Verb::Add,
            container_id: "c".into(),
            netns: String::new(),
            ifname: "eth0".into(),
            args: args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn the_mac_of_the_runtime_is_stronger_than_that_of_args_and_that_than_the_environments() {
        let mut conf = json!({"name": "n", "type": "bridge"});
        let mac =
            |conf: &Value| NetConf::parse(conf, &call(&[("MAC", "02:00:00:00:00:01")])).unwrap().mac.unwrap();
        assert_eq!(mac(&conf).0[5], 1);
        conf["args"] = json!({"cni": {"mac": "02:00:00:00:00:02"}});
        assert_eq!(mac(&conf).0[5], 2);
        conf["runtimeConfig"] = json!({"mac": "02-00-00-00-00-03"});
        assert_eq!(mac(&conf).0[5], 3);
    }

    #[test]
    fn unknown_keys_are_passed_over_and_absent_ones_are_the_references() {
        let conf = json!({"name": "n", "type": "bridge", "somethingElse": {"a": [1]}, "capabilities": {"ips": true}});
        let conf = NetConf::parse(&conf, &call(&[])).unwrap();
        assert_eq!(conf.bridge.as_str(), "cni0");
        assert!(conf.preserve_default_vlan && !conf.is_gateway && conf.mtu.is_none());
        let gateway = NetConf::parse(&json!({"name": "n", "isDefaultGateway": true}), &call(&[])).unwrap();
        assert!(gateway.is_gateway);
    }

    #[test]
    fn names_that_no_device_can_have_are_refused() {
        for bridge in ["", "a/b", "sixteen-letters-", ".."] {
            assert!(NetConf::parse(&json!({"name": "n", "bridge": bridge}), &call(&[])).is_err(), "{bridge}");
        }
    }

    #[test]
    fn the_asked_for_address_of_the_environment_is_kept() {
        let conf = json!({"name": "n", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}});
        let ipam = ipam(&conf, Version::V1_1_0, &call(&[("IP", "10.0.0.9")])).unwrap().unwrap();
        assert_eq!(ipam.asked, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    }
}
