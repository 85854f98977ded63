//! The kernel's nf_tables as [`Nftables`].

mod chains;

use std::collections::BTreeMap;
use std::io;

use nix::libc;

pub(crate) use self::chains::ChainsError;
use crate::describe::describe;
use crate::netlink::{Answer, DumpError, Netlink};
use crate::ruleset::{Chain, Counter, DataType, Family, Key, Name, Op, Rule, Ruleset, Set, TableFlags};
use crate::transaction::{CommitError, Error, Nftables, Observed, Ownership, Transaction};
use crate::wire::decode::{self, Dumped, Elements};
use crate::wire::encode::{Batch, Subject, Unwritable, element_key};
use crate::wire::uapi::*;
use crate::wire::{Message, Writer};

/// How often a table is read again because it, or the order of a set, changed meanwhile.
const ATTEMPTS: u32 = 20;
const OBSERVING: &str = "reading nf_tables";
const COMMITTING: &str = "changing nf_tables";

/// A conversation with nf_tables in one network namespace.
///
/// A table with the flag `owner` belongs to the socket that made it: keep the socket as long as the process
/// lives.
pub struct Socket {
    netlink: Netlink,
    /// Linux ≥ 6.10 answers BATCH_END, which proves that the transaction was carried out.
    end_ack: bool,
}

