//! The network's configuration: from the one that stands in the file, if any, to the one that should.
//!
//! ```text
//!   {"cniVersion", "name", …,          user's; added where a runtime could not do without
//!    "plugins": [
//!      {"type",                        ours: by which name the plugin is called
//!       "bridge",                      ours
//!       "mtu",                         ours, unless --auto-mtu=false
//!       "ipam": {"type", "ranges",     ours; host-local's old keys beside them (`subnet`, …) are taken into ranges
//!                …},
//!       "isDefaultGateway", …},        user's; of a file that is made here, our defaults
//!      …                               user's
//!    ]}
//! ```
//!
//! Our plugin is the first of our type; else the `bridge` with `kube-bridge`, as kube-router's manifests write it.

use ipnet::IpNet;

use super::ranges;
use super::{Form, PlanConfig};
use crate::model::json::{Json, Object};
use crate::owned;

/// The type of the reference, whose keys ours understands.
const REFERENCE: &str = "bridge";
/// The reference's plugin for host ports.
const PORTMAP: &str = "portmap";
/// The capability by which runtimes hand over host ports.
const PORT_MAPPINGS: &str = "portMappings";
/// Of a list that is made here: understood by containerd ≥ 1.6 and CRI-O ≥ 1.24; those that know 1.1.0 take that
/// (`cniVersions`), and with it GC and STATUS.
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// Of a file with one plugin: later versions know lists only.
const SINGLE_VERSION: &str = "0.4.0";

/// What the configuration should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The networks of pods.
    pub pod_cidrs: Vec<IpNet>,
    /// More was said than [`Desired::pod_cidrs`], which could not be used.
    pub in_part: bool,
    /// The MTU of pods; `None` leaves what is there.
    pub mtu: Option<u32>,
}

/// A file that cannot be brought to what it should say. It is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Somebody wrote something else into it.
    #[error("it is not JSON ({0})")]
    NotJson(String),
    /// JSON, but no configuration.
    #[error("it is no JSON object")]
    NotAnObject,
    /// The ending of its name says otherwise.
    #[error("it has no list `plugins`, as a .conflist must")]
    NoList,
    /// The ending of its name says otherwise.
    #[error("it has a list `plugins`, which only a .conflist may")]
    List,
    /// A network of others.
    #[error("it has no plugin of type {0}, nor one of type bridge with the bridge kube-bridge")]
    NotOurs(String),
}

impl Unusable {
    /// A word for metrics and logs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::NotAnObject | Self::NoList | Self::List => "wrong_shape",
            Self::NotOurs(_) => "not_ours",
        }
    }
}

/// What our plugin is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ours {
    /// The network's name.
    pub network: String,
    /// The MTU of pods, if it is told.
    pub mtu: Option<u64>,
    /// Networks that addresses are given out of.
    pub subnets: Vec<String>,
    /// The bridge is a gateway, and an address that it has does not make way (`forceAddress`).
    pub keeps_gateway: bool,
}

/// What is left of a configuration without us.
#[derive(Clone, Debug, PartialEq)]
pub enum Left {
    /// Nothing was ours.
    NotOurs,
    /// All of it was ours.
    Nothing,
    /// This.
    Rest(Json),
}

/// Reads the text of a file; `None` if there is nothing in it that anybody could want back: it is empty, or ends in
/// the middle, as writers leave it that do not write atomically (kube-router) when they or their machine stop.
///
/// # Errors
/// [`Unusable::NotJson`]
pub fn parse(text: &[u8]) -> Result<Option<Json>, Unusable> {
    // Zeros are what file systems may leave after a power failure.
    if text.iter().all(|byte| *byte == 0 || byte.is_ascii_whitespace()) {
        return Ok(None);
    }
    match serde_json::from_slice(text) {
        Ok(json) => Ok(Some(json)),
        Err(error) if error.is_eof() => Ok(None),
        Err(error) => Err(Unusable::NotJson(error.to_string())),
    }
}

