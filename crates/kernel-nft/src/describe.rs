//! A change in a few words, for errors and logs; never its elements or rules in full.

use crate::ruleset::{MapsTo, Op};

/// The change and the object it is about.
pub(crate) fn describe(op: &Op) -> String {
    match op {
        Op::AddTable(table) => format!("add table {}", table.name),
        Op::DeleteTable => "delete table".to_owned(),
        Op::AddCounter(name, _) => format!("add counter {name}"),
        Op::DeleteCounter(name) => format!("delete counter {name}"),
        Op::AddSet(name, spec) => {
            format!("add {} {name}", if spec.maps_to == MapsTo::Nothing { "set" } else { "map" })
        }
        Op::DeleteSet(name) => format!("delete set {name}"),
        Op::AddElements(set, elements) => format!("add {} elements to {set}", elements.len()),
        Op::DeleteElements(set, elements) => format!("delete {} elements of {set}", elements.len()),
        Op::AddChain(name, _, _) => format!("add chain {name}"),
        Op::DeleteChain(name) => format!("delete chain {name}"),
        Op::FlushChain(name) => format!("flush chain {name}"),
        Op::AddRule(chain, rule) => match &rule.comment {
            Some(comment) => format!("add rule to chain {chain} ({comment})"),
            None => format!("add rule to chain {chain}"),
        },
    }
}
