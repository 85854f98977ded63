//! Tables, chains, rules, sets, elements and counters from the messages that the kernel dumps.

use super::decode_expr::{self, Kinds, by_kind};
use super::encode::{TYPE_BITS, type_number};
use super::uapi::*;
use super::{Attribute, Attributes, Message};
use crate::elements;
use crate::ruleset::{
    BaseChain, Chain, ChainType, Counter, DataType, Family, Hook, Key, MapsTo, Name, Rule, Set, SetSpec,
    Table, TableFlags, Value, fields_len,
};

/// A table, and the port of the socket that owns it.
pub(crate) struct TableFound {
    pub(crate) table: Table,
    pub(crate) owner: Option<u32>,
}

/// `NFT_MSG_NEWTABLE`
pub(crate) fn table(message: &Message<'_>, family: Family) -> Option<TableFound> {
    let kinds: Kinds<'_, 8> = by_kind(message.attributes());
    let flags = kinds.u32(NFTA_TABLE_FLAGS).unwrap_or(0);
    let owned = flags & NFT_TABLE_F_OWNER != 0;
    Some(TableFound {
        table: Table {
            family,
            name: name(kinds.get(NFTA_TABLE_NAME))?,
            flags: TableFlags {
                owner: owned,
                persist: flags & NFT_TABLE_F_PERSIST != 0,
                dormant: flags & NFT_TABLE_F_DORMANT != 0,
            },
            comment: comment(kinds.get(NFTA_TABLE_USERDATA), NFTNL_UDATA_TABLE_COMMENT),
        },
        owner: if owned { kinds.u32(NFTA_TABLE_OWNER) } else { None },
    })
}

/// `NFT_MSG_NEWGEN`: the generation, and who made it.
pub(crate) struct Generation {
    pub(crate) id: u32,
    pub(crate) pid: Option<u32>,
    pub(crate) process: Option<String>,
}

pub(crate) fn generation(message: &Message<'_>) -> Option<Generation> {
    let kinds: Kinds<'_, 4> = by_kind(message.attributes());
    Some(Generation {
        id: kinds.u32(NFTA_GEN_ID)?,
        pid: kinds.u32(NFTA_GEN_PROC_PID),
        process: kinds.get(NFTA_GEN_PROC_NAME).map(|name| name.text().into_owned()),
    })
}

/// Name of the table that any message but NEWGEN is about: attribute 1 of all of them.
pub(crate) fn table_name(message: &Message<'_>) -> Option<String> {
    message.attributes().find(NFTA_TABLE_NAME).map(|name| name.text().into_owned())
}

/// `NFT_MSG_NEWCHAIN`; `None` if it is of another table.
pub(crate) fn chain(message: &Message<'_>, table: &str) -> Option<(Name, Chain)> {
    let kinds: Kinds<'_, 13> = by_kind(message.attributes());
    if kinds.get(NFTA_CHAIN_TABLE)?.text() != table {
        return None;
    }
    let flags = kinds.u32(NFTA_CHAIN_FLAGS).unwrap_or(0);
    let base = kinds.get(NFTA_CHAIN_HOOK).map(|hook| base_chain(&kinds, hook.nested(), flags));
    let chain = Chain {
        base,
        comment: comment(kinds.get(NFTA_CHAIN_USERDATA), NFTNL_UDATA_CHAIN_COMMENT),
        rules: Vec::new(),
    };
    Some((name(kinds.get(NFTA_CHAIN_NAME))?, chain))
}

fn base_chain(kinds: &Kinds<'_, 13>, hook: Attributes<'_>, flags: u32) -> BaseChain {
    let (hook, known_hook) = match hook.find(NFTA_HOOK_HOOKNUM).and_then(|number| number.u32()) {
        Some(0) => (Hook::Prerouting, true),
        Some(1) => (Hook::Input, true),
        Some(2) => (Hook::Forward, true),
        Some(3) => (Hook::Output, true),
        Some(4) => (Hook::Postrouting, true),
        _ => (Hook::Ingress, false),
    };
    let priority = kinds
        .get(NFTA_CHAIN_HOOK)
        .and_then(|hook| hook.nested().find(NFTA_HOOK_PRIORITY))
        .and_then(|priority| priority.u32())
        // As i32: the attribute is a signed number in network order.
        .unwrap_or(0) as i32;
    let accepts = kinds.u32(NFTA_CHAIN_POLICY).unwrap_or(NF_ACCEPT) == NF_ACCEPT;
    let kind = match kinds.get(NFTA_CHAIN_TYPE).map(|kind| kind.text()).as_deref() {
        _ if !known_hook || !accepts || flags & !NFT_CHAIN_BASE != 0 => ChainType::Foreign,
        Some("filter") => ChainType::Filter,
        Some("nat") => ChainType::Nat,
        Some("route") => ChainType::Route,
        _ => ChainType::Foreign,
    };
    BaseChain { kind, hook, priority }
}

