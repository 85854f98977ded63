//! [`Op`]s as nf_tables messages, in one batch.
//!
//! ```text
//!  BATCH_BEGIN [generation] │ message of op 0 │ message of op 1 │ message of op 1 │ … │ BATCH_END
//!  sequence s                 s+1               s+2               s+3                   s+n+1
//! ```
//!
//! KERNEL: net/netfilter/nfnetlink.c takes a batch from one datagram only; what follows in another one is
//! no part of it. Hence one buffer.

use super::uapi::*;
use super::{Start, Writer, encode_expr};
use crate::expr::Verdict;
use crate::ruleset::{
    BaseChain, COMMENT_MAX, ChainType, Counter, DataType, Family, Hook, Key, MapsTo, Name, Op, Rule, SetSpec,
    Table, TableFlags, Value,
};
use crate::transaction::Transaction;

/// `NFT_NAME_MAXLEN` of nf_tables.h, without its NUL.
const NAME_MAX: usize = 255;
/// The nest of elements has a length of 16 bits; one element is far below the difference to 64 KiB.
const ELEMENTS_MAX: usize = 60_000;

/// A batch ready to be sent, and what its sequence numbers mean.
#[derive(Debug)]
pub(crate) struct Batch {
    writer: Writer,
    first_sequence: u32,
    /// Op of each message between BEGIN and END.
    op_of_message: Vec<u32>,
}

/// Which op cannot be written, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unwritable {
    pub(crate) op: usize,
    pub(crate) what: &'static str,
}

/// What a sequence number of an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Begin,
    Op(usize),
    End,
    /// Not of this batch.
    Stranger,
}

impl Batch {
    /// Writes the transaction. `end_ack` asks for an answer to BATCH_END (Linux ≥ 6.10), else for one to the
    /// last change.
    pub(crate) fn encode(
        transaction: &Transaction<'_>,
        first_sequence: u32,
        end_ack: bool,
    ) -> Result<Self, Unwritable> {
        Encoder::new(transaction.family, transaction.table, estimate(transaction.ops), first_sequence).batch(
            transaction.ops,
            transaction.generation,
            end_ack,
            Encoder::encode_op,
        )
    }

