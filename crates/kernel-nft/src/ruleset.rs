//! What one nf_tables table holds, as plain values.
//!
//! ```text
//! Ruleset ─┬─ Table      flags, comment
//!          ├─ counters   named counters
//!          ├─ sets       sets and maps, with their elements
//!          └─ chains     base and regular chains, with their rules in order
//! ```
//!
//! The same types say what should be in the kernel, what is there (`observe`), and what `nft list table`
//! prints (`text`). Everything is ordered by name, so two equal rulesets render equal bytes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::elements::Elements;
use crate::expr::{Expr, Verdict};

/// Name of a chain, set or counter. Cheap to clone: one chain is named by many map elements.
pub type Name = Arc<str>;

/// Address family of a table (`NFPROTO_*`, include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet,
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
    /// Frames on a bridge.
    Bridge,
}

/// Flags of a table (`NFT_TABLE_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFlags {
    /// Only the socket that set the flag may change the table (Linux ≥ 5.12).
    pub owner: bool,
    /// The table outlives its owner's socket and can be adopted by the next one (Linux ≥ 6.9).
    pub persist: bool,
    /// None of its chains is attached to its hook; somebody's way to switch a table off.
    pub dormant: bool,
}

/// Properties of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Family of all the chains and sets in it.
    pub family: Family,
    /// Name, unique within the family.
    pub name: Name,
    /// Ownership.
    pub flags: TableFlags,
    /// Free text for people; at most 128 bytes.
    pub comment: Option<String>,
}

/// A named counter. Its values are what was observed; they never make two rulesets differ.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    /// Free text for people; at most 128 bytes.
    pub comment: Option<String>,
    /// Packets counted since it was made.
    pub packets: u64,
    /// Bytes counted since it was made.
    pub bytes: u64,
}

impl PartialEq for Counter {
    fn eq(&self, other: &Self) -> bool {
        self.comment == other.comment
    }
}

/// Type of one field of a set key, named as `nft` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// `ipv4_addr`, 4 bytes, network order.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes, network order.
    Ipv6Addr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes, network order.
    InetService,
    /// `icmpv6_type`, 1 byte.
    Icmpv6Type,
    /// `icmp_type`, 1 byte.
    IcmpType,
    /// `mark`, 4 bytes, host order.
    Mark,
    /// `ifname`, 16 bytes, NUL padded.
    Ifname,
    /// Observed only: a set with something that this crate does not write (other types, timeouts, objects,
    /// ranges in concatenations or maps). It differs from every set of ours and can only be deleted.
    Foreign,
}

/// What the elements of a set carry besides their key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MapsTo {
    /// A plain set: being there is all that an element says.
    #[default]
    Nothing,
    /// A verdict map: what becomes of the packet.
    Verdict,
    /// A data map: a value of these fields, loaded into registers; more than one is a concatenation.
    Data(Vec<DataType>),
}

/// What a set is, apart from its elements. A change of any of it means a new set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// The fields of the key; more than one is a concatenation.
    pub key: Vec<DataType>,
    /// What keys are mapped to (`type … : verdict`, `type … : mark`), if it is a map.
    pub maps_to: MapsTo,
    /// Elements are ranges (`flags interval`).
    pub interval: bool,
    /// Upper bound of the number of elements, if one is wanted.
    pub size: Option<u32>,
    /// Free text for people; at most 128 bytes.
    pub comment: Option<String>,
}

/// Key of an element: its fields one after another, each padded with zeros to four bytes if concatenated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(SmallVec<[u8; 16]>);

/// What a key is mapped to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Member of a plain set.
    Member,
    /// Member of an interval set: the key is the first, this the last address of the range (inclusive). A
    /// single address is a range too, from itself to itself; `Member` does not belong in an interval set.
    Until(Key),
    /// Element of a verdict map.
    Verdict(Verdict),
    /// Element of a data map: its fields one after another, each padded to four bytes if concatenated, as in
    /// a key.
    Data(Key),
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What it is.
    pub spec: SetSpec,
    /// What it holds. Ranges of an interval set never overlap.
    pub elements: Elements,
}

/// Netfilter hook of a base chain (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// From a device, before everything else.
    Ingress,
}

