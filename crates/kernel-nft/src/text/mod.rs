//! Rulesets and changes as text, in the words of `nft`.
//!
//! [`render`] gives byte for byte what `nft list table` of nft 1.0.6 prints for a table of the inet family
//! that was made from the ruleset by [`create`](crate::create); and `nft -f` takes it.

mod rule;
mod translation;
mod value;

use std::fmt::Write;

use crate::ruleset::{
    BaseChain, Chain, ChainType, Counter, DataType, Family, Hook, Key, MapsTo, Name, Op, Ruleset, Set,
    SetSpec, Table, Value,
};

pub use rule::rule;

/// The ruleset as `nft list table` prints it.
pub fn render(ruleset: &Ruleset) -> String {
    let mut blocks = Vec::new();
    blocks.extend(ruleset.counters.iter().map(|(name, counter)| counter_block(name, counter)));
    blocks.extend(ruleset.sets.iter().map(|(name, set)| set_block(name, set)));
    blocks.extend(ruleset.chains.iter().map(|(name, chain)| chain_block(ruleset.table.family, name, chain)));
    let mut text = format!("table {} {} {{\n", ruleset.table.family, ruleset.table.name);
    for property in table_properties(&ruleset.table) {
        text.extend(["\t", &property, "\n"]);
    }
    text.push_str(&blocks.join("\n"));
    text.push_str("}\n");
    text
}

/// Changes as `nft` commands, one a line. `ruleset` is the one that the changes lead to: it tells the table
/// and the types of the sets.
pub fn render_ops(ruleset: &Ruleset, ops: &[Op]) -> String {
    ops.iter().map(|op| command(ruleset, op) + "\n").collect()
}

fn command(ruleset: &Ruleset, op: &Op) -> String {
    let table = format!("{} {}", ruleset.table.family, ruleset.table.name);
    let elements = |verb: &str, set: &Name, elements: &[(Key, Value)]| {
        let texts = match ruleset.sets.get(set) {
            Some(known) => value::elements(&known.spec, elements.iter().cloned()),
            None => elements.iter().map(|(key, _)| value::hex(key.as_bytes())).collect(),
        };
        format!("{verb} element {table} {set} {{ {} }}", texts.join(", "))
    };
    match op {
        Op::AddTable(added) => format!("add table {table}{}", braces(&table_properties(added))),
        Op::DeleteTable => format!("delete table {table}"),
        Op::AddCounter(name, counter) => {
            format!("add counter {table} {name}{}", braces(&comment(counter.comment.as_deref())))
        }
        Op::DeleteCounter(name) => format!("delete counter {table} {name}"),
        Op::AddSet(name, spec) => {
            format!("add {} {table} {name}{}", set_word(spec), braces(&set_properties(spec)))
        }
        Op::DeleteSet(name) => format!("delete set {table} {name}"),
        Op::AddElements(set, added) => elements("add", set, added),
        Op::DeleteElements(set, deleted) => elements("delete", set, deleted),
        Op::AddChain(name, base, text) => {
            let mut properties: Vec<String> =
                base.iter().map(|base| base_chain(ruleset.table.family, base)).collect();
            // The policy ends with a semicolon of its own.
            properties.iter_mut().for_each(|base| base.truncate(base.len() - 1));
            properties.extend(comment(text.as_deref()));
            format!("add chain {table} {name}{}", braces(&properties))
        }
        Op::DeleteChain(name) => format!("delete chain {table} {name}"),
        Op::FlushChain(name) => format!("flush chain {table} {name}"),
        Op::AddRule(chain, added) => {
            format!("add rule {table} {chain} {}", rule(ruleset.table.family, added))
        }
    }
}

fn braces(properties: &[String]) -> String {
    if properties.is_empty() {
        return String::new();
    }
    format!(" {{ {}; }}", properties.join("; "))
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        })
    }
}

fn comment(text: Option<&str>) -> Vec<String> {
    text.map(|text| format!("comment \"{text}\"")).into_iter().collect()
}

fn table_properties(table: &Table) -> Vec<String> {
    let flags: Vec<&str> =
        [(table.flags.dormant, "dormant"), (table.flags.owner, "owner"), (table.flags.persist, "persist")]
            .into_iter()
            .filter_map(|(set, word)| set.then_some(word))
            .collect();
    let mut properties = Vec::new();
    if !flags.is_empty() {
        properties.push(format!("flags {}", flags.join(",")));
    }
    properties.extend(comment(table.comment.as_deref()));
    properties
}

