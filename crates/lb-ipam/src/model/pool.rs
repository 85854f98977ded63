//! Pools of addresses, and for which Services each is.
//!
//! `--loadbalancer-ip-range` makes one pool for everybody, [`FLAG_POOL`]. A file (`--pools`) makes more:
//!
//! ```yaml
//! pools:
//! - name: public
//!   ranges: [192.0.2.0/24, "2001:db8:1::/112", 198.51.100.10-198.51.100.20]
//!   serviceSelector: {matchLabels: {exposed: internet}}      # absent: every Service
//!   namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [a, b]}]}   # absent: every namespace
//!   onlyOnRequest: true     # only for Services that name the pool or ask for an address of it
//! ```
//!
//! Pools are tried in the order of the file, the one of the flag last.

use std::collections::BTreeMap;
use std::net::IpAddr;

use common_informer::object::{Family, LabelSelector, LabelSelectorRequirement, Labels, Str};
use common_informer::selector::Selector;
use serde::Deserialize;

use super::range::{AddressRange, RangeError};

/// Name of the pool of `--loadbalancer-ip-range`.
pub const FLAG_POOL: &str = "default";

/// Some addresses, and who may have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: Str,
    /// Its addresses; they are handed out in this order, lowest first.
    pub ranges: Vec<AddressRange>,
    /// Services that may have them.
    pub services: Selector,
    /// Namespaces whose Services may have them.
    pub namespaces: Selector,
    /// Only for Services that name the pool or ask for one of its addresses.
    pub on_request: bool,
}

/// All pools. No address is in two ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    list: Vec<Pool>,
    /// First address of each range: last address and pool.
    by_first: BTreeMap<IpAddr, (IpAddr, usize)>,
}

