//! What the plugin itself makes of a configuration.

#![allow(dead_code, reason = "each test uses a part of it")]

use cni_bridge::conf::{self, NetConf};
use cni_bridge::spec::{Call, Verb, Version};
use serde_json::{Value, json};

/// Has the plugin's own parser read our part of a configuration, in each version that the file allows.
pub(crate) fn read_by_the_plugin(file: &Value, plugin_type: &str) -> Result<(), String> {
    let mut versions = vec![file["cniVersion"].clone()];
    versions.extend(file.get("cniVersions").and_then(Value::as_array).into_iter().flatten().cloned());
    for version in versions {
        let mut network = match file.get("plugins").and_then(Value::as_array) {
            Some(plugins) => {
                // A runtime calls the plugin by its type.
                let ours = |plugin: &&Value| plugin["type"] == plugin_type;
                plugins.iter().find(ours).ok_or("no plugin of our type")?.clone()
            }
            None => file.clone(),
        };
        network["name"] = file["name"].clone();
        network["cniVersion"] = version;
        let call = Call {
            verb: Verb::Add,
            container_id: "c".into(),
            netns: "/run/netns/c".into(),
            ifname: "eth0".into(),
            args: Vec::new(),
        };
        let words = |error: cni_bridge::spec::CniError| error.to_string();
        let network = conf::parse_json(&network.to_string()).map_err(words)?;
        let parsed = NetConf::parse(&network, &call).map_err(words)?;
        let ipam = conf::ipam(&network, Version::NEWEST, &call).map_err(words)?;
        parsed.check_together(ipam.is_some()).map_err(words)?;
        let sets = ipam.ok_or("no addresses are given out")?.sets;
        if sets.is_empty() || parsed.bridge.as_str() != "kube-bridge" {
            return Err(json!({"sets": sets.len(), "bridge": parsed.bridge.as_str()}).to_string());
        }
    }
    Ok(())
}
