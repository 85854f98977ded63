//! The nftables table that all calls share.
//!
//! ```text
//!   chain postrouting (srcnat)               ip saddr vmap @masquerade4 ── goto ─► chain masquerade_10.1.2.0_24
//!                                            … vmap @hairpin4 ─────────── goto ─► chain hairpin_10.1.2.0_24
//!   chain prerouting, output (dstnat)        fib daddr type local jump host_ports
//!   chain host_ports                         dnat to … map @host_ip_ports4, then @host_ports4
//!   chain loopback (prerouting, raw)         iifname != "lo" ip daddr 127.0.0.0/8 drop
//! ```
//!
//! and the same for IPv6. An attachment is a few elements of maps; the rest is the same for all of them.
//!
//! Many calls work on it at once, and none of them owns it. Nearly always all that an element needs is there, and
//! adding it is one small transaction. Otherwise the table is read, what is missing is added to what was read, and
//! the difference is committed only if nobody changed anything meanwhile (the generation of the ruleset); else once
//! more. Chains of subnets to which nothing leads any more are removed where the table is read anyway (GC, DEL with
//! ports of the node); should an ADD be faster, the kernel refuses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use kernel_nft::{
    BaseChain, Chain, ChainType, CmpOp, CommitError, DESTINATION, DataType, Expr, Family, Field, Hook,
    IpVersion, Key, MetaKey, Name, Nftables, Op, Register, Rule, Ruleset, Set, SetSpec, Side, Table,
    TableFlags, Transaction, Value, Verdict, create, diff,
};
use nix::libc;

use crate::owned;
use crate::spec::CniError;

/// How often a change is tried anew because others change the ruleset too.
const ATTEMPTS: u32 = 200;
const IFNAMSIZ: usize = 16;

/// The IP versions.
pub const VERSIONS: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// Protocol and port of a connection as it was opened, and where it goes: the key of `hairpin`.
pub const TRANSLATED: [Field; 3] =
    [Field::Address(Side::Destination), Field::L4Proto, Field::OriginalPort(Side::Destination)];

/// A map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Address of a container → chain of its subnet.
    Masquerade,
    /// Address of a container, protocol, port of the node → chain of its subnet.
    Hairpin,
    /// Protocol, port of the node → address and port of a container.
    HostPorts,
    /// Address, protocol, port of the node → address and port of a container.
    HostIpPorts,
}

/// An element of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Where it is.
    pub map: Map,
    /// Of which version.
    pub version: IpVersion,
    /// Its key.
    pub key: Key,
    /// What it leads to.
    pub value: Value,
    /// The chain that it leads to, if it does.
    pub chain: Option<(Name, Vec<Rule>)>,
}

impl Map {
    const ALL: [Self; 4] = [Self::Masquerade, Self::Hairpin, Self::HostPorts, Self::HostIpPorts];

    /// Its name.
    pub fn name(self, version: IpVersion) -> Name {
        let digit = match version {
            IpVersion::V4 => 4,
            IpVersion::V6 => 6,
        };
        let word = match self {
            Self::Masquerade => "masquerade",
            Self::Hairpin => "hairpin",
            Self::HostPorts => "host_ports",
            Self::HostIpPorts => "host_ip_ports",
        };
        format!("{word}{digit}").into()
    }

    /// A value as elements have it. KERNEL: an element that is removed is found by its key alone.
    fn any_value(self, version: IpVersion) -> Value {
        let spec = self.spec(version);
        match spec.data_len() {
            0 => Value::Verdict(Verdict::Return),
            length => Value::Data(Key::from_bytes(&vec![0; length])),
        }
    }

    fn spec(self, version: IpVersion) -> SetSpec {
        let ip = version.data_type();
        let target = [ip, DataType::InetService];
        match self {
            Self::Masquerade => SetSpec::verdicts(&[ip]),
            Self::Hairpin => SetSpec::verdicts(&[ip, DataType::InetProto, DataType::InetService]),
            Self::HostPorts => SetSpec::data(&[DataType::InetProto, DataType::InetService], &target),
            Self::HostIpPorts => SetSpec::data(&[ip, DataType::InetProto, DataType::InetService], &target),
        }
    }
}

fn base(kind: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { base: Some(BaseChain { kind, hook, priority }), comment: None, rules }
}