/// `NFT_MSG_NEWRULE`: its chain and the rule; `None` if it is of another table.
pub(crate) fn rule(message: &Message<'_>, table: &str) -> Option<(Name, Rule)> {
    let kinds: Kinds<'_, 8> = by_kind(message.attributes());
    if kinds.get(NFTA_RULE_TABLE)?.text() != table {
        return None;
    }
    let expressions = kinds
        .get(NFTA_RULE_EXPRESSIONS)
        .map(|list| list.nested().map(decode_expr::expression).collect())
        .unwrap_or_default();
    let rule =
        Rule { expressions, comment: comment(kinds.get(NFTA_RULE_USERDATA), NFTNL_UDATA_RULE_COMMENT) };
    Some((name(kinds.get(NFTA_RULE_CHAIN))?, rule))
}

/// The number by which the kernel knows the rule of a `NFT_MSG_NEWRULE`; none is used twice in a table.
pub(crate) fn rule_handle(message: &Message<'_>) -> Option<u64> {
    message.attributes().find(NFTA_RULE_HANDLE)?.u64()
}

/// `NFT_MSG_NEWSET`; `None` if it is of another table or anonymous (part of the one rule that uses it).
pub(crate) fn set(message: &Message<'_>, table: &str) -> Option<(Name, Set)> {
    let kinds: Kinds<'_, 19> = by_kind(message.attributes());
    if kinds.get(NFTA_SET_TABLE)?.text() != table {
        return None;
    }
    let flags = kinds.u32(NFTA_SET_FLAGS).unwrap_or(0);
    if flags & NFT_SET_ANONYMOUS != 0 {
        return None;
    }
    let (key, maps_to) =
        set_types(&kinds, flags).unwrap_or_else(|| (vec![DataType::Foreign], MapsTo::Nothing));
    let spec = SetSpec {
        key,
        maps_to,
        interval: flags & NFT_SET_INTERVAL != 0,
        size: kinds
            .get(NFTA_SET_DESC)
            .and_then(|desc| desc.nested().find(NFTA_SET_DESC_SIZE))
            .and_then(|size| size.u32()),
        comment: comment(kinds.get(NFTA_SET_USERDATA), NFTNL_UDATA_SET_COMMENT),
    };
    Some((name(kinds.get(NFTA_SET_NAME))?, Set { spec, elements: elements::Elements::new() }))
}

/// Fields of the key, and what it is mapped to; `None` for what this crate does not write.
fn set_types(kinds: &Kinds<'_, 19>, flags: u32) -> Option<(Vec<DataType>, MapsTo)> {
    const NFTA_SET_EXPR: u16 = 17;
    const NFTA_SET_EXPRESSIONS: u16 = 18;
    let stateful = kinds.get(NFTA_SET_TIMEOUT).is_some()
        || kinds.get(NFTA_SET_EXPR).is_some()
        || kinds.get(NFTA_SET_EXPRESSIONS).is_some();
    if flags & !(NFT_SET_INTERVAL | NFT_SET_MAP) != 0 || stateful {
        return None;
    }
    let key = fields(kinds.u32(NFTA_SET_KEY_TYPE)?, kinds.u32(NFTA_SET_KEY_LEN)?)?;
    let maps_to = if flags & NFT_SET_MAP == 0 {
        MapsTo::Nothing
    } else {
        match kinds.u32(NFTA_SET_DATA_TYPE)? {
            NFT_DATA_VERDICT => MapsTo::Verdict,
            packed => MapsTo::Data(fields(packed, kinds.u32(NFTA_SET_DATA_LEN)?)?),
        }
    };
    Some((key, maps_to))
}

/// The fields that nft packed into one number, if they are as long as the kernel says.
fn fields(mut packed: u32, len: u32) -> Option<Vec<DataType>> {
    let mut fields = Vec::new();
    while packed != 0 {
        fields.push(data_type(packed & ((1 << TYPE_BITS) - 1))?);
        packed >>= TYPE_BITS;
    }
    fields.reverse();
    (!fields.is_empty() && fields_len(&fields) == len as usize).then_some(fields)
}

fn data_type(number: u32) -> Option<DataType> {
    use DataType::*;
    [Ipv4Addr, Ipv6Addr, InetProto, InetService, Icmpv6Type, IcmpType, Mark, Ifname]
        .into_iter()
        .find(|field| type_number(*field) == number)
}

/// Elements of one set as they come, in several messages, until [`Elements::finish`] pairs starts and ends.
#[derive(Default)]
pub(crate) struct Elements {
    members: Vec<(Key, Value)>,
    /// Start or end (`true`) of ranges.
    edges: Vec<(Key, bool)>,
    /// Something that this crate does not write.
    foreign: bool,
}

