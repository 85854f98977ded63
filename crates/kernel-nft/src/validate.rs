//! What the kernel checks of a table as a whole, once all changes of a transaction are made
//! (`nft_table_validate`): jumps are not nested too deep, and statements stand only where they work.

use std::collections::{HashMap, HashSet};

use nix::libc;

use crate::expr::{Expr, NatKind};
use crate::ruleset::{BaseChain, ChainType, Hook, Name, Ruleset};

/// `NFT_JUMP_STACK_SIZE` of include/net/netfilter/nf_tables.h.
const JUMP_STACK_SIZE: usize = 16;
/// `NF_IP_PRI_CONNTRACK` of include/uapi/linux/netfilter_ipv4.h.
const PRIORITY_CONNTRACK: i32 = -200;

/// Checks every chain that a base chain leads to. `Err` is a positive `errno`.
pub(crate) fn validate(ruleset: &Ruleset) -> Result<(), i32> {
    let mut depths = HashMap::new();
    for (name, chain) in &ruleset.chains {
        let Some(base) = &chain.base else { continue };
        // From each base chain jumps may be nested 16 deep at most; a circle is deeper than that.
        if depth(ruleset, name, 0, &mut depths)? > JUMP_STACK_SIZE {
            return Err(libc::EMLINK);
        }
        places(ruleset, name, base, &mut HashSet::new())?;
    }
    Ok(())
}

/// KERNEL: nft_nat_ipv4.c, nft_chain_route.c, nf_tables_api.c (`nft_chain_parse_hook`): hooks that the type is
/// for, and nat only after conntrack. `Err` is a positive `errno`.
pub(crate) fn check_base(base: &BaseChain) -> Result<(), i32> {
    let fits = match base.kind {
        ChainType::Nat => base.hook != Hook::Forward && base.priority > PRIORITY_CONNTRACK,
        ChainType::Route => base.hook == Hook::Output,
        ChainType::Filter | ChainType::Foreign => true,
    };
    if fits { Ok(()) } else { Err(libc::EOPNOTSUPP) }
}

/// Chains nested below and with `name`.
fn depth(
    ruleset: &Ruleset,
    name: &Name,
    level: usize,
    known: &mut HashMap<Name, usize>,
) -> Result<usize, i32> {
    if let Some(depth) = known.get(name) {
        return Ok(*depth);
    }
    if level > JUMP_STACK_SIZE {
        return Err(libc::EMLINK);
    }
    let mut deepest = 0;
    for target in targets(ruleset, name) {
        deepest = deepest.max(depth(ruleset, &target, level + 1, known)?);
    }
    known.insert(name.clone(), deepest + 1);
    Ok(deepest + 1)
}

/// Checks the statements of `name` and of all chains that it leads to.
fn places(ruleset: &Ruleset, name: &Name, base: &BaseChain, seen: &mut HashSet<Name>) -> Result<(), i32> {
    if !seen.insert(name.clone()) {
        return Ok(());
    }
    if !expressions(ruleset, name).all(|expression| works_in(expression, base)) {
        return Err(libc::EOPNOTSUPP);
    }
    targets(ruleset, name).try_for_each(|target| places(ruleset, &target, base, seen))
}

/// KERNEL: `nft_*_validate` of nft_masq.c, nft_nat.c, nft_redir.c, nft_reject.c.
fn works_in(expression: &Expr, base: &BaseChain) -> bool {
    let nat_at = |hooks: &[Hook]| base.kind == ChainType::Nat && hooks.contains(&base.hook);
    match expression {
        Expr::Masquerade(_) => nat_at(&[Hook::Postrouting]),
        Expr::Nat { kind: NatKind::Source, .. } => nat_at(&[Hook::Postrouting, Hook::Input]),
        Expr::Nat { kind: NatKind::Destination, .. } | Expr::Redirect { .. } => {
            nat_at(&[Hook::Prerouting, Hook::Output])
        }
        Expr::Reject(_) => base.hook != Hook::Postrouting,
        _ => true,
    }
}

fn expressions<'a>(ruleset: &'a Ruleset, name: &Name) -> impl Iterator<Item = &'a Expr> + use<'a> {
    let rules = ruleset.chains.get(name).map(|chain| chain.rules.as_slice()).unwrap_or_default();
    rules.iter().flat_map(|rule| &rule.expressions)
}

/// Chains that the rules of `name` lead to.
fn targets<'a>(ruleset: &'a Ruleset, name: &Name) -> impl Iterator<Item = Name> + use<'a> {
    expressions(ruleset, name).flat_map(move |expression| {
        let (direct, mapped) = match expression {
            Expr::Verdict(verdict) => (verdict.target(), None),
            Expr::Lookup { set, verdict_map: true, .. } => (None, ruleset.sets.get(set)),
            _ => (None, None),
        };
        let mapped = mapped.into_iter().flat_map(|set| set.elements.values());
        direct.into_iter().cloned().chain(mapped.filter_map(|value| value.target().cloned()))
    })
}