/// The table without attachments.
pub fn empty() -> Ruleset {
    let mut table = Ruleset::new(Table {
        family: Family::Inet,
        name: owned::TABLE.into(),
        flags: TableFlags::default(),
        comment: Some(owned::TABLE_COMMENT.to_owned()),
    });
    for version in VERSIONS {
        for map in Map::ALL {
            table
                .sets
                .insert(map.name(version), Set { spec: map.spec(version), elements: Default::default() });
        }
    }
    let translated = |version| Rule::new().fields_verdict(version, &TRANSLATED, &Map::Hairpin.name(version));
    let source = |version| Rule::new().address_verdict(Side::Source, version, &Map::Masquerade.name(version));
    let rules = VERSIONS.iter().flat_map(|version| [translated(*version), source(*version)]).collect();
    table
        .chains
        .insert("postrouting".into(), base(ChainType::Nat, Hook::Postrouting, owned::SOURCE_PRIORITY, rules));
    let ports: Name = "host_ports".into();
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        let local = Rule::new().address_is_local(Side::Destination).jump(&ports);
        table
            .chains
            .insert(name.into(), base(ChainType::Nat, hook, owned::DESTINATION_PRIORITY, vec![local]));
    }
    let any = [Field::L4Proto, Field::Port(Side::Destination)];
    let rules = VERSIONS.iter().flat_map(|&version| {
        [
            Rule::new().dnat_from(version, &DESTINATION, &Map::HostIpPorts.name(version), true),
            Rule::new().nfproto(version).dnat_from(version, &any, &Map::HostPorts.name(version), true),
        ]
    });
    table.chains.insert(ports, Chain { rules: rules.collect(), ..Chain::default() });
    let loopback = base(ChainType::Filter, Hook::Prerouting, owned::LOOPBACK_PRIORITY, vec![guard()]);
    table.chains.insert("loopback".into(), loopback);
    table
}

/// Bridges that lead 127.0.0.0/8 to containers (`route_localnet`) would take packets to it from them too
/// (CVE-2020-8558).
fn guard() -> Rule {
    let mut lo = b"lo".to_vec();
    lo.resize(IFNAMSIZ, 0);
    let register = Register(0);
    let rule = Rule::new()
        .expression(Expr::Meta { key: MetaKey::IifName, dreg: register })
        .expression(Expr::Cmp { op: CmpOp::Neq, sreg: register, data: lo });
    let loopback = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    rule.address_in_prefix(Side::Destination, loopback.into()).drop()
}

fn commit(nft: &mut impl Nftables, ops: &[Op], generation: Option<u32>) -> Result<(), CommitError> {
    nft.commit(&Transaction { family: Family::Inet, table: &owned::TABLE.into(), ops, generation })
}

fn failed(doing: &str, error: impl std::fmt::Display) -> CniError {
    CniError::other(format!("{doing} nftables table inet {}: {error}", owned::TABLE))
}

/// Adds elements, all or none, with what they need. What there is under the address of a container makes way: whoever
/// had it before is gone, since the address was free. A port of the node that leads to another address makes way if
/// that is not `alive`.
///
/// # Errors
/// When a port of the node is in use, the kernel refuses, or others change the ruleset without end.
pub fn add(
    nft: &mut impl Nftables,
    elements: &[Element],
    alive: &dyn Fn(IpAddr) -> bool,
) -> Result<(), CniError> {
    if elements.is_empty() {
        return Ok(());
    }
    let ops: Vec<Op> = elements
        .iter()
        .map(|element| {
            let pair = vec![(element.key.clone(), element.value.clone())];
            Op::AddElements(element.map.name(element.version), pair)
        })
        .collect();
    match commit(nft, &ops, None) {
        Ok(()) => return Ok(()),
        // Something is missing, or has another value.
        Err(CommitError::Refused { errno: libc::ENOENT | libc::EEXIST, .. }) => {}
        Err(error) if error.is_retryable() => {}
        Err(error) => return Err(failed("changing", error)),
    }
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        let seen = nft.observe(Family::Inet, owned::TABLE).map_err(|error| failed("reading", error))?;
        if let Some(taken) = seen.as_ref().and_then(|seen| taken(&seen.ruleset, elements, alive)) {
            return Err(CniError::other(format!(
                "portMappings: a port of the node already leads to {taken}"
            )));
        }
        let result = match seen {
            None => commit(nft, &create(&with(empty(), elements)), None),
            Some(seen) => {
                let want = with(mended(&seen.ruleset), elements);
                commit(nft, &diff(&want, &seen.ruleset), Some(seen.generation))
            }
        };
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.is_retryable() => last = error.to_string(),
            Err(error) => return Err(failed("changing", error)),
        }
        // Whoever waits longer than others is not overtaken for ever: the table is complete after the first.
        sleep(Duration::from_millis(u64::from(attempt % 10)));
    }
    Err(failed("changing", last))
}

