//! The name servers of a resolv.conf(5).

use std::fs;
use std::path::Path;

use crate::spec::{CniError, Code, Dns};

/// Reads the file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Dns, CniError> {
    let text = fs::read_to_string(path).map_err(|error| {
        CniError::new(Code::Io, format!("reading resolvConf {}: {error}", path.display()))
    })?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_resolv_conf_are_taken_and_comments_are_not() {
        let dns = parse(
            "# nameserver 1.1.1.1\nnameserver 192.0.2.1\n search a.test b.test\noptions four ndots:5\n",
        );
        assert_eq!(dns.nameservers, ["192.0.2.1"]);
        assert_eq!(dns.search, ["a.test", "b.test"]);
        assert_eq!(dns.options, ["four", "ndots:5"]);
    }
}
