//! What is committed ahead of the rest: chains that nothing jumps to yet, and what only they need.
//!
//! KERNEL: a transaction is not quite atomic for the packet that is under way in it. `nft_do_chain()`
//! (net/netfilter/nf_tables_core.c) reads the generation once, when the packet enters the base chain, and by it
//! chooses the rules of every chain that it comes to; `nft_lookup_eval()` reads it anew for each lookup. A packet
//! that comes before the change of generation to a base chain, and after it to the lookup in a verdict map, finds
//! the new element. The chain that this jumps to, if it came in the same transaction, has in the packet's
//! generation the rules that `nf_tables_addchain()` gave it: none. The packet falls through, as if its pod were
//! not isolated. Measured: 45 packets in 8,300 transactions, under a flood.
//!
//! ```text
//!  one transaction:  chain c2 { deny } , map { pod : jump c2 }     ─► pod : jump c2 ─► (empty) ─► accepted
//!  two:              chain c2 { deny }  │  map { pod : jump c2 }   ─► c2 has its rules in both generations
//! ```
//!
//! After the second transaction the rules of the first are in both generations (`nf_tables_commit_chain()`).

use std::collections::HashSet;

use crate::reference::Reference;
use crate::ruleset::{Name, Op};

/// What is there after the ops and was not before.
#[derive(Default)]
struct News<'a> {
    chains: HashSet<&'a Name>,
    sets: HashSet<&'a Name>,
    counters: HashSet<&'a Name>,
}

impl<'a> News<'a> {
    /// `None` if nothing can or needs to go ahead.
    fn of(ops: &'a [Op]) -> Option<Self> {
        let (mut new, mut deleted) = (Self::default(), Self::default());
        for op in ops {
            match op {
                Op::AddChain(name, None, _) => new.chains.insert(name),
                Op::AddSet(name, _) => new.sets.insert(name),
                Op::AddCounter(name, _) => new.counters.insert(name),
                Op::DeleteChain(name) => deleted.chains.insert(name),
                Op::DeleteSet(name) => deleted.sets.insert(name),
                Op::DeleteCounter(name) => deleted.counters.insert(name),
                Op::DeleteTable => return None,
                _ => false,
            };
        }
        new.chains.retain(|name| !deleted.chains.contains(name));
        new.sets.retain(|name| !deleted.sets.contains(name));
        new.counters.retain(|name| !deleted.counters.contains(name));
        // What is made anew under its name cannot be named before that.
        let exists = |reference: Reference<'_>| match reference {
            Reference::Chain(name) => !deleted.chains.contains(name),
            Reference::Set(name) => !deleted.sets.contains(name),
            Reference::Counter(name) => !deleted.counters.contains(name),
        };
        let all_exists = ops.iter().all(|op| match op {
            Op::AddRule(chain, rule) if new.chains.contains(chain) => rule.references().all(exists),
            Op::AddElements(set, elements) if new.sets.contains(set) => {
                elements.iter().filter_map(|(_, value)| value.target()).map(Reference::Chain).all(exists)
            }
            _ => true,
        });
        (all_exists && !new.chains.is_empty()).then_some(new)
    }

    fn goes_ahead(&self, op: &Op) -> bool {
        match op {
            Op::AddTable(_) => true,
            Op::AddCounter(name, _) => self.counters.contains(name),
            Op::AddSet(name, _) | Op::AddElements(name, _) => self.sets.contains(name),
            Op::AddChain(name, ..) | Op::AddRule(name, _) => self.chains.contains(name),
            _ => false,
        }
    }
}

/// Moves what is to be committed ahead to the front; the order stays otherwise.
pub(crate) fn move_ahead(mut ops: Vec<Op>) -> Vec<Op> {
    let Some(news) = News::of(&ops) else { return ops };
    let ahead: Vec<bool> = ops.iter().map(|op| news.goes_ahead(op)).collect();
    let mut places = ahead.into_iter();
    let (mut first, rest): (Vec<_>, Vec<_>) = ops.drain(..).partition(|_| places.next().unwrap_or_default());
    first.extend(rest);
    first
}

/// How many of the ops are to be committed in a transaction of their own, before the others; none if one
/// transaction will do.
pub(crate) fn count(ops: &[Op]) -> usize {
    let Some(news) = News::of(ops) else { return 0 };
    let ahead = ops.iter().take_while(|op| news.goes_ahead(op)).count();
    if ahead == ops.len() { 0 } else { ahead }
}