/// The living address that a port of the node leads to which is wanted for another.
fn taken(table: &Ruleset, elements: &[Element], alive: &dyn Fn(IpAddr) -> bool) -> Option<IpAddr> {
    elements.iter().filter(|element| matches!(element.map, Map::HostPorts | Map::HostIpPorts)).find_map(
        |element| {
            let set = table.sets.get(&element.map.name(element.version))?;
            let Value::Data(target) =
                set.elements.get(&element.key).filter(|value| *value != element.value)?
            else {
                return None;
            };
            crate::portmap::address(element.version, target.as_bytes()).filter(|ip| alive(*ip))
        },
    )
}

/// What was found, with all that belongs into the table as it should be.
fn mended(have: &Ruleset) -> Ruleset {
    let mut want = empty();
    for (name, set) in &mut want.sets {
        if let Some(found) = have.sets.get(name).filter(|found| found.spec == set.spec) {
            set.elements = found.elements.clone();
        }
    }
    // The chains of subnets, and what others have put in.
    for (name, chain) in &have.chains {
        want.chains.entry(name.clone()).or_insert_with(|| chain.clone());
    }
    want
}

fn with(mut table: Ruleset, elements: &[Element]) -> Ruleset {
    for element in elements {
        if let Some((name, rules)) = &element.chain {
            table.chains.insert(name.clone(), Chain { rules: rules.clone(), ..Chain::default() });
        }
        if let Some(set) = table.sets.get_mut(&element.map.name(element.version)) {
            set.elements.insert(element.key.clone(), element.value.clone());
        }
    }
    table
}

/// Those of some elements that are there. KERNEL: to remove one that is missing costs 10 ms and more, see
/// [`Nftables::has_element`].
///
/// # Errors
/// When the kernel cannot be asked.
pub fn present(
    nft: &mut impl Nftables,
    keys: impl Iterator<Item = (Map, IpVersion, Key)>,
) -> Result<Vec<(Map, IpVersion, Key)>, CniError> {
    let mut found = Vec::new();
    for (map, version, key) in keys {
        let has = nft.has_element(Family::Inet, owned::TABLE, &map.name(version), &key);
        if has.map_err(|error| failed("reading", error))? {
            found.push((map, version, key));
        }
    }
    Ok(found)
}

/// Removes elements if they are there, and then chains that nothing leads to any more.
///
/// # Errors
/// When the kernel refuses for another reason than that they are gone.
pub fn remove(
    nft: &mut impl Nftables,
    keys: &[(Map, IpVersion, Key)],
    chains: &[Name],
) -> Result<(), CniError> {
    let delete = |(map, version, key): &(Map, IpVersion, Key)| {
        Op::DeleteElements(map.name(*version), vec![(key.clone(), map.any_value(*version))])
    };
    let chains = chains.iter().cloned().map(Op::DeleteChain);
    let ops: Vec<Op> = keys.iter().map(delete).chain(chains).collect();
    if commit(nft, &ops, None).is_err() {
        // Each by itself, as one that is missing, or in use again, costs the others.
        for op in ops {
            again(nft, &[op])?;
        }
    }
    Ok(())
}

/// The chains of subnets that nothing leads to when some elements are gone.
pub fn unused_chains(table: &Ruleset, gone: &[(Map, IpVersion, Key)]) -> Vec<Name> {
    let mut unused: BTreeSet<&Name> = table.chains.keys().filter(|name| is_of_subnet(name)).collect();
    for (map, version) in
        [Map::Masquerade, Map::Hairpin].into_iter().flat_map(|map| VERSIONS.map(|v| (map, v)))
    {
        let Some(set) = table.sets.get(&map.name(version)) else { continue };
        for (key, value) in &set.elements {
            if let Value::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) = value
                && !gone.iter().any(|(m, v, k)| (*m, *v) == (map, version) && *k == key)
            {
                unused.remove(&chain);
            }
        }
    }
    unused.into_iter().cloned().collect()
}