    /// Writes a transaction that removes what somebody else made; as [`Self::encode`].
    pub(crate) fn removals(
        family: Family,
        table: &Name,
        removals: &[Removal<'_>],
        first_sequence: u32,
        end_ack: bool,
    ) -> Result<Self, Unwritable> {
        let capacity = 64 + removals.len() * 96;
        Encoder::new(family, table, capacity, first_sequence).batch(
            removals,
            None,
            end_ack,
            Encoder::encode_removal,
        )
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    /// Sequence numbers used.
    pub(crate) fn sequences(&self) -> u32 {
        // Messages are at least 20 bytes of a buffer in memory: far below 2^32.
        self.op_of_message.len() as u32 + 2
    }

    /// True if `sequence` is that of the very last change, which kernels without END answers acknowledge.
    pub(crate) fn is_last_change(&self, sequence: u32) -> bool {
        !self.op_of_message.is_empty()
            && sequence.wrapping_sub(self.first_sequence) as usize == self.op_of_message.len()
    }

    /// What an answer is about.
    pub(crate) fn subject(&self, sequence: u32) -> Subject {
        let index = sequence.wrapping_sub(self.first_sequence) as usize;
        match index {
            0 => Subject::Begin,
            _ if index == self.op_of_message.len() + 1 => Subject::End,
            _ => self.op_of_message.get(index - 1).map_or(Subject::Stranger, |op| Subject::Op(*op as usize)),
        }
    }
}

/// Bytes that the ops will need, roughly, so that the buffer grows seldom.
fn estimate(ops: &[Op]) -> usize {
    64 + ops
        .iter()
        .map(|op| match op {
            Op::AddElements(_, elements) | Op::DeleteElements(_, elements) => 96 + elements.len() * 64,
            Op::AddRule(_, rule) => 96 + rule.expressions.len() * 64,
            _ => 128,
        })
        .sum::<usize>()
}

/// The removal of something by the name or number that the kernel knows it by, whatever it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Removal<'a> {
    Rule { chain: &'a Name, handle: u64 },
    RulesOf(&'a Name),
    Chain(&'a Name),
}

struct Encoder<'a> {
    writer: Writer,
    family: Family,
    table: &'a Name,
    sequence: u32,
    set_id: u32,
    op: usize,
    op_of_message: Vec<u32>,
    last: Option<Start>,
}

impl<'a> Encoder<'a> {
    fn new(family: Family, table: &'a Name, capacity: usize, first_sequence: u32) -> Self {
        Self {
            writer: Writer::with_capacity(capacity),
            family,
            table,
            sequence: first_sequence,
            set_id: 0,
            op: 0,
            op_of_message: Vec::new(),
            last: None,
        }
    }

    fn batch<T>(
        mut self,
        ops: &[T],
        generation: Option<u32>,
        end_ack: bool,
        encode: impl Fn(&mut Self, &T) -> Result<(), &'static str>,
    ) -> Result<Batch, Unwritable> {
        let first_sequence = self.sequence;
        self.op_of_message.reserve(ops.len());
        self.begin(generation);
        for (index, op) in ops.iter().enumerate() {
            self.op = index;
            let result = encode(&mut self, op);
            let overflow = self.writer.take_overflow();
            result
                .and(if overflow { Err("longer than a netlink attribute can be") } else { Ok(()) })
                .map_err(|what| Unwritable { op: index, what })?;
        }
        self.end(end_ack);
        Ok(Batch { writer: self.writer, first_sequence, op_of_message: self.op_of_message })
    }

    fn encode_removal(&mut self, removal: &Removal<'_>) -> Result<(), &'static str> {
        check_name(self.table)?;
        match removal {
            Removal::Rule { chain, handle } => {
                check_name(chain)?;
                let start = self.message(NFT_MSG_DELRULE, 0);
                self.writer.text(NFTA_RULE_TABLE, self.table);
                self.writer.text(NFTA_RULE_CHAIN, chain);
                self.writer.number(NFTA_RULE_HANDLE, *handle);
                self.writer.end_message(start);
                Ok(())
            }
            Removal::RulesOf(chain) => self.encode_op(&Op::FlushChain((*chain).clone())),
            Removal::Chain(chain) => self.encode_op(&Op::DeleteChain((*chain).clone())),
        }
    }

    fn begin(&mut self, generation: Option<u32>) {
        let start = self.bracket(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST);
        if let Some(generation) = generation {
            self.writer.number(NFNL_BATCH_GENID, generation);
        }
        self.writer.end_message(start);
    }

    fn end(&mut self, end_ack: bool) {
        if !end_ack && let Some(last) = self.last {
            self.writer.add_flags(last, NLM_F_ACK);
        }
        let flags = if end_ack { NLM_F_REQUEST | NLM_F_ACK } else { NLM_F_REQUEST };
        let start = self.bracket(NFNL_MSG_BATCH_END, flags);
        self.writer.end_message(start);
    }

    fn bracket(&mut self, kind: u16, flags: u16) -> Start {
        let start = self.writer.message(kind, flags, self.sequence, 0, NFNL_SUBSYS_NFTABLES);
        self.sequence = self.sequence.wrapping_add(1);
        start
    }

    fn message(&mut self, kind: u16, flags: u16) -> Start {
        let start = self.writer.message(kind, NLM_F_REQUEST | flags, self.sequence, self.family.number(), 0);
        self.sequence = self.sequence.wrapping_add(1);
        // Ops are values in memory: their index fits easily.
        self.op_of_message.push(self.op as u32);
        self.last = Some(start);
        start
    }

    fn encode_op(&mut self, op: &Op) -> Result<(), &'static str> {
        check_name(self.table)?;
        match op {
            Op::AddTable(table) => self.add_table(table),
            Op::DeleteTable => self.named(NFT_MSG_DELTABLE, 0, NFTA_TABLE_NAME, None),
            Op::AddCounter(name, counter) => self.add_counter(name, counter),
            Op::DeleteCounter(name) => self.delete_counter(name),
            Op::AddSet(name, spec) => self.add_set(name, spec),
            Op::DeleteSet(name) => self.named(NFT_MSG_DELSET, 0, NFTA_SET_TABLE, Some((NFTA_SET_NAME, name))),
            Op::AddElements(set, elements) => self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements),
            Op::DeleteElements(set, elements) => self.elements(NFT_MSG_DELSETELEM, 0, set, elements),
            Op::AddChain(name, base, comment) => self.add_chain(name, base.as_ref(), comment.as_deref()),
            Op::DeleteChain(name) => {
                self.named(NFT_MSG_DELCHAIN, 0, NFTA_CHAIN_TABLE, Some((NFTA_CHAIN_NAME, name)))
            }
            Op::FlushChain(name) => {
                self.named(NFT_MSG_DELRULE, 0, NFTA_RULE_TABLE, Some((NFTA_RULE_CHAIN, name)))
            }
            Op::AddRule(chain, rule) => self.add_rule(chain, rule),
        }
    }

    /// A message that only names something.
    fn named(
        &mut self,
        kind: u16,
        flags: u16,
        table_attribute: u16,
        object: Option<(u16, &Name)>,
    ) -> Result<(), &'static str> {
        let start = self.message(kind, flags);
        self.writer.text(table_attribute, self.table);
        if let Some((attribute, name)) = object {
            check_name(name)?;
            self.writer.text(attribute, name);
        }
        self.writer.end_message(start);
        Ok(())
    }

    fn add_table(&mut self, table: &Table) -> Result<(), &'static str> {
        if table.name != *self.table || table.family != self.family {
            return Err("another table than the transaction's");
        }
        let start = self.message(NFT_MSG_NEWTABLE, NLM_F_CREATE);
        self.writer.text(NFTA_TABLE_NAME, self.table);
        self.writer.number(NFTA_TABLE_FLAGS, table_flags(table.flags));
        if let Some(comment) = &table.comment {
            userdata(&mut self.writer, NFTA_TABLE_USERDATA, NFTNL_UDATA_TABLE_COMMENT, comment)?;
        }
        self.writer.end_message(start);
        Ok(())
    }

