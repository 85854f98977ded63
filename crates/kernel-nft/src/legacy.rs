//! Tables of the older iptables (`iptables-legacy`), which are no tables of nf_tables and not seen by it.

use std::io;

use crate::expr::IpVersion;

/// Names of the older tables that are in use in the network namespace of the calling thread. None where the kernel
/// has no such tables.
///
/// # Errors
/// When they cannot be read: the kernel lets only root.
pub fn tables(version: IpVersion) -> io::Result<Vec<String>> {
    // KERNEL: /proc/net is that of the process; only thread-self is the thread that may have moved.
    let path = match version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What remains to be done by hand where such tables are in use, in words for the operator: the chains of `whose` in
/// `tables` cannot be removed from here. `chains` is an extended regular expression of what their names begin with.
/// Empty where no such table is in use.
pub fn remaining(whose: &str, tables: &[&str], chains: &str) -> String {
    let mut text = String::new();
    for (version, program) in [(IpVersion::V4, "iptables-legacy"), (IpVersion::V6, "ip6tables-legacy")] {
        let in_use = self::tables(version);
        for table in tables {
            text += &match &in_use {
                Ok(in_use) if in_use.iter().all(|one| one != table) => continue,
                Ok(_) => {
                    format!("{program} has a table {table} as well, which cannot be looked into from here.")
                }
                Err(error) => {
                    format!("Whether {program} has a table {table} as well cannot be told: {error}.")
                }
            };
            let command = removal(program, table, chains);
            text += &format!(
                " If {whose} used it, remove its chains with\n  {command}\nand run this again for its ipsets.\n"
            );
        }
    }
    text
}

/// A command line for a shell that removes chains, and the rules that lead to them, in one transaction. It names what
/// goes and nothing else, so that what others change meanwhile is not lost.
fn removal(program: &str, table: &str, chains: &str) -> String {
    format!(
        "{program}-save -t {table} | awk '\
         /^:{chains}/ {{ sub(/^:/, \"\", $1); flush = flush \":\" $1 \" - [0:0]\\n\"; gone = gone \"-X \" $1 \"\\n\" }} \
         /^-A / && !/^-A {chains}/ && / -[jg] {chains}[^ ]*$/ {{ sub(/^-A/, \"-D\"); jumps = jumps $0 \"\\n\" }} \
         END {{ printf \"*{table}\\n%s%s%sCOMMIT\\n\", flush, jumps, gone }}' | {program}-restore -w --noflush"
    )
}