/// Why pools cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolsError {
    /// The file is not of the form that is told above.
    #[error("pools cannot be read: {0}")]
    Malformed(String),
    /// A range is none.
    #[error("pool {pool}: {error}")]
    Range {
        /// Name of the pool.
        pool: Str,
        /// What is wrong with the range.
        error: RangeError,
    },
    /// A selector is none.
    #[error("pool {pool}: {field}.{error}")]
    Selector {
        /// Name of the pool.
        pool: Str,
        /// Which of its selectors.
        field: &'static str,
        /// What is wrong with it.
        error: common_informer::selector::SelectorError,
    },
    /// Two pools of one name, or one without a name.
    #[error(
        "pool {0:?}: a pool needs a name of its own (\"{FLAG_POOL}\" is the one of --loadbalancer-ip-range)"
    )]
    Name(Str),
    /// Nothing in it.
    #[error("pool {0} has no ranges")]
    Empty(Str),
    /// An address would be in two places.
    #[error("{0} of pool {1} and {2} of pool {3} overlap")]
    Overlap(AddressRange, Str, AddressRange, Str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pools: Vec<PoolText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PoolText {
    name: String,
    ranges: Vec<String>,
    #[serde(default)]
    service_selector: SelectorText,
    #[serde(default)]
    namespace_selector: SelectorText,
    #[serde(default)]
    only_on_request: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SelectorText {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RequirementText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementText {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl SelectorText {
    fn parse(&self, pool: &Str, field: &'static str) -> Result<Selector, PoolsError> {
        let text = |text: &String| Str::from(text.as_str());
        let selector = LabelSelector {
            match_labels: self.match_labels.iter().map(|(key, value)| (text(key), text(value))).collect(),
            match_expressions: self
                .match_expressions
                .iter()
                .map(|requirement| LabelSelectorRequirement {
                    key: text(&requirement.key),
                    operator: text(&requirement.operator),
                    values: requirement.values.iter().map(text).collect(),
                })
                .collect(),
        };
        Selector::parse(&selector).map_err(|error| PoolsError::Selector { pool: pool.clone(), field, error })
    }
}

impl Pool {
    /// The pool of `--loadbalancer-ip-range`: for everybody.
    ///
    /// # Errors
    /// A text is no range.
    pub fn of_flag<'a>(ranges: impl IntoIterator<Item = &'a str>) -> Result<Self, PoolsError> {
        let name = Str::from(FLAG_POOL);
        Ok(Self {
            ranges: parse_ranges(&name, ranges)?,
            name,
            services: Selector::everything(),
            namespaces: Selector::everything(),
            on_request: false,
        })
    }

    /// The pools of a file.
    ///
    /// # Errors
    /// The text has another form, or a range or selector in it is none.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, PoolsError> {
        let file: File =
            serde_saphyr::from_str(text).map_err(|error| PoolsError::Malformed(error.to_string()))?;
        let pool = |text: PoolText| {
            let name = Str::from(text.name);
            Ok(Self {
                ranges: parse_ranges(&name, text.ranges.iter().map(String::as_str))?,
                services: text.service_selector.parse(&name, "serviceSelector")?,
                namespaces: text.namespace_selector.parse(&name, "namespaceSelector")?,
                on_request: text.only_on_request,
                name,
            })
        };
        file.pools.into_iter().map(pool).collect()
    }

    /// Whether a Service with these labels, in a namespace with these, may have addresses of it.
    pub fn is_for(&self, service: &Labels, namespace: Option<&Labels>) -> bool {
        let namespace = match namespace {
            Some(labels) => self.namespaces.matches(labels),
            // Not heard of yet: only a selector that asks nothing is known to match.
            None => self.namespaces.is_everything(),
        };
        namespace && self.services.matches(service)
    }
}

/// A range given twice counts once.
fn parse_ranges<'a>(
    pool: &Str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<AddressRange>, PoolsError> {
    let mut ranges = Vec::new();
    for text in texts {
        let range =
            AddressRange::parse(text).map_err(|error| PoolsError::Range { pool: pool.clone(), error })?;
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

impl Pools {
    /// Takes pools in the order in which they are tried.
    ///
    /// # Errors
    /// Names that are not unique, pools without ranges, ranges that overlap.
    pub fn new(list: Vec<Pool>) -> Result<Self, PoolsError> {
        let mut ranges: Vec<(AddressRange, usize)> = Vec::new();
        for (index, pool) in list.iter().enumerate() {
            if pool.name.is_empty() || list[..index].iter().any(|other| other.name == pool.name) {
                return Err(PoolsError::Name(pool.name.clone()));
            }
            if pool.ranges.is_empty() {
                return Err(PoolsError::Empty(pool.name.clone()));
            }
            ranges.extend(pool.ranges.iter().map(|range| (*range, index)));
        }
        ranges.sort();
        for pair in ranges.windows(2) {
            let [(one, in_one), (other, in_other)] = pair else { continue };
            if one.overlaps(other) {
                let name = |index: usize| list[index].name.clone();
                return Err(PoolsError::Overlap(*one, name(*in_one), *other, name(*in_other)));
            }
        }
        let by_first = ranges.iter().map(|(range, pool)| (range.first(), (range.last(), *pool))).collect();
        Ok(Self { list, by_first })
    }

    /// Them all, in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Pool)> {
        self.list.iter().enumerate()
    }

    /// The pool that `ip` is in, and its place in the order.
    pub fn of(&self, ip: IpAddr) -> Option<(usize, &Pool)> {
        let (_, (last, index)) = self.by_first.range(..=ip).next_back()?;
        if ip > *last {
            return None;
        }
        Some((*index, self.list.get(*index)?))
    }

    /// Whether a pool has this name.
    pub fn has(&self, name: &str) -> bool {
        self.list.iter().any(|pool| *pool.name == *name)
    }

    /// Whether any pool has addresses of this family.
    pub fn has_family(&self, family: Family) -> bool {
        self.list.iter().flat_map(|pool| &pool.ranges).any(|range| range.family() == family)
    }

    /// Whether the labels of namespaces matter.
    pub fn read_namespaces(&self) -> bool {
        self.list.iter().any(|pool| !pool.namespaces.is_everything())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
pools:
- name: public
  ranges: [192.0.2.0/24, "2001:db8::/112"]
  serviceSelector: {matchLabels: {exposed: internet}}
  namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [a, b]}]}
- {name: reserve, ranges: [198.51.100.10-198.51.100.20], onlyOnRequest: true}
"#;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn selectors_say_who_may_have_addresses_of_a_pool() {
        let pools = Pool::parse_file(FILE).unwrap();
        let (public, reserve) = (&pools[0], &pools[1]);
        let (exposed, team_a) = (labels(&[("exposed", "internet")]), labels(&[("team", "a")]));
        assert!(public.is_for(&exposed, Some(&team_a)));
        assert!(!public.is_for(&labels(&[]), Some(&team_a)));
        assert!(!public.is_for(&exposed, Some(&labels(&[("team", "c")]))));
        assert!(!public.is_for(&exposed, None), "the namespace is not known");
        assert!(reserve.is_for(&labels(&[]), None));
        assert!(reserve.on_request && !public.on_request);
    }

    #[test]
    fn each_address_is_in_at_most_one_pool() {
        let mut list = Pool::parse_file(FILE).unwrap();
        list.push(Pool::of_flag(["10.0.0.0/24", "10.0.0.0/24"]).unwrap());
        let pools = Pools::new(list).unwrap();
        let of = |ip: &str| pools.of(ip.parse().unwrap()).map(|(_, pool)| pool.name.to_string());
        assert_eq!(of("192.0.2.1").as_deref(), Some("public"));
        assert_eq!(of("2001:db8::ffff").as_deref(), Some("public"));
        assert_eq!(of("198.51.100.20").as_deref(), Some("reserve"));
        assert_eq!(of("10.0.0.254").as_deref(), Some("default"));
        for outside in ["192.0.2.0", "192.0.2.255", "2001:db8::", "198.51.100.21", "10.0.0.255", "9.9.9.9"] {
            assert_eq!(of(outside), None, "{outside}");
        }
    }

    #[test]
    fn pools_that_contradict_each_other_are_refused() {
        let error = |yaml: &str| Pool::parse_file(yaml).and_then(Pools::new).unwrap_err().to_string();
        let overlap =
            error("pools: [{name: a, ranges: [10.0.0.0/24]}, {name: b, ranges: [10.0.0.9-10.0.1.1]}]");
        assert!(overlap.contains("overlap") && overlap.contains("pool b"), "{overlap}");
        assert!(error("pools: [{name: a, ranges: []}]").contains("no ranges"));
        assert!(
            error("pools: [{name: a, ranges: [10.0.0.0/24]}, {name: a, ranges: [10.0.1.0/24]}]")
                .contains("name")
        );
        assert!(error("pools: [{name: a, ranges: [10.0.0.0/24], selector: {}}]").contains("selector"));
        assert!(error("pools: [{name: a, ranges: [10.0.0.0]}]").contains("pool a: \"10.0.0.0\""));
        let selector = error(
            "pools: [{name: a, ranges: [10.0.0.0/24], serviceSelector: {matchExpressions: [{key: k, operator: Is}]}}]",
        );
        assert!(selector.contains("serviceSelector.matchExpressions[0].operator"), "{selector}");
    }
}