    fn add_counter(&mut self, name: &Name, counter: &Counter) -> Result<(), &'static str> {
        check_name(name)?;
        let start = self.message(NFT_MSG_NEWOBJ, NLM_F_CREATE | NLM_F_EXCL);
        self.writer.text(NFTA_OBJ_TABLE, self.table);
        self.writer.text(NFTA_OBJ_NAME, name);
        self.writer.number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        let data = self.writer.nest(NFTA_OBJ_DATA);
        self.writer.number(NFTA_COUNTER_BYTES, counter.bytes);
        self.writer.number(NFTA_COUNTER_PACKETS, counter.packets);
        self.writer.end_nest(data);
        if let Some(comment) = &counter.comment {
            userdata(&mut self.writer, NFTA_OBJ_USERDATA, NFTNL_UDATA_OBJ_COMMENT, comment)?;
        }
        self.writer.end_message(start);
        Ok(())
    }

    fn delete_counter(&mut self, name: &Name) -> Result<(), &'static str> {
        check_name(name)?;
        let start = self.message(NFT_MSG_DELOBJ, 0);
        self.writer.text(NFTA_OBJ_TABLE, self.table);
        self.writer.text(NFTA_OBJ_NAME, name);
        self.writer.number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        self.writer.end_message(start);
        Ok(())
    }

    fn add_set(&mut self, name: &Name, spec: &SetSpec) -> Result<(), &'static str> {
        check_name(name)?;
        check_spec(spec)?;
        let start = self.message(NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL);
        self.writer.text(NFTA_SET_TABLE, self.table);
        self.writer.text(NFTA_SET_NAME, name);
        let interval = if spec.interval { NFT_SET_INTERVAL } else { 0 };
        let map = if spec.maps_to == MapsTo::Nothing { 0 } else { NFT_SET_MAP };
        self.writer.number(NFTA_SET_FLAGS, interval | map);
        self.writer.number(NFTA_SET_KEY_TYPE, key_type(&spec.key));
        // At most 64 bytes, by check_spec.
        self.writer.number(NFTA_SET_KEY_LEN, spec.key_len() as u32);
        match &spec.maps_to {
            MapsTo::Nothing => {}
            MapsTo::Verdict => {
                self.writer.number(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT);
                self.writer.number(NFTA_SET_DATA_LEN, 0u32);
            }
            MapsTo::Data(fields) => {
                self.writer.number(NFTA_SET_DATA_TYPE, key_type(fields));
                // At most 64 bytes, by check_spec.
                self.writer.number(NFTA_SET_DATA_LEN, spec.data_len() as u32);
            }
        }
        if let Some(size) = spec.size {
            let desc = self.writer.nest(NFTA_SET_DESC);
            self.writer.number(NFTA_SET_DESC_SIZE, size);
            self.writer.end_nest(desc);
        }
        // The kernel wants an id, unique in the batch; lookups are by name.
        self.set_id = self.set_id.wrapping_add(1);
        self.writer.number(NFTA_SET_ID, self.set_id);
        self.writer.attribute(NFTA_SET_USERDATA, &set_userdata(spec)?);
        self.writer.end_message(start);
        Ok(())
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        set: &Name,
        elements: &[(Key, Value)],
    ) -> Result<(), &'static str> {
        check_name(set)?;
        let mut elements = elements.iter().peekable();
        while elements.peek().is_some() {
            let start = self.message(kind, flags);
            self.writer.text(NFTA_SET_ELEM_LIST_TABLE, self.table);
            self.writer.text(NFTA_SET_ELEM_LIST_SET, set);
            let list = self.writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS);
            while self.writer.since(list) < ELEMENTS_MAX
                && let Some((key, value)) = elements.next()
            {
                element(&mut self.writer, key, value)?;
            }
            self.writer.end_nest(list);
            self.writer.end_message(start);
        }
        Ok(())
    }

    fn add_chain(
        &mut self,
        name: &Name,
        base: Option<&BaseChain>,
        comment: Option<&str>,
    ) -> Result<(), &'static str> {
        check_name(name)?;
        let start = self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL);
        self.writer.text(NFTA_CHAIN_TABLE, self.table);
        self.writer.text(NFTA_CHAIN_NAME, name);
        if let Some(base) = base {
            let kind = match base.kind {
                ChainType::Filter => "filter",
                ChainType::Nat => "nat",
                ChainType::Route => "route",
                ChainType::Foreign => return Err("a chain of a type that can only be observed"),
            };
            self.writer.text(NFTA_CHAIN_TYPE, kind);
            self.writer.number(NFTA_CHAIN_POLICY, NF_ACCEPT);
            let hook = self.writer.nest(NFTA_CHAIN_HOOK);
            self.writer.number(NFTA_HOOK_HOOKNUM, hook_number(base.hook)?);
            self.writer.number(NFTA_HOOK_PRIORITY, base.priority);
            self.writer.end_nest(hook);
        }
        if let Some(comment) = comment {
            userdata(&mut self.writer, NFTA_CHAIN_USERDATA, NFTNL_UDATA_CHAIN_COMMENT, comment)?;
        }
        self.writer.end_message(start);
        Ok(())
    }

    fn add_rule(&mut self, chain: &Name, rule: &Rule) -> Result<(), &'static str> {
        check_name(chain)?;
        let start = self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
        self.writer.text(NFTA_RULE_TABLE, self.table);
        self.writer.text(NFTA_RULE_CHAIN, chain);
        let list = self.writer.nest(NFTA_RULE_EXPRESSIONS);
        for expression in &rule.expressions {
            encode_expr::expression(&mut self.writer, expression)?;
        }
        self.writer.end_nest(list);
        if let Some(comment) = &rule.comment {
            userdata(&mut self.writer, NFTA_RULE_USERDATA, NFTNL_UDATA_RULE_COMMENT, comment)?;
        }
        self.writer.end_message(start);
        Ok(())
    }
}