/// `type` of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    /// `filter`
    Filter,
    /// `nat`
    Nat,
    /// `route`
    Route,
    /// Observed only: a base chain with something that this crate does not write (another type, a policy
    /// other than `accept`, hardware offload). It differs from every chain of ours and can only be deleted.
    Foreign,
}

/// Where a base chain is attached. Its policy is always `accept` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `type`
    pub kind: ChainType,
    /// `hook`
    pub hook: Hook,
    /// `priority`; 0 is `filter`.
    pub priority: i32,
}

/// A rule: expressions evaluated in order until one does not match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// As the kernel runs them.
    pub expressions: Vec<Expr>,
    /// Free text for people; at most 128 bytes.
    pub comment: Option<String>,
}

/// A chain and its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Present on base chains.
    pub base: Option<BaseChain>,
    /// Free text for people; at most 128 bytes.
    pub comment: Option<String>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// One table with all that is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruleset {
    /// The table itself.
    pub table: Table,
    /// Named counters.
    pub counters: BTreeMap<Name, Counter>,
    /// Sets and verdict maps.
    pub sets: BTreeMap<Name, Set>,
    /// Chains.
    pub chains: BTreeMap<Name, Chain>,
}

/// Bytes that a comment may have: what `nft` accepts and libnftnl stores (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub const COMMENT_MAX: usize = 128;

/// Makes any text fit for a comment: at most [`COMMENT_MAX`] bytes, cut between characters, and without what
/// the `"…"` of the nft language cannot hold (quotes and control characters become `'` and spaces).
pub fn comment(text: &str) -> String {
    let mut comment = String::with_capacity(text.len().min(COMMENT_MAX));
    for character in text.chars() {
        let character = match character {
            '"' => '\'',
            c if c.is_control() => ' ',
            c => c,
        };
        if comment.len() + character.len_utf8() > COMMENT_MAX {
            break;
        }
        comment.push(character);
    }
    comment
}

impl Ruleset {
    /// An empty table.
    pub fn new(table: Table) -> Self {
        Self { table, counters: BTreeMap::new(), sets: BTreeMap::new(), chains: BTreeMap::new() }
    }
}

/// One change of a table. A transaction is a list of them, carried out in order, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Make the table, or take it over when it exists (`NLM_F_CREATE` without `NLM_F_EXCL`).
    AddTable(Table),
    /// Remove the table and all in it.
    DeleteTable,
    /// Make a named counter.
    AddCounter(Name, Counter),
    /// Remove a named counter that no rule uses.
    DeleteCounter(Name),
    /// Make a set without elements.
    AddSet(Name, SetSpec),
    /// Remove a set that no rule uses, and its elements.
    DeleteSet(Name),
    /// Add elements that are not there; the transaction fails if a key is there with another value.
    AddElements(Name, Vec<(Key, Value)>),
    /// Remove elements that are there; the transaction fails if one is missing.
    DeleteElements(Name, Vec<(Key, Value)>),
    /// Make a chain without rules.
    AddChain(Name, Option<BaseChain>, Option<String>),
    /// Remove a chain that nothing jumps to, and its rules.
    DeleteChain(Name),
    /// Remove the rules of a chain.
    FlushChain(Name),
    /// Append a rule.
    AddRule(Name, Rule),
}

impl Op {
    /// A word for what it does, and to how many things: for metrics.
    pub fn word(&self) -> (&'static str, usize) {
        match self {
            Self::AddTable(_) => ("add_table", 1),
            Self::DeleteTable => ("delete_table", 1),
            Self::AddCounter(..) => ("add_counter", 1),
            Self::DeleteCounter(_) => ("delete_counter", 1),
            Self::AddSet(..) => ("add_set", 1),
            Self::DeleteSet(_) => ("delete_set", 1),
            Self::AddElements(_, elements) => ("add_element", elements.len()),
            Self::DeleteElements(_, elements) => ("delete_element", elements.len()),
            Self::AddChain(..) => ("add_chain", 1),
            Self::DeleteChain(_) => ("delete_chain", 1),
            Self::FlushChain(_) => ("flush_chain", 1),
            Self::AddRule(..) => ("add_rule", 1),
        }
    }

    /// True for a change of no elements: there is nothing to be sent.
    pub fn is_nothing(&self) -> bool {
        match self {
            Self::AddElements(_, elements) | Self::DeleteElements(_, elements) => elements.is_empty(),
            _ => false,
        }
    }
}

