//! Who reaches whom: a table of probes, and the table that was expected.
//!
//! Rows are sources, columns destinations, as in the conformance data (cyclonus, Kubernetes' e2e).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::outcome::{Family, Outcome, Protocol};
use crate::probe::{Probe, TIMEOUT};

/// The outcomes for one protocol, port and IP version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// How it was probed.
    pub protocol: Protocol,
    /// Where to.
    pub port: u16,
    /// By which addresses.
    pub family: Family,
    /// Names of the rows.
    pub sources: Vec<String>,
    /// Names of the columns.
    pub destinations: Vec<String>,
    /// Row by row; `None` where source or destination has no address of the family.
    pub cells: Vec<Vec<Option<Outcome>>>,
}

impl Cluster {
    /// Probes every pod from every pod on every port, all at the same time; one matrix per port.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn matrix(&self, ports: &[(Protocol, u16)], family: Family) -> Result<Vec<Matrix>> {
        let pods: Vec<&str> = self.pods().iter().map(String::as_str).collect();
        self.matrix_between(&pods, &pods, ports, family)
    }

    /// As [`matrix`](Self::matrix), between given endpoints: pods, nodes, `outside`, or the text of an
    /// address of the outside host.
    ///
    /// # Errors
    /// When a name is unknown, or the process has no file descriptors left.
    pub fn matrix_between(
        &self,
        sources: &[&str],
        destinations: &[&str],
        ports: &[(Protocol, u16)],
        family: Family,
    ) -> Result<Vec<Matrix>> {
        let mut probes = Vec::new();
        let mut matrices = Vec::new();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (protocol, port) in ports.iter().copied() {
            for from in sources {
                let speaks = self.endpoint(from)?.address(family).is_some();
                for to in destinations {
                    if let Some(to) = self.endpoint(to)?.address(family).filter(|_| speaks) {
                        probes.push(Probe { from: (*from).into(), to, protocol, port });
                    }
                }
            }
        }
        let mut outcomes = self.probe_all(&probes, TIMEOUT)?.into_iter();
        for (protocol, port) in ports.iter().copied() {
            let mut cells = Vec::new();
            for from in sources {
                let speaks = self.endpoint(from)?.address(family).is_some();
                let mut row = Vec::new();
                for to in destinations {
                    let probed = speaks && self.endpoint(to)?.address(family).is_some();
                    row.push(if probed { outcomes.next() } else { None });
                }
                cells.push(row);
            }
            let (sources, destinations) = (owned(sources), owned(destinations));
            matrices.push(Matrix { protocol, port, family, sources, destinations, cells });
        }
        Ok(matrices)
    }
}

impl Matrix {
    /// One cell by names.
    #[must_use]
    pub fn cell(&self, from: &str, to: &str) -> Option<&Outcome> {
        let row = self.sources.iter().position(|name| name == from)?;
        let column = self.destinations.iter().position(|name| name == to)?;
        self.cells.get(row)?.get(column)?.as_ref()
    }

    /// The rows in the notation of the conformance data: `.` connects, `X` doesn't, `-` not probed.
    #[must_use]
    pub fn rows(&self) -> Vec<String> {
        let cell = |cell: &Option<Outcome>| match cell {
            None => '-',
            Some(outcome) if outcome.is_connected() => '.',
            Some(_) => 'X',
        };
        self.cells.iter().map(|row| row.iter().map(cell).collect()).collect()
    }