/// The configuration as it should be. Equal to what was found if nothing of ours differs.
///
/// # Errors
/// [`Unusable`]
pub fn merge(found: Option<&Json>, desired: &Desired, config: &PlanConfig) -> Result<Json, Unusable> {
    let Some(found) = found else { return Ok(fresh(desired, config)) };
    let mut root = found.as_object().ok_or(Unusable::NotAnObject)?.clone();
    let (version, name) = match config.form {
        Form::List => (VERSIONS[0], owned::NETWORK),
        Form::Single => (SINGLE_VERSION, owned::SINGLE_NETWORK),
    };
    for (key, value) in [("cniVersion", version), ("name", name)] {
        if root.text(key).is_none_or(str::is_empty) {
            root.set(key, Json::text(value));
        }
    }
    let not_ours = || Unusable::NotOurs(config.plugin_type.clone());
    match (config.form, root.get("plugins").and_then(Json::as_list)) {
        (Form::List, None) => return Err(Unusable::NoList),
        (Form::Single, Some(_)) => return Err(Unusable::List),
        (Form::Single, None) => {
            if !is_ours(&root, &config.plugin_type) {
                return Err(not_ours());
            }
            entry(&mut root, false, desired, config);
        }
        (Form::List, Some(plugins)) => {
            let mut plugins = plugins.to_vec();
            let at = position(&plugins, &config.plugin_type).ok_or_else(not_ours)?;
            let others = plugins.iter().enumerate().filter(|(index, _)| *index != at);
            let has_portmap = others.into_iter().any(|(_, plugin)| maps_ports(plugin));
            if let Some(Json::Object(ours)) = plugins.get_mut(at) {
                entry(ours, has_portmap, desired, config);
            }
            root.set("plugins", Json::List(plugins));
        }
    }
    Ok(root.into())
}

/// A configuration where there was none.
fn fresh(desired: &Desired, config: &PlanConfig) -> Json {
    let mut ours = Object::of([
        ("type", Json::text(&*config.plugin_type)),
        ("bridge", Json::text(owned::BRIDGE)),
        ("isDefaultGateway", Json::Bool(true)),
        ("hairpinMode", Json::Bool(true)),
        ("capabilities", Object::of([(PORT_MAPPINGS, Json::Bool(true))]).into()),
    ]);
    entry(&mut ours, false, desired, config);
    match config.form {
        Form::Single => {
            let mut root = Object::of([
                ("cniVersion", Json::text(SINGLE_VERSION)),
                ("name", Json::text(owned::SINGLE_NETWORK)),
            ]);
            ours.iter().for_each(|(key, value)| root.set(key, value.clone()));
            root.into()
        }
        Form::List => Object::of([
            ("cniVersion", Json::text(VERSIONS[0])),
            ("cniVersions", Json::List(VERSIONS.map(Json::text).into())),
            ("name", Json::text(owned::NETWORK)),
            ("plugins", Json::List(vec![ours.into()])),
        ])
        .into(),
    }
}

/// Sets what is ours in our plugin.
fn entry(ours: &mut Object, has_portmap: bool, desired: &Desired, config: &PlanConfig) {
    let taken_over = ours.text("type") == Some(REFERENCE) && config.plugin_type != REFERENCE;
    ours.set("type", Json::text(&*config.plugin_type));
    ours.set("bridge", Json::text(owned::BRIDGE));
    if let Some(mtu) = desired.mtu {
        ours.set("mtu", mtu.into());
    }
    // Host ports, which the reference could not do: once, so that whoever takes it out again is obeyed.
    if taken_over && !has_portmap {
        let mut capabilities = object(ours, "capabilities");
        if capabilities.get(PORT_MAPPINGS).is_none() {
            capabilities.set(PORT_MAPPINGS, Json::Bool(true));
            ours.set("capabilities", capabilities.into());
        }
    }
    let mut ipam = object(ours, "ipam");
    ipam.set("type", Json::text("host-local"));
    let mut found = Vec::new();
    let mut legacy = Object::default();
    for key in ranges::KEYS {
        if let Some(value) = ipam.remove(key) {
            legacy.set(key, value);
        }
    }
    if legacy.get("subnet").is_some() {
        found.push(Json::List(vec![legacy.into()]));
    }
    found.extend(ipam.get("ranges").and_then(Json::as_list).unwrap_or_default().iter().cloned());
    ipam.set("ranges", Json::List(ranges::plan(&found, &desired.pod_cidrs, desired.in_part)));
    ours.set("ipam", ipam.into());
}

fn object(parent: &Object, key: &str) -> Object {
    parent.get(key).and_then(Json::as_object).cloned().unwrap_or_default()
}

