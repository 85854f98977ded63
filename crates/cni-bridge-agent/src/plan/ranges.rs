//! `ipam.ranges`: one set for each family, of which a pod gets one address, with a range for each pod CIDR.
//!
//! Ranges of CIDRs that the node no longer has go (kube-router leaves them, and pods keep getting their addresses). A
//! range that somebody narrowed (`rangeStart`, `rangeEnd`, `gateway`) stays as long as it lies inside a CIDR, and so
//! does the way in which ranges are put together to sets.

use std::net::{IpAddr, Ipv4Addr};

use common_informer::object::Family;
use ipnet::IpNet;

use crate::model::json::{Json, Object};
use crate::model::node::family;

/// Keys of a range, which host-local takes in `ipam` itself too.
pub const KEYS: [&str; 4] = ["subnet", "rangeStart", "rangeEnd", "gateway"];

/// The sets that should be.
///
/// `in_part`: something that the Node says could not be read. Then a family of which nothing could be read keeps its
/// ranges: a typing error must not take the addresses from the next pods.
pub fn plan(found: &[Json], cidrs: &[IpNet], in_part: bool) -> Vec<Json> {
    let mut kept: Vec<IpNet> = Vec::new();
    let mut sets: Vec<(Family, Vec<Json>)> = Vec::new();
    for ranges in found.iter().filter_map(Json::as_list) {
        let Some(of) = ranges.iter().find_map(subnet).map(|subnet| family(&subnet)) else { continue };
        let unknown = in_part && cidrs.iter().all(|cidr| family(cidr) != of);
        let mut set = Vec::new();
        for range in ranges {
            let Some(network) = subnet(range).filter(|network| family(network) == of) else { continue };
            let wanted = unknown || cidrs.iter().any(|cidr| belongs(range, &network, cidr));
            let overlaps = |other: &IpNet| other.contains(&network) || network.contains(other);
            if wanted && is_sound(range, &network) && !kept.iter().any(overlaps) {
                kept.push(network);
                set.push(range.clone());
            }
        }
        // A set that has lost all of its ranges is where the family's next CIDR goes to: so the order of families
        // stays, which is that of a pod's addresses.
        sets.push((of, set));
    }
    for cidr in cidrs.iter().filter(|cidr| !kept.iter().any(|network| cidr.contains(network))) {
        let range = Json::from(Object::of([("subnet", Json::text(cidr.to_string()))]));
        let of = family(cidr);
        match sets.iter_mut().find(|(family, _)| *family == of) {
            Some((_, set)) => set.push(range),
            // The family of the first CIDR is that of a pod's first address.
            None if cidrs.first().is_some_and(|first| family(first) == of) => {
                sets.insert(0, (of, vec![range]));
            }
            None => sets.push((of, vec![range])),
        }
    }
    sets.into_iter().filter(|(_, set)| !set.is_empty()).map(|(_, set)| Json::List(set)).collect()
}

/// The network of a range that the plugin takes.
fn subnet(range: &Json) -> Option<IpNet> {
    let network: IpNet = range.as_object()?.text("subnet")?.parse().ok()?;
    let has_room = network.prefix_len() + 2 <= network.max_prefix_len();
    (network == network.trunc() && has_room).then_some(network)
}

/// Whether a range is one of a CIDR: the whole of it, or a part that somebody chose.
fn belongs(range: &Json, network: &IpNet, cidr: &IpNet) -> bool {
    let chosen = || {
        let chosen = |key: &&str| range.as_object().is_some_and(|range| range.get(key).is_some());
        KEYS[1..].iter().any(chosen)
    };
    network == cidr || cidr.contains(network) && chosen()
}