fn table_flags(flags: TableFlags) -> u32 {
    let owner = if flags.owner { NFT_TABLE_F_OWNER } else { 0 };
    let persist = if flags.persist { NFT_TABLE_F_PERSIST } else { 0 };
    let dormant = if flags.dormant { NFT_TABLE_F_DORMANT } else { 0 };
    owner | persist | dormant
}

/// `NF_INET_*`; the bridge family has the same numbers.
fn hook_number(hook: Hook) -> Result<u32, &'static str> {
    Ok(match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
        Hook::Ingress => return Err("a hook that needs a device"),
    })
}

/// One element; a range of a set of ranges is written as its start and, unless it goes to the end of the
/// space, the first key after it (`NFT_SET_ELEM_INTERVAL_END`).
fn element(writer: &mut Writer, key: &Key, value: &Value) -> Result<(), &'static str> {
    let start = writer.nest(NFTA_LIST_ELEM);
    element_key(writer, key);
    match value {
        Value::Member => writer.end_nest(start),
        Value::Verdict(verdict) => {
            let data = writer.nest(NFTA_SET_ELEM_DATA);
            encode_expr::verdict(writer, verdict);
            writer.end_nest(data);
            writer.end_nest(start);
        }
        Value::Data(data) => {
            let nest = writer.nest(NFTA_SET_ELEM_DATA);
            writer.attribute(NFTA_DATA_VALUE, data.as_bytes());
            writer.end_nest(nest);
            writer.end_nest(start);
        }
        Value::Until(last) => {
            writer.end_nest(start);
            if last.as_bytes().len() != key.as_bytes().len() || last < key {
                return Err("a range that ends before it begins");
            }
            if let Some(end) = last.successor() {
                let start = writer.nest(NFTA_LIST_ELEM);
                writer.number(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                element_key(writer, &end);
                writer.end_nest(start);
            }
        }
    }
    match value {
        Value::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => check_name(chain),
        _ => Ok(()),
    }
}