/// Which plugin of a list is ours.
fn position(plugins: &[Json], plugin_type: &str) -> Option<usize> {
    let objects = || plugins.iter().map(Json::as_object);
    let of_type = |kind: &str| {
        objects().position(|plugin| plugin.is_some_and(|plugin| plugin.text("type") == Some(kind)))
    };
    let reference = || objects().position(|plugin| plugin.is_some_and(is_kube_routers));
    let named = if plugin_type == REFERENCE { None } else { of_type(plugin_type) };
    named.or_else(|| of_type(owned::PLUGIN)).or_else(reference)
}

fn is_ours(plugin: &Object, plugin_type: &str) -> bool {
    let kind = plugin.text("type").unwrap_or_default();
    let named = kind == plugin_type && kind != REFERENCE;
    named || kind == owned::PLUGIN || is_kube_routers(plugin)
}

fn is_kube_routers(plugin: &Object) -> bool {
    plugin.text("type") == Some(REFERENCE) && plugin.text("bridge") == Some(owned::BRIDGE)
}

/// Whether a plugin of others looks after host ports.
fn maps_ports(plugin: &Json) -> bool {
    let Some(plugin) = plugin.as_object() else { return false };
    plugin.text("type") == Some(PORTMAP) || is_capable(plugin)
}

fn is_capable(plugin: &Object) -> bool {
    object(plugin, "capabilities").get(PORT_MAPPINGS) == Some(&Json::Bool(true))
}

/// What a configuration tells our plugin; `None` if there is none of ours in it.
pub fn ours(conf: &Json, plugin_type: &str) -> Option<Ours> {
    let root = conf.as_object()?;
    let plugin = match root.get("plugins").and_then(Json::as_list) {
        Some(plugins) => plugins.get(position(plugins, plugin_type)?)?.as_object()?,
        None if is_ours(root, plugin_type) => root,
        None => return None,
    };
    let mtu = match plugin.get("mtu") {
        Some(Json::Number(mtu)) => mtu.as_u64(),
        _ => None,
    };
    let ipam = object(plugin, "ipam");
    let sets = ipam.get("ranges").and_then(Json::as_list).unwrap_or_default();
    let ranges = sets.iter().filter_map(Json::as_list).flatten();
    let subnets = ranges.filter_map(|range| range.as_object()?.text("subnet")).map(str::to_owned).collect();
    let is_set = |key: &str| plugin.get(key) == Some(&Json::Bool(true));
    let keeps_gateway = (is_set("isGateway") || is_set("isDefaultGateway")) && !is_set("forceAddress");
    Some(Ours { network: root.text("name").unwrap_or_default().to_owned(), mtu, subnets, keeps_gateway })
}

/// Whether our plugin and another one both look after host ports.
pub fn maps_ports_twice(conf: &Json, plugin_type: &str) -> bool {
    let plugins = conf.as_object().and_then(|root| root.get("plugins")).and_then(Json::as_list);
    let plugins = plugins.unwrap_or_default();
    let Some(at) = position(plugins, plugin_type) else { return false };
    let ours = plugins.get(at).and_then(Json::as_object).is_some_and(is_capable);
    ours && plugins.iter().enumerate().any(|(index, plugin)| index != at && maps_ports(plugin))
}

