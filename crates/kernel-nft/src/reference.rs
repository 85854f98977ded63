//! Which objects of a table name which others: what must exist first, and what must go first.

use crate::expr::{Expr, Verdict};
use crate::ruleset::{Name, Rule, Value};

/// An object named by a rule or an element. Chains, sets and counters have name spaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reference<'a> {
    Chain(&'a Name),
    Set(&'a Name),
    Counter(&'a Name),
}

impl Verdict {
    /// The chain that the verdict leads to.
    pub(crate) fn target(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

impl Value {
    /// The chain that an element of a verdict map leads to.
    pub(crate) fn target(&self) -> Option<&Name> {
        match self {
            Self::Verdict(verdict) => verdict.target(),
            Self::Member | Self::Until(_) | Self::Data(_) => None,
        }
    }
}

impl Rule {
    /// Everything that the rule names.
    pub(crate) fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        self.expressions.iter().filter_map(|expression| match expression {
            Expr::Verdict(verdict) => verdict.target().map(Reference::Chain),
            Expr::Lookup { set, .. } | Expr::Map { set, .. } => Some(Reference::Set(set)),
            Expr::CounterRef(counter) => Some(Reference::Counter(counter)),
            _ => None,
        })
    }
}