impl DataType {
    /// Bytes of a field of this type; 0 for [`DataType::Foreign`].
    pub const fn width(self) -> usize {
        match self {
            Self::InetProto | Self::Icmpv6Type | Self::IcmpType => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark => 4,
            Self::Ipv6Addr | Self::Ifname => 16,
            Self::Foreign => 0,
        }
    }

    /// True if the bytes are a number of the host's byte order.
    pub const fn is_host_order(self) -> bool {
        matches!(self, Self::Mark | Self::Ifname)
    }
}

impl SetSpec {
    /// A set of single keys, without limit or comment.
    pub fn set(key: &[DataType]) -> Self {
        Self { key: key.to_vec(), maps_to: MapsTo::Nothing, interval: false, size: None, comment: None }
    }

    /// A set of ranges of one type, without limit or comment.
    pub fn intervals(key: DataType) -> Self {
        Self { interval: true, ..Self::set(&[key]) }
    }

    /// A verdict map, without limit or comment.
    pub fn verdicts(key: &[DataType]) -> Self {
        Self { maps_to: MapsTo::Verdict, ..Self::set(key) }
    }

    /// A map to values, without limit or comment.
    pub fn data(key: &[DataType], data: &[DataType]) -> Self {
        Self { maps_to: MapsTo::Data(data.to_vec()), ..Self::set(key) }
    }

    /// True for a map to verdicts.
    pub fn is_verdict_map(&self) -> bool {
        self.maps_to == MapsTo::Verdict
    }

    /// With a comment, made fit by [`comment`].
    #[must_use]
    pub fn with_comment(mut self, text: &str) -> Self {
        self.comment = Some(comment(text));
        self
    }

    /// Bytes of a key: fields of a concatenation are padded to four bytes each.
    pub fn key_len(&self) -> usize {
        fields_len(&self.key)
    }

    /// Bytes of the value of a data map, laid out as a key; 0 for sets and verdict maps.
    pub fn data_len(&self) -> usize {
        match &self.maps_to {
            MapsTo::Data(fields) => fields_len(fields),
            MapsTo::Nothing | MapsTo::Verdict => 0,
        }
    }
}

/// Bytes of fields one after another.
pub(crate) fn fields_len(fields: &[DataType]) -> usize {
    match fields {
        [single] => single.width(),
        fields => fields.iter().map(|field| field.width().next_multiple_of(4)).sum(),
    }
}

impl Key {
    /// A key of one field, or of several already padded to four bytes each.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }

    /// A concatenation: each field is padded to four bytes.
    pub fn concat(fields: &[&[u8]]) -> Self {
        let mut bytes = SmallVec::new();
        for field in fields {
            bytes.extend_from_slice(field);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Self(bytes)
    }

    /// A `mark`, as key or value.
    pub fn mark(mark: u32) -> Self {
        Self::from_bytes(&mark.to_ne_bytes())
    }

    /// `address . inet_service`
    pub fn address_port(address: IpAddr, port: u16) -> Self {
        Self::concat(&[Self::from(address).as_bytes(), &port.to_be_bytes()])
    }

    /// `address . inet_proto . inet_service`
    pub fn address_proto_port(address: IpAddr, proto: u8, port: u16) -> Self {
        Self::concat(&[Self::from(address).as_bytes(), &[proto], &port.to_be_bytes()])
    }

    /// The bytes as the kernel has them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The next key in numerical order; `None` after the last one (all bits set).
    pub(crate) fn successor(&self) -> Option<Self> {
        self.step(u8::MAX, 0, |byte| byte + 1)
    }

    /// The previous key in numerical order; `None` before the first one (all bits clear).
    pub(crate) fn predecessor(&self) -> Option<Self> {
        self.step(0, u8::MAX, |byte| byte - 1)
    }

    fn step(&self, carries: u8, becomes: u8, step: impl Fn(u8) -> u8) -> Option<Self> {
        let mut next = self.clone();
        for byte in next.0.iter_mut().rev() {
            if *byte != carries {
                *byte = step(*byte);
                return Some(next);
            }
            *byte = becomes;
        }
        None
    }
}

impl From<Ipv4Addr> for Key {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_bytes(&address.octets())
    }
}

impl From<Ipv6Addr> for Key {
    fn from(address: Ipv6Addr) -> Self {
        Self::from_bytes(&address.octets())
    }
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}
