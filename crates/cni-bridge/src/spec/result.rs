//! Results of ADD, in the form of each version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{CniError, Code};
use super::version::Version;

/// What ADD has made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Links, those of the host too.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub ips: Vec<IpConfig>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Its name servers.
    pub dns: Dns,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The container's network namespace; empty if it is on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into the interfaces.
    pub interface: Option<usize>,
    /// The address, with the length of its network.
    pub address: IpNet,
    /// The way out.
    pub gateway: Option<IpAddr>,
}

/// A route. Properties beside destination and gateway are those of 1.1.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    #[serde(with = "prefix")]
    pub dst: IpNet,
    /// By whom; absent: the gateway of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Largest packet, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to ask peers for, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The least wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Where it is, if not in the main table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// How far it reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// A prefix as text.
mod prefix {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(prefix: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(prefix)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom(format_args!("invalid CIDR address: {text}")))
    }
}

impl Route {
    /// A route without properties.
    pub const fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Where short names are looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// For the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Outcome {
    /// The JSON of a version.
    ///
    /// # Errors
    /// Versions before 0.3.0 have room for one address of each family.
    pub fn to_json(&self, version: Version) -> Result<String, CniError> {
        let value = if version < Version::V0_3_0 { self.old_form(version)? } else { self.form(version) };
        // Maps with string keys can always be written.
        Ok(serde_json::to_string_pretty(&value).unwrap_or_default())
    }

    fn form(&self, version: Version) -> Value {
        let mut result = Map::new();
        result.insert("cniVersion".into(), json!(version.as_str()));
        if !self.interfaces.is_empty() {
            result.insert("interfaces".into(), json!(self.interfaces));
        }
        let ips: Vec<Value> = self.ips.iter().map(|ip| ip.form(version)).collect();
        if !ips.is_empty() {
            result.insert("ips".into(), json!(ips));
        }
        if !self.routes.is_empty() {
            result.insert("routes".into(), json!(self.routes_of(version)));
        }
        // Until 1.0.0 it was always there.
        if version < Version::V1_0_0 || !self.dns.is_empty() {
            result.insert("dns".into(), json!(self.dns));
        }
        Value::Object(result)
    }

    fn routes_of(&self, version: Version) -> Vec<Route> {
        let known = |route: &Route| match version {
            Version::V1_1_0 => route.clone(),
            _ => Route::new(route.dst, route.gw),
        };
        self.routes.iter().map(known).collect()
    }

    fn old_form(&self, version: Version) -> Result<Value, CniError> {
        let mut result = Map::new();
        result.insert("cniVersion".into(), json!(version.as_str()));
        for (name, is_v4) in [("ip4", true), ("ip6", false)] {
            let mut ips = self.ips.iter().filter(|ip| ip.address.addr().is_ipv4() == is_v4);
            let Some(ip) = ips.next() else { continue };
            if ips.next().is_some() {
                return Err(CniError::other(format!(
                    "CNI version {version} does not support more than 1 address per family"
                )));
            }
            let mut form = Map::new();
            form.insert("ip".into(), json!(ip.address.to_string()));
            if let Some(gateway) = ip.gateway {
                form.insert("gateway".into(), json!(gateway));
            }
            let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == is_v4);
            let routes: Vec<_> = routes.map(|route| Route::new(route.dst, route.gw)).collect();
            if !routes.is_empty() {
                form.insert("routes".into(), json!(routes));
            }
            result.insert(name.into(), Value::Object(form));
        }
        result.insert("dns".into(), json!(self.dns));
        Ok(Value::Object(result))
    }

    /// Reads a `prevResult`.
    ///
    /// # Errors
    /// [`Code::Decode`] with the field.
    pub fn from_json(value: &Value) -> Result<Self, CniError> {
        let decode = |what: &str, error: String| {
            CniError::new(Code::Decode, format!("could not parse prevResult: {what}: {error}"))
        };
        let list = |name: &str| value.get(name).filter(|list| !list.is_null()).cloned().unwrap_or(json!([]));
        let mut outcome = Self {
            interfaces: serde_json::from_value(list("interfaces"))
                .map_err(|error| decode("interfaces", error.to_string()))?,
            routes: serde_json::from_value(list("routes"))
                .map_err(|error| decode("routes", error.to_string()))?,
            ..Self::default()
        };
        if let Some(dns) = value.get("dns").filter(|dns| !dns.is_null()) {
            outcome.dns =
                serde_json::from_value(dns.clone()).map_err(|error| decode("dns", error.to_string()))?;
        }
        for ip in list("ips").as_array().into_iter().flatten() {
            outcome.ips.push(IpConfig::parse(ip, "address").map_err(|error| decode("ips", error))?);
        }
        for name in ["ip4", "ip6"] {
            if let Some(ip) = value.get(name).filter(|ip| !ip.is_null()) {
                outcome.ips.push(IpConfig::parse(ip, "ip").map_err(|error| decode(name, error))?);
            }
        }
        Ok(outcome)
    }
}

impl IpConfig {
    fn form(&self, version: Version) -> Value {
        let mut form = Map::new();
        if version < Version::V1_0_0 {
            form.insert("version".into(), json!(if self.address.addr().is_ipv4() { "4" } else { "6" }));
        }
        if let Some(interface) = self.interface {
            form.insert("interface".into(), json!(interface));
        }
        form.insert("address".into(), json!(self.address.to_string()));
        if let Some(gateway) = self.gateway {
            form.insert("gateway".into(), json!(gateway));
        }
        Value::Object(form)
    }

    fn parse(value: &Value, address: &str) -> Result<Self, String> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let ip = text(address).ok_or_else(|| format!("{address} is missing"))?;
        let gateway =
            text("gateway").map(|ip| ip.parse().map_err(|_| format!("gateway {ip:?} is no address")));
        Ok(Self {
            interface: value.get("interface").and_then(Value::as_u64).and_then(|index| index.try_into().ok()),
            address: ip.parse().map_err(|_| format!("{ip:?} is no address with a prefix length"))?,
            gateway: gateway.transpose()?,
        })
    }
}