    /// The cells that are not as expected. Cells that weren't probed are wrong where something is expected.
    #[must_use]
    pub fn wrong(&self, expected: &Expected) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        for ((from, to), connects) in &expected.cells {
            let outcome = self.cell(from, to);
            // Answered by another pod is as bad as not answered.
            let good = match (connects, outcome) {
                (true, Some(Outcome::Connected(answer))) => {
                    answer.server.is_empty() || answer.server == *to || !to.contains('/')
                }
                (false, Some(outcome)) => !outcome.is_connected(),
                _ => false,
            };
            if !good {
                let (from, to, outcome) = (from.clone(), to.clone(), outcome.cloned());
                wrong.push(Wrong { from, to, connects: *connects, outcome });
            }
        }
        wrong
    }

    /// Fails with the whole table and the wrong cells when something is not as expected.
    ///
    /// # Errors
    /// When at least one cell is wrong.
    pub fn check(&self, expected: &Expected) -> Result<()> {
        let wrong = self.wrong(expected);
        let lines: String = wrong.iter().take(20).fold(String::new(), |mut lines, wrong| {
            let _ = writeln!(lines, "  {wrong}");
            lines
        });
        ensure!(wrong.is_empty(), "{} cells are wrong:\n{lines}{self}", wrong.len());
        Ok(())
    }

    /// The table as text of one line per source; cells that differ from `before` carry a `*`. With `colour`,
    /// ANSI colours for terminals.
    #[must_use]
    pub fn render(&self, before: Option<&Self>, colour: bool) -> String {
        let first = self.sources.iter().map(String::len).max().unwrap_or(0);
        let mut text = format!("{:first$} ", "");
        for name in &self.destinations {
            let _ = write!(text, " {name:>3}");
        }
        for (from, row) in self.sources.iter().zip(&self.cells) {
            let _ = write!(text, "\n{from:<first$} ");
            for (to, cell) in self.destinations.iter().zip(row) {
                let symbol = cell.as_ref().map_or('-', Outcome::symbol);
                let old = before.and_then(|before| before.cell(from, to)).map(Outcome::symbol);
                let changed = old.is_some_and(|old| old != symbol);
                let mark = if changed { "*" } else { " " };
                // Under the middle of its heading; the mark takes one column more.
                let width = to.len().max(3);
                let (left, right) = ((width - 1) / 2 + 1, width - 1 - (width - 1) / 2);
                let shown = format!("{symbol}{mark}");
                let shown = if colour { paint(symbol, changed, &shown) } else { shown };
                let _ = write!(text, "{:left$}{shown}{:rest$}", "", "", rest = right.saturating_sub(1));
            }
            text.truncate(text.trim_end_matches(' ').len());
        }
        text.push('\n');
        text
    }
}

fn paint(symbol: char, changed: bool, shown: &str) -> String {
    let colour = match symbol {
        '.' => "32",
        'X' => "31",
        '-' => "90",
        _ => "33",
    };
    let weight = if changed { "1;7;" } else { "" };
    format!("\x1b[{weight}{colour}m{shown}\x1b[0m")
}

impl fmt::Display for Matrix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} {} {:?}", self.protocol, self.port, self.family)?;
        out.write_str(&self.render(None, false))
    }
}

/// What a matrix should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    cells: BTreeMap<(String, String), bool>,
}

impl Expected {
    /// Expects nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads rows of the conformance data: row and column i are `order[i]`; `.` connects, `X` is blocked,
    /// `?` and `-` are not compared.
    ///
    /// # Errors
    /// When the table isn't square in `order`, or holds another character.
    pub fn parse<S: AsRef<str>, R: AsRef<str>>(order: &[S], rows: &[R]) -> Result<Self> {
        ensure!(order.len() == rows.len(), "{} names, {} rows", order.len(), rows.len());
        let mut expected = Self::new();
        for (from, row) in order.iter().zip(rows) {
            let row = row.as_ref();
            ensure!(row.chars().count() == order.len(), "row {row:?} hasn't {} cells", order.len());
            for (to, cell) in order.iter().zip(row.chars()) {
                match cell {
                    '.' => expected.set(from.as_ref(), to.as_ref(), true),
                    'X' => expected.set(from.as_ref(), to.as_ref(), false),
                    '?' | '-' => {}
                    other => anyhow::bail!("cell {other:?} in row {row:?}"),
                }
            }
        }
        Ok(expected)
    }

    /// Expects the same rule for all pairs: `connects(from, to)`.
    #[must_use]
    pub fn by<'a>(
        sources: &[&'a str],
        destinations: &[&'a str],
        connects: impl Fn(&'a str, &'a str) -> bool,
    ) -> Self {
        let mut expected = Self::new();
        for from in sources {
            for to in destinations {
                expected.set(from, to, connects(from, to));
            }
        }
        expected
    }

    /// Expects one cell.
    pub fn set(&mut self, from: &str, to: &str, connects: bool) {
        self.cells.insert((from.to_owned(), to.to_owned()), connects);
    }
}

/// A cell that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Row.
    pub from: String,
    /// Column.
    pub to: String,
    /// What was expected: that it connects, or that it doesn't.
    pub connects: bool,
    /// What came; `None`: it wasn't probed.
    pub outcome: Option<Outcome>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = if self.connects { "should connect" } else { "should be blocked" };
        write!(out, "{} -> {} {expected}: ", self.from, self.to)?;
        match &self.outcome {
            Some(outcome) => write!(out, "{outcome}"),
            None => out.write_str("not probed"),
        }
    }
}