impl Socket {
    /// Opens a conversation in the network namespace of the calling thread; it stays there.
    ///
    /// # Errors
    /// [`io::Error`] when there is no socket to be had or the process lacks `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Self { netlink: Netlink::open()?, end_ack: true };
        socket.end_ack = socket.answers_batch_end()?;
        Ok(socket)
    }

    /// Talks to the kernel as if it were older than 6.10, so that tests on newer kernels cover that way too.
    #[doc(hidden)]
    pub fn without_end_ack(mut self) -> Self {
        self.end_ack = false;
        self
    }

    /// An empty batch changes nothing; only newer kernels answer its end.
    fn answers_batch_end(&mut self) -> io::Result<bool> {
        let name: Name = "-".into();
        let nothing = Transaction { family: Family::Inet, table: &name, ops: &[], generation: None };
        let batch = Batch::encode(&nothing, self.netlink.next_sequence(), true)
            .map_err(|unwritable| io::Error::other(unwritable.what))?;
        self.netlink.take_sequences(batch.sequences());
        self.netlink.send(batch.bytes())?;
        let (answers, _) = self.netlink.drain_answers()?;
        for answer in answers {
            match (batch.subject(answer.sequence), answer.errno) {
                (Subject::End, 0) => return Ok(true),
                (_, 0) => {}
                (_, errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Ok(false)
    }

    /// Asks for one kind of object and reads all answers.
    fn dump(
        &mut self,
        kind: u16,
        family: Family,
        attributes: &[(u16, &str)],
        each: impl FnMut(&Message<'_>),
    ) -> Result<(), DumpError> {
        let mut writer = Writer::with_capacity(64);
        let sequence = self.netlink.next_sequence();
        let start = writer.message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, family.number(), 0);
        for (attribute, text) in attributes {
            writer.text(*attribute, text);
        }
        if kind == NFT_MSG_GETOBJ {
            writer.number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        }
        writer.end_message(start);
        self.netlink.request(writer.bytes(), true, each)
    }

    fn generation(&mut self) -> Result<u32, DumpError> {
        let mut writer = Writer::with_capacity(32);
        let sequence = self.netlink.next_sequence();
        let start = writer.message(NFT_MSG_GETGEN, NLM_F_REQUEST, sequence, 0, 0);
        writer.end_message(start);
        let mut generation = None;
        self.netlink.request(writer.bytes(), false, |message| {
            generation = decode::generation(message).map(|found| found.id);
        })?;
        generation.ok_or(DumpError::Malformed("a generation without a number"))
    }

    fn table(&mut self, family: Family, table: &str) -> Result<Option<decode::TableFound>, DumpError> {
        let mut writer = Writer::with_capacity(64);
        let sequence = self.netlink.next_sequence();
        let start = writer.message(NFT_MSG_GETTABLE, NLM_F_REQUEST, sequence, family.number(), 0);
        writer.text(NFTA_TABLE_NAME, table);
        writer.end_message(start);
        let mut found = None;
        let result = self.netlink.request(writer.bytes(), false, |message| {
            found = decode::table(message, family);
        });
        match result {
            Ok(()) => found.map(Some).ok_or(DumpError::Malformed("a table without a name")),
            Err(DumpError::Refused(libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One attempt to read a table.
    fn read_table(&mut self, family: Family, table: &str) -> Result<Option<Observed>, DumpError> {
        let generation = self.generation()?;
        let observed = match self.table(family, table)? {
            None => None,
            Some(found) => {
                let ownership = ownership(&found, self.portid());
                let mut ruleset = Ruleset::new(found.table);
                ruleset.chains = self.chains(family, table)?;
                ruleset.sets = self.sets(family, table)?;
                ruleset.counters = self.counters(family, table)?;
                Some(Observed { ruleset, generation, ownership })
            }
        };
        // Each dump is consistent in itself (NLM_F_DUMP_INTR); this makes them so among each other.
        if self.generation()? != generation {
            return Err(DumpError::Interrupted);
        }
        Ok(observed)
    }

    fn chains(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Chain>, DumpError> {
        let mut chains = BTreeMap::new();
        self.dump(NFT_MSG_GETCHAIN, family, &[(NFTA_CHAIN_TABLE, table)], |message| {
            if message.family() == Some(family.number()) {
                chains.extend(decode::chain(message, table));
            }
        })?;
        let mut rules: Vec<(Name, Rule)> = Vec::new();
        self.dump(NFT_MSG_GETRULE, family, &[(NFTA_RULE_TABLE, table)], |message| {
            if message.family() == Some(family.number()) {
                rules.extend(decode::rule(message, table));
            }
        })?;
        for (name, rule) in rules {
            if let Some(chain) = chains.get_mut(&name) {
                chain.rules.push(rule);
            }
        }
        Ok(chains)
    }

    fn sets(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Set>, DumpError> {
        let mut sets = BTreeMap::new();
        self.dump(NFT_MSG_GETSET, family, &[(NFTA_SET_TABLE, table)], |message| {
            if message.family() == Some(family.number()) {
                sets.extend(decode::set(message, table));
            }
        })?;
        for (name, set) in &mut sets {
            if set.spec.key == [DataType::Foreign] {
                continue;
            }
            let mut elements = Elements::default();
            let attributes = [(NFTA_SET_ELEM_LIST_TABLE, table), (NFTA_SET_ELEM_LIST_SET, name)];
            self.dump(NFT_MSG_GETSETELEM, family, &attributes, |message| elements.add(message, &set.spec))?;
            match elements.finish() {
                Dumped::All(elements) => set.elements = elements,
                Dumped::Foreign => set.spec.key = vec![DataType::Foreign],
                Dumped::Torn => return Err(DumpError::Interrupted),
            }
        }
        Ok(sets)
    }

    fn counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, DumpError> {
        let mut counters = BTreeMap::new();
        self.dump(NFT_MSG_GETOBJ, family, &[(NFTA_OBJ_TABLE, table)], |message| {
            if message.family() == Some(family.number()) {
                counters.extend(decode::counter(message, table));
            }
        })?;
        Ok(counters)
    }

    /// Asks for one element: no dump, so nobody who writes meanwhile disturbs it.
    fn element(&mut self, family: Family, table: &str, set: &str, key: &Key) -> Result<bool, DumpError> {
        let mut writer = Writer::with_capacity(128);
        let sequence = self.netlink.next_sequence();
        let start = writer.message(NFT_MSG_GETSETELEM, NLM_F_REQUEST, sequence, family.number(), 0);
        writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
        writer.text(NFTA_SET_ELEM_LIST_SET, set);
        let list = writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS);
        let element = writer.nest(NFTA_LIST_ELEM);
        element_key(&mut writer, key);
        writer.end_nest(element);
        writer.end_nest(list);
        writer.end_message(start);
        match self.netlink.request(writer.bytes(), false, |_| {}) {
            Ok(()) => Ok(true),
            Err(DumpError::Refused(libc::ENOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Repeats an attempt to read as long as others write.
    fn settled<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, DumpError>) -> Result<T, Error> {
        for _ in 0..ATTEMPTS {
            match attempt(self) {
                Ok(result) => return Ok(result),
                // A set or table that went away between two dumps.
                Err(DumpError::Interrupted | DumpError::Refused(libc::ENOENT)) => {}
                Err(DumpError::Refused(errno)) => {
                    return Err(Error::Io {
                        context: OBSERVING,
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
                Err(DumpError::Malformed(what)) => return Err(Error::Malformed { context: OBSERVING, what }),
                Err(DumpError::Io(source)) => return Err(Error::Io { context: OBSERVING, source }),
            }
        }
        Err(Error::Unstable { attempts: ATTEMPTS })
    }

    /// Sends a batch and reads what the kernel made of it; `describe` says an op in words.
    fn send_batch(
        &mut self,
        batch: Result<Batch, Unwritable>,
        describe: impl Fn(usize) -> String,
    ) -> Result<(), CommitError> {
        let failed = |source| CommitError::Io { context: COMMITTING, source };
        let batch = batch.map_err(|Unwritable { op, what }| CommitError::Invalid {
            op,
            description: describe(op),
            what,
        })?;
        self.netlink.take_sequences(batch.sequences());
        self.netlink.send(batch.bytes()).map_err(failed)?;
        let (answers, _lost) = self.netlink.drain_answers().map_err(failed)?;
        self.judge(&batch, &answers, describe)
    }

    /// What the answers to a batch say about it.
    fn judge(
        &self,
        batch: &Batch,
        answers: &[Answer],
        describe: impl Fn(usize) -> String,
    ) -> Result<(), CommitError> {
        let failure = answers.iter().filter(|answer| answer.errno != 0).find_map(|answer| {
            let errno = answer.errno;
            Some(match batch.subject(answer.sequence) {
                Subject::Stranger => return None,
                Subject::Begin if errno == libc::ERESTART => CommitError::GenerationChanged,
                Subject::Begin if errno == libc::EPERM => {
                    CommitError::Io { context: COMMITTING, source: io::Error::from_raw_os_error(errno) }
                }
                Subject::Begin | Subject::End => CommitError::Aborted { errno },
                Subject::Op(op) if errno == libc::EPERM => {
                    CommitError::NotOwner { op, description: describe(op) }
                }
                Subject::Op(op) => {
                    CommitError::Refused { op, errno, offset: answer.offset, description: describe(op) }
                }
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        let confirmed = answers.iter().any(|answer| {
            answer.errno == 0
                && if self.end_ack {
                    batch.subject(answer.sequence) == Subject::End
                } else {
                    batch.is_last_change(answer.sequence)
                }
        });
        if confirmed { Ok(()) } else { Err(CommitError::Unconfirmed) }
    }
}

impl Nftables for Socket {
    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error> {
        self.settled(|socket| socket.read_table(family, table))
    }

    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        self.settled(|socket| socket.counters(family, table))
    }

    fn has_element(&mut self, family: Family, table: &str, set: &str, key: &Key) -> Result<bool, Error> {
        self.settled(|socket| socket.element(family, table, set, key))
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError> {
        if transaction.ops.iter().all(Op::is_nothing) {
            return Ok(());
        }
        let describe = |op: usize| transaction.ops.get(op).map(describe).unwrap_or_default();
        let batch = Batch::encode(transaction, self.netlink.next_sequence(), self.end_ack);
        self.send_batch(batch, describe)
    }

    fn portid(&self) -> u32 {
        self.netlink.portid()
    }
}

fn ownership(found: &decode::TableFound, portid: u32) -> Ownership {
    match (found.table.flags, found.owner) {
        (TableFlags { owner: true, .. }, Some(owner)) if owner == portid => Ownership::Ours,
        (TableFlags { owner: true, .. }, Some(owner)) => Ownership::Other(owner),
        // The kernel takes the flag `owner` away when the owner's socket closes.
        (TableFlags { owner: false, persist: true, .. }, _) => Ownership::Orphaned,
        _ => Ownership::Free,
    }
}