/// The key of an element, as a question for it has it too.
pub(crate) fn element_key(writer: &mut Writer, key: &Key) {
    let nest = writer.nest(NFTA_SET_ELEM_KEY);
    writer.attribute(NFTA_DATA_VALUE, key.as_bytes());
    writer.end_nest(nest);
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name.len() {
        0 => Err("an empty name"),
        1..=NAME_MAX if !name.contains('\0') => Ok(()),
        1..=NAME_MAX => Err("a name with a NUL in it"),
        _ => Err("a name longer than 255 bytes"),
    }
}

fn check_spec(spec: &SetSpec) -> Result<(), &'static str> {
    if spec.key.is_empty() || spec.key.contains(&DataType::Foreign) {
        return Err("a set of a type that can only be observed");
    }
    // NFT_DATA_VALUE_MAXLEN
    if spec.key_len() > 64 {
        return Err("a key longer than 64 bytes");
    }
    if spec.interval && (spec.key.len() > 1 || spec.key.iter().any(|field| field.is_host_order())) {
        return Err("ranges of a concatenation or of a number in host order");
    }
    if spec.interval && spec.maps_to != MapsTo::Nothing {
        return Err("a map of ranges");
    }
    if let MapsTo::Data(fields) = &spec.maps_to {
        if fields.is_empty() || fields.contains(&DataType::Foreign) {
            return Err("a map to a type that can only be observed");
        }
        if spec.data_len() > 64 {
            return Err("a value longer than 64 bytes");
        }
    }
    Ok(())
}

/// Types of the key as nft packs them: 6 bits each, the last field lowest (nft's src/datatype.c,
/// `TYPE_BITS`). The kernel only keeps the number.
fn key_type(fields: &[DataType]) -> u32 {
    fields.iter().fold(0, |packed, field| (packed << TYPE_BITS) | type_number(*field))
}

/// `TYPE_BITS` of nft's include/datatype.h.
pub(crate) const TYPE_BITS: u32 = 6;

/// `enum datatypes` of nft's include/datatype.h.
pub(crate) const fn type_number(field: DataType) -> u32 {
    match field {
        DataType::Foreign => 0,
        DataType::Ipv4Addr => 7,
        DataType::Ipv6Addr => 8,
        DataType::InetProto => 12,
        DataType::InetService => 13,
        DataType::IcmpType => 14,
        DataType::Mark => 19,
        DataType::Icmpv6Type => 29,
        DataType::Ifname => 41,
    }
}

/// `enum byteorder` of nft's include/datatype.h; 0 for a concatenation.
fn byte_order(fields: &[DataType]) -> u32 {
    match fields {
        [single] if single.is_host_order() => 1,
        [_] => 2,
        _ => 0,
    }
}

fn set_userdata(spec: &SetSpec) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(16);
    // nft reads these back as numbers of the host.
    push_udata(&mut bytes, NFTNL_UDATA_SET_KEYBYTEORDER, &byte_order(&spec.key).to_ne_bytes())?;
    let data_order = match &spec.maps_to {
        MapsTo::Nothing => None,
        MapsTo::Verdict => Some(0),
        MapsTo::Data(fields) => Some(byte_order(fields)),
    };
    if let Some(order) = data_order {
        push_udata(&mut bytes, NFTNL_UDATA_SET_DATABYTEORDER, &order.to_ne_bytes())?;
    }
    if let Some(comment) = &spec.comment {
        push_comment(&mut bytes, NFTNL_UDATA_SET_COMMENT, comment)?;
    }
    Ok(bytes)
}

fn userdata(writer: &mut Writer, attribute: u16, kind: u8, comment: &str) -> Result<(), &'static str> {
    let mut bytes = Vec::with_capacity(comment.len() + 3);
    push_comment(&mut bytes, kind, comment)?;
    writer.attribute(attribute, &bytes);
    Ok(())
}

fn push_comment(bytes: &mut Vec<u8>, kind: u8, comment: &str) -> Result<(), &'static str> {
    if comment.len() > COMMENT_MAX || comment.contains('\0') {
        return Err("a comment longer than 128 bytes or with a NUL in it");
    }
    let mut data = Vec::with_capacity(comment.len() + 1);
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    push_udata(bytes, kind, &data)
}

fn push_udata(bytes: &mut Vec<u8>, kind: u8, data: &[u8]) -> Result<(), &'static str> {
    let len = u8::try_from(data.len()).map_err(|_| "userdata longer than 255 bytes")?;
    bytes.extend_from_slice(&[kind, len]);
    bytes.extend_from_slice(data);
    Ok(())
}