impl Elements {
    /// `NFT_MSG_NEWSETELEM`
    pub(crate) fn add(&mut self, message: &Message<'_>, spec: &SetSpec) {
        let Some(list) = message.attributes().find(NFTA_SET_ELEM_LIST_ELEMENTS) else { return };
        for element in list.nested() {
            if self.add_element(element, spec).is_none() {
                self.foreign = true;
            }
        }
    }

    fn add_element(&mut self, element: Attribute<'_>, spec: &SetSpec) -> Option<()> {
        let kinds: Kinds<'_, 12> = by_kind(element.nested());
        let key = kinds.get(NFTA_SET_ELEM_KEY)?.nested().find(NFTA_DATA_VALUE)?;
        if key.data.len() != spec.key_len() {
            return None;
        }
        let key = Key::from_bytes(key.data);
        if spec.interval {
            let end = kinds.u32(NFTA_SET_ELEM_FLAGS).unwrap_or(0) & NFT_SET_ELEM_INTERVAL_END != 0;
            self.edges.push((key, end));
            return Some(());
        }
        let data = || Some(kinds.get(NFTA_SET_ELEM_DATA)?.nested());
        let value = match &spec.maps_to {
            MapsTo::Nothing => Value::Member,
            MapsTo::Verdict => Value::Verdict(decode_expr::verdict(data()?)?),
            MapsTo::Data(_) => {
                let value = data()?.find(NFTA_DATA_VALUE)?;
                (value.data.len() == spec.data_len()).then(|| Value::Data(Key::from_bytes(value.data)))?
            }
        };
        self.members.push((key, value));
        Some(())
    }

    /// What the dump as a whole says.
    pub(crate) fn finish(mut self) -> Dumped {
        if self.foreign || self.pair_edges().is_none() {
            return Dumped::Foreign;
        }
        let told = self.members.len();
        let elements: elements::Elements = self.members.into_iter().collect();
        if elements.len() == told { Dumped::All(elements) } else { Dumped::Torn }
    }

    fn pair_edges(&mut self) -> Option<()> {
        // Where one range ends and the next begins the end comes first.
        self.edges.sort_by(|(a, a_end), (b, b_end)| a.cmp(b).then(b_end.cmp(a_end)));
        let mut edges = self.edges.drain(..).peekable();
        while let Some((start, end)) = edges.next() {
            if end {
                // `nft` closes the space before the first range.
                continue;
            }
            let last = match edges.peek() {
                Some((next, _)) => next.predecessor()?,
                None => Key::from_bytes(&vec![u8::MAX; start.as_bytes().len()]),
            };
            self.members.push((start, Value::Until(last)));
        }
        Some(())
    }
}

/// All elements of a set, or why they are not known.
pub(crate) enum Dumped {
    /// Exactly those that the kernel has.
    All(elements::Elements),
    /// One of them is nothing that this crate writes.
    Foreign,
    /// Some came twice, so others may be missing.
    ///
    /// After a large commit the kernel grows the hash table of a set in the background
    /// (`lib/rhashtable.c`), and each message of a dump goes on after as many elements as were sent so far,
    /// in the order of then (`nf_tables_dump_set`). It sends at least as many as there are: when none came
    /// twice, none is missing. The generation does not tell, since the set is the same.
    Torn,
}

/// `NFT_MSG_NEWOBJ`: a counter of the table.
pub(crate) fn counter(message: &Message<'_>, table: &str) -> Option<(Name, Counter)> {
    let kinds: Kinds<'_, 9> = by_kind(message.attributes());
    if kinds.get(NFTA_OBJ_TABLE)?.text() != table || kinds.u32(NFTA_OBJ_TYPE)? != NFT_OBJECT_COUNTER {
        return None;
    }
    let data: Kinds<'_, 3> = by_kind(kinds.get(NFTA_OBJ_DATA)?.nested());
    let number = |kind| data.get(kind).and_then(|attribute| attribute.u64()).unwrap_or(0);
    let counter = Counter {
        comment: comment(kinds.get(NFTA_OBJ_USERDATA), NFTNL_UDATA_OBJ_COMMENT),
        packets: number(NFTA_COUNTER_PACKETS),
        bytes: number(NFTA_COUNTER_BYTES),
    };
    Some((name(kinds.get(NFTA_OBJ_NAME))?, counter))
}

fn name(attribute: Option<Attribute<'_>>) -> Option<Name> {
    Some(attribute?.text().into())
}

/// The comment among userdata: type, length, text with NUL.
fn comment(attribute: Option<Attribute<'_>>, kind: u8) -> Option<String> {
    let mut rest = attribute?.data;
    while let [found, len, tail @ ..] = rest {
        let len = usize::from(*len);
        let data = tail.get(..len)?;
        if *found == kind {
            let end = data.iter().position(|byte| *byte == 0).unwrap_or(len);
            return Some(String::from_utf8_lossy(&data[..end]).into_owned());
        }
        rest = tail.get(len..)?;
    }
    None
}