/// The configuration without our plugin.
pub fn without_ours(found: &Json, plugin_type: &str) -> Left {
    let Some(root) = found.as_object() else { return Left::NotOurs };
    let Some(plugins) = root.get("plugins").and_then(Json::as_list) else {
        return if is_ours(root, plugin_type) { Left::Nothing } else { Left::NotOurs };
    };
    let Some(at) = position(plugins, plugin_type) else { return Left::NotOurs };
    let mut rest = plugins.to_vec();
    rest.remove(at);
    if rest.is_empty() {
        return Left::Nothing;
    }
    let mut root = root.clone();
    root.set("plugins", Json::List(rest));
    Left::Rest(root.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mtu::Wanted;

    fn config(plugin_type: &str, form: Form) -> PlanConfig {
        PlanConfig { plugin_type: plugin_type.to_owned(), form, mtu: Wanted::Untouched }
    }

    fn desired() -> Desired {
        Desired { pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()], in_part: false, mtu: None }
    }

    fn merged(text: &str, config: &PlanConfig) -> Result<String, Unusable> {
        let found = parse(text.as_bytes())?;
        merge(found.as_ref(), &desired(), config).map(|json| serde_json::to_string(&json).unwrap())
    }

    #[test]
    fn what_is_empty_or_cut_off_is_nothing_and_anything_else_is_left_alone() {
        let list = config("cni-bridge", Form::List);
        let fresh = merged("", &list).unwrap();
        for text in [" \n", "\0\0\0", r#"{"cniVersion": "0.3.0", "plugins": [{"ty"#, "{"] {
            assert_eq!(merged(text, &list).as_ref(), Ok(&fresh), "{text:?}");
        }
        let kinds = ["{]", "<conf>", "[]", "7", "{}", r#"{"plugins": {}}"#, r#"{"plugins": []}"#];
        let words: Vec<_> = kinds.iter().map(|text| merged(text, &list).unwrap_err().word()).collect();
        let expected =
            ["not_json", "not_json", "wrong_shape", "wrong_shape", "wrong_shape", "wrong_shape", "not_ours"];
        assert_eq!(words, expected);
    }

    #[test]
    fn networks_of_others_are_not_ours() {
        let list = config("cni-bridge", Form::List);
        for plugin in
            [r#"{"type":"bridge","bridge":"cni0"}"#, r#"{"type":"bridge"}"#, r#"{"type":"ptp"}"#, "7"]
        {
            let text = format!(r#"{{"name":"n","plugins":[{plugin}]}}"#);
            assert!(matches!(merged(&text, &list), Err(Unusable::NotOurs(_))), "{plugin}");
        }
        let single = config("cni-bridge", Form::Single);
        assert!(matches!(merged(r#"{"type":"ptp"}"#, &single), Err(Unusable::NotOurs(_))));
        assert_eq!(merged(r#"{"plugins":[]}"#, &single), Err(Unusable::List));
    }

    #[test]
    fn ours_comes_before_a_bridge_of_kube_router() {
        let list = config("cni-bridge", Form::List);
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge"},{"type":"cni-bridge"}]}"#;
        let text = merged(text, &list).unwrap();
        assert!(
            text.contains(r#"[{"type":"bridge","bridge":"kube-bridge"},{"type":"cni-bridge","bridge""#),
            "{text}"
        );
    }

    #[test]
    fn installed_as_bridge_the_type_stays_and_nothing_is_added() {
        let text = r#"{"cniVersion":"0.3.0","name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}]]}}]}"#;
        assert_eq!(merged(text, &config("bridge", Form::List)).unwrap(), text);
    }

    #[test]
    fn host_ports_are_taken_over_once_and_not_from_portmap() {
        let list = config("cni-bridge", Form::List);
        let alone = r#"{"name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge"}]}"#;
        let alone = merged(alone, &list).unwrap();
        assert!(alone.contains(r#""capabilities":{"portMappings":true}"#));
        let taken_out = alone.replace(r#""portMappings":true"#, "");
        assert_eq!(merged(&taken_out, &list).unwrap(), taken_out);
        let chained = r#"{"name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let chained = merged(chained, &list).unwrap();
        assert_eq!(chained.matches("portMappings").count(), 1, "{chained}");
        let twice = |text: &str| maps_ports_twice(&serde_json::from_str(text).unwrap(), "cni-bridge");
        assert!(!twice(&chained) && !twice(&alone));
        assert!(twice(&alone.replace(r#"}],"cniVersion""#, r#"},{"type":"portmap"}],"cniVersion""#)));
    }

    #[test]
    fn without_us_the_rest_stays() {
        let left = |text: &str| without_ours(&serde_json::from_str(text).unwrap(), "cni-bridge");
        let alone = fresh(&desired(), &config("cni-bridge", Form::List));
        assert_eq!(without_ours(&alone, "cni-bridge"), Left::Nothing);
        let single = fresh(&desired(), &config("cni-bridge", Form::Single));
        assert_eq!(without_ours(&single, "cni-bridge"), Left::Nothing);
        let chained = r#"{"name":"n","plugins":[{"type":"cni-bridge"},{"type":"tuning","sysctl":{}}]}"#;
        let rest = serde_json::from_str(r#"{"name":"n","plugins":[{"type":"tuning","sysctl":{}}]}"#).unwrap();
        assert_eq!(left(chained), Left::Rest(rest));
        assert_eq!(left(r#"{"plugins":[{"type":"ptp"}]}"#), Left::NotOurs);
        assert_eq!(left("7"), Left::NotOurs);
    }
}
