//! The `ipam` part of a network configuration, as `host-local` has it.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::range::{RangeConf, RangeSet};
use crate::spec::{CniError, Route};

/// Where reservations are kept unless `dataDir` says otherwise.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// `ipam`, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    range: RangeConf,
    ranges: Option<Vec<Vec<RangeConf>>>,
    routes: Option<Vec<Route>>,
    #[serde(rename = "dataDir")]
    data_dir: Option<PathBuf>,
    #[serde(rename = "resolvConf")]
    resolv_conf: Option<PathBuf>,
}

/// `ipam`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpamConf {
    /// A container gets one address of each.
    pub sets: Vec<RangeSet>,
    /// Routes of the container.
    pub routes: Vec<Route>,
    /// Where reservations are kept.
    pub data_dir: PathBuf,
    /// File with the name servers.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses that are asked for.
    pub asked: Vec<IpAddr>,
}

impl IpamConf {
    /// Reads `ipam` of a configuration; `None` if there is none: the container gets no address (layer 2 only).
    /// `asked` are the addresses of CNI_ARGS; those of `args.cni.ips` and `runtimeConfig.ips` are read here.
    ///
    /// # Errors
    /// What is not valid, in the words of the reference.
    pub fn parse(conf: &Value, asked: &[String]) -> Result<Option<Self>, CniError> {
        let Some(ipam) = conf.get("ipam").filter(|ipam| !ipam.is_null()) else { return Ok(None) };
        let wire = Wire::deserialize(ipam).map_err(|error| CniError::other(format!("ipam: {error}")))?;
        if wire.kind.is_empty() {
            return Ok(None);
        }
        if wire.kind != "host-local" {
            return Err(CniError::other(format!(
                "ipam.type {:?} is not supported: addresses are given out here, as host-local does",
                wire.kind
            )));
        }
        let sets = sets(&wire).map_err(CniError::other)?;
        let listed = |list: Option<&Value>| -> Vec<String> {
            let list = list.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut texts = asked.to_vec();
        texts.extend(listed(conf.pointer("/args/cni/ips")));
        texts.extend(listed(conf.pointer("/runtimeConfig/ips")));
        let mut asked = Vec::new();
        for text in texts {
            // With or without the length of the network.
            let ip = text.split('/').next().unwrap_or_default().parse();
            asked.push(ip.map_err(|_| CniError::other(format!("invalid IP address: {text}")))?);
        }
        Ok(Some(Self {
            sets,
            routes: wire.routes.unwrap_or_default(),
            data_dir: wire.data_dir.unwrap_or_else(|| DATA_DIR.into()),
            resolv_conf: wire.resolv_conf.filter(|path| !path.as_os_str().is_empty()),
            asked,
        }))
    }
}

fn sets(wire: &Wire) -> Result<Vec<RangeSet>, String> {
    let mut confs = Vec::new();
    if wire.range.subnet.as_ref().is_some_and(|subnet| !subnet.is_empty()) {
        confs.push(vec![wire.range.clone()]);
    }
    confs.extend(wire.ranges.clone().unwrap_or_default());
    if confs.is_empty() {
        return Err("no IP ranges specified".to_owned());
    }
    let mut sets: Vec<RangeSet> = Vec::new();
    for (index, conf) in confs.iter().enumerate() {
        let set = RangeSet::new(conf).map_err(|error| format!("invalid range set {index}: {error}"))?;
        sets.push(set);
    }
    for (index, set) in sets.iter().enumerate() {
        if let Some(other) = sets[index + 1..].iter().position(|other| other.overlaps(set)) {
            return Err(format!("range set {index} overlaps with {}", index + 1 + other));
        }
    }
    Ok(sets)
}