/// Whether its addresses are such, and inside its network, as the plugin demands.
fn is_sound(range: &Json, network: &IpNet) -> bool {
    let Some(range) = range.as_object() else { return false };
    let address = |key: &str| match range.get(key) {
        None | Some(Json::Null) => Some(None),
        Some(text) => text.as_text()?.parse::<IpAddr>().ok().filter(|ip| network.contains(ip)).map(Some),
    };
    let (Some(start), Some(end), Some(_)) = (address("rangeStart"), address("rangeEnd"), address("gateway"))
    else {
        return false;
    };
    // What the plugin takes where nothing is said: IPv6 has no broadcast address.
    let last = end.unwrap_or_else(|| match network {
        IpNet::V4(v4) => Ipv4Addr::from(u32::from(v4.broadcast()) - 1).into(),
        IpNet::V6(v6) => v6.broadcast().into(),
    });
    start.is_none_or(|start| start <= last) && last > network.network()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(found: &str, cidrs: &[&str], in_part: bool) -> String {
        let Json::List(found) = serde_json::from_str(found).unwrap() else { panic!("no list") };
        let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let sets = plan(&found, &cidrs, in_part);
        assert_eq!(plan(&sets, &cidrs, in_part), sets, "planned again it is another");
        serde_json::to_string(&Json::List(sets)).unwrap().replace('"', "")
    }

    #[test]
    fn each_family_has_one_set_in_the_order_of_the_cidrs() {
        let cidrs = ["fd00:1::/64", "10.1.0.0/24", "10.1.1.0/24"];
        assert_eq!(
            planned("[]", &cidrs, false),
            "[[{subnet:fd00:1::/64}],[{subnet:10.1.0.0/24},{subnet:10.1.1.0/24}]]"
        );
    }

    #[test]
    fn ranges_of_cidrs_that_are_gone_go_and_families_stay_in_order() {
        let found = r#"[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd00:1::/64"}],[{"subnet":"10.8.0.0/24"}]]"#;
        assert_eq!(
            planned(found, &["10.1.0.0/24", "fd00:1::/64"], false),
            "[[{subnet:10.1.0.0/24}],[{subnet:fd00:1::/64}]]"
        );
        assert_eq!(planned(found, &["fd00:1::/64"], false), "[[{subnet:fd00:1::/64}]]");
    }

    #[test]
    fn a_family_that_comes_first_on_the_node_comes_first_in_the_pod() {
        let found = r#"[[{"subnet":"fd00:1::/64"}]]"#;
        assert_eq!(
            planned(found, &["10.1.0.0/24", "fd00:1::/64"], false),
            "[[{subnet:10.1.0.0/24}],[{subnet:fd00:1::/64}]]"
        );
        assert_eq!(
            planned(found, &["fd00:1::/64", "10.1.0.0/24"], false),
            "[[{subnet:fd00:1::/64}],[{subnet:10.1.0.0/24}]]"
        );
    }

    #[test]
    fn what_somebody_narrowed_stays_while_it_lies_inside_a_cidr() {
        let narrowed = r#"[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.100","note":"x"}]]"#;
        let as_it_is = "[[{subnet:10.1.0.0/24,rangeStart:10.1.0.100,note:x}]]";
        assert_eq!(planned(narrowed, &["10.1.0.0/24"], false), as_it_is);
        assert_eq!(planned(narrowed, &["10.1.0.0/16"], false), as_it_is);
        assert_eq!(planned(narrowed, &["10.2.0.0/24"], false), "[[{subnet:10.2.0.0/24}]]");
        // A smaller network that nobody narrowed is the CIDR of before.
        let before = r#"[[{"subnet":"10.1.0.0/24"}]]"#;
        assert_eq!(planned(before, &["10.1.0.0/16"], false), "[[{subnet:10.1.0.0/16}]]");
    }

    #[test]
    fn what_the_plugin_would_refuse_is_replaced() {
        for range in [
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}"#,
            r#"{"subnet":"10.1.0.0/24","rangeEnd":"x"}"#,
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}"#,
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.255"}"#,
            r#"{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.0"}"#,
            r#"{"subnet":"10.1.0.0/24","gateway":"fd00::1"}"#,
            r#"{"subnet":"10.1.0.7/24"}"#,
            r#"{"subnet":7}"#,
            r#"{}"#,
            r#"7"#,
        ] {
            let found = format!("[[{range}],7]");
            assert_eq!(planned(&found, &["10.1.0.0/24"], false), "[[{subnet:10.1.0.0/24}]]", "{range}");
        }
        let twice = r#"[[{"subnet":"10.1.0.0/24"},{"subnet":"10.1.0.0/24","gateway":"10.1.0.1"}],[{"subnet":"fd00::/64"},{"subnet":"10.1.0.0/24"}]]"#;
        assert_eq!(
            planned(twice, &["10.1.0.0/24", "fd00::/64"], false),
            "[[{subnet:10.1.0.0/24}],[{subnet:fd00::/64}]]"
        );
    }

    #[test]
    fn a_family_of_which_nothing_could_be_read_keeps_its_ranges() {
        let found = r#"[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00:1::/64"}]]"#;
        let both = "[[{subnet:10.1.0.0/24}],[{subnet:fd00:1::/64}]]";
        assert_eq!(planned(found, &["10.1.0.0/24"], true), both);
        assert_eq!(planned(found, &[], true), both);
        assert_eq!(planned(found, &["10.1.0.0/24"], false), "[[{subnet:10.1.0.0/24}]]");
        assert_eq!(planned(found, &["10.2.0.0/24"], true), "[[{subnet:10.2.0.0/24}],[{subnet:fd00:1::/64}]]");
    }
}