fn counter_block(name: &Name, counter: &Counter) -> String {
    let mut text = format!("\tcounter {name} {{\n");
    push_lines(&mut text, &comment(counter.comment.as_deref()));
    let _ = writeln!(text, "\t\tpackets {} bytes {}\n\t}}", counter.packets, counter.bytes);
    text
}

fn set_word(spec: &SetSpec) -> &'static str {
    if spec.maps_to == MapsTo::Nothing { "set" } else { "map" }
}

fn set_properties(spec: &SetSpec) -> Vec<String> {
    let types = |fields: &[DataType]| {
        fields.iter().map(|field| value::type_name(*field)).collect::<Vec<_>>().join(" . ")
    };
    let maps_to = match &spec.maps_to {
        MapsTo::Nothing => String::new(),
        MapsTo::Verdict => " : verdict".to_owned(),
        MapsTo::Data(fields) => format!(" : {}", types(fields)),
    };
    let mut properties = vec![format!("type {}{maps_to}", types(&spec.key))];
    properties.extend(spec.size.map(|size| format!("size {size}")));
    if spec.interval {
        properties.push("flags interval".to_owned());
    }
    properties.extend(comment(spec.comment.as_deref()));
    properties
}

fn set_block(name: &Name, set: &Set) -> String {
    let mut text = format!("\t{} {name} {{\n", set_word(&set.spec));
    push_lines(&mut text, &set_properties(&set.spec));
    let elements = value::elements(&set.spec, set.elements.iter());
    if !elements.is_empty() {
        let per_line = value::elements_per_line(&set.spec);
        let lines: Vec<String> = elements.chunks(per_line).map(|line| line.join(", ")).collect();
        text.push_str("\t\telements = { ");
        text.push_str(&lines.join(",\n\t\t\t     "));
        text.push_str(" }\n");
    }
    text.push_str("\t}\n");
    text
}

fn chain_block(family: Family, name: &Name, chain: &Chain) -> String {
    let mut text = format!("\tchain {name} {{\n");
    push_lines(&mut text, &comment(chain.comment.as_deref()));
    if let Some(base) = &chain.base {
        push_lines(&mut text, &[base_chain(family, base)]);
    }
    for chain_rule in &chain.rules {
        push_lines(&mut text, &[rule(family, chain_rule)]);
    }
    text.push_str("\t}\n");
    text
}

fn push_lines(text: &mut String, lines: &[String]) {
    for line in lines {
        text.extend(["\t\t", line, "\n"]);
    }
}

fn base_chain(family: Family, base: &BaseChain) -> String {
    let kind = match base.kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
        ChainType::Route => "route",
        ChainType::Foreign => "foreign",
    };
    let hook = match base.hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
        Hook::Ingress => "ingress",
    };
    let priority = priority(family, base.hook, base.priority);
    format!("type {kind} hook {hook} priority {priority}; policy accept;")
}

/// Names of priorities, as far as nft 1.0.6 knows them at that hook: a distance of up to 10 is written as a
/// sum.
fn priority(family: Family, hook: Hook, priority: i32) -> String {
    let names: &[(&str, i32, Option<Hook>)] = match family {
        Family::Bridge => &[
            ("dstnat", -300, Some(Hook::Prerouting)),
            ("filter", -200, None),
            ("out", 100, Some(Hook::Output)),
            ("srcnat", 300, Some(Hook::Postrouting)),
        ],
        Family::Inet | Family::Ip | Family::Ip6 => &[
            ("raw", -300, None),
            ("mangle", -150, None),
            ("dstnat", -100, Some(Hook::Prerouting)),
            ("filter", 0, None),
            ("security", 50, None),
            ("srcnat", 100, Some(Hook::Postrouting)),
        ],
    };
    let near = names.iter().find(|(_, value, only)| {
        only.is_none_or(|only| only == hook) && priority.saturating_sub(*value).unsigned_abs() <= 10
    });
    match near {
        None => priority.to_string(),
        Some((name, value, _)) => match priority - value {
            0 => (*name).to_owned(),
            above @ 1.. => format!("{name} + {above}"),
            below => format!("{name} - {}", below.unsigned_abs()),
        },
    }
}