fn is_of_subnet(name: &str) -> bool {
    name.starts_with("masquerade_") || name.starts_with("hairpin_")
}

fn again(nft: &mut impl Nftables, ops: &[Op]) -> Result<(), CniError> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        match commit(nft, ops, None) {
            // It is not there, or (a chain) in use.
            Ok(()) | Err(CommitError::Refused { errno: libc::ENOENT | libc::EBUSY, .. }) => return Ok(()),
            // The kernel has no nf_tables, so there is nothing in it.
            Err(CommitError::Refused { errno: libc::EOPNOTSUPP | libc::EAFNOSUPPORT, .. }) => return Ok(()),
            Err(error) if error.is_retryable() => last = error.to_string(),
            Err(error) => return Err(failed("changing", error)),
        }
        sleep(Duration::from_millis(u64::from(attempt % 10)));
    }
    Err(failed("changing", last))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use kernel_nft::Fake;

    use super::*;

    fn element(last: u8, chain: &str) -> Element {
        let ip = IpAddr::from(Ipv4Addr::new(10, 1, 2, last));
        Element {
            map: Map::Masquerade,
            version: IpVersion::V4,
            key: ip.into(),
            value: Value::Verdict(Verdict::Goto(chain.into())),
            chain: Some((chain.into(), vec![Rule::new().masquerade(Default::default())])),
        }
    }

    fn seen(nft: &mut Fake) -> Ruleset {
        nft.observe(Family::Inet, owned::TABLE).unwrap().unwrap().ruleset
    }

    #[test]
    fn elements_come_and_go_and_the_rest_stays() {
        let mut nft = Fake::new();
        add(&mut nft, &[element(2, "a")], &|_| true).unwrap();
        add(&mut nft, &[element(3, "a")], &|_| true).unwrap();
        assert_eq!(seen(&mut nft).sets["masquerade4"].elements.len(), 2);
        let key = |last| (Map::Masquerade, IpVersion::V4, element(last, "a").key);
        assert_eq!(present(&mut nft, [key(2), key(9)].into_iter()).unwrap(), [key(2)]);
        remove(&mut nft, &[key(2), key(9)], &["a".into()]).unwrap();
        assert!(seen(&mut nft).chains.contains_key("a"), "an element leads to it");
        remove(&mut nft, &[key(3)], &["a".into()]).unwrap();
        assert_eq!(seen(&mut nft), empty());
        remove(&mut nft, &[key(3)], &["a".into()]).unwrap();
    }

    #[test]
    fn what_is_left_of_another_container_makes_way() {
        let mut nft = Fake::new();
        add(&mut nft, &[element(2, "old")], &|_| true).unwrap();
        add(&mut nft, &[element(2, "new")], &|_| true).unwrap();
        let table = seen(&mut nft);
        assert_eq!(
            table.sets["masquerade4"].elements.get(&element(2, "").key),
            Some(element(2, "new").value)
        );
    }

    #[test]
    fn a_table_that_somebody_damaged_is_mended() {
        let mut nft = Fake::new();
        add(&mut nft, &[element(2, "a")], &|_| true).unwrap();
        let ops = [Op::FlushChain("postrouting".into()), Op::DeleteSet("host_ports4".into())];
        let unused = [Op::FlushChain("host_ports".into()), ops[1].clone(), ops[0].clone()];
        commit(&mut nft, &unused, None).unwrap();
        add(&mut nft, &[element(3, "b")], &|_| true).unwrap();
        let table = seen(&mut nft);
        assert_eq!(table.chains["postrouting"], empty().chains["postrouting"]);
        assert_eq!(table.chains["host_ports"], empty().chains["host_ports"]);
        assert_eq!(table.sets["masquerade4"].elements.len(), 2);
    }

    #[test]
    fn nothing_is_removed_where_there_is_no_table() {
        let mut nft = Fake::new();
        let key = element(2, "a").key;
        remove(&mut nft, &[(Map::Masquerade, IpVersion::V4, key)], &["a".into()]).unwrap();
        assert!(nft.observe(Family::Inet, owned::TABLE).unwrap().is_none());
    }
}
