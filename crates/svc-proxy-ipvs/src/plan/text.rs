//! Virtual services as `ipvsadm -Sn` prints them and `ipvsadm -R` reads them.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use kernel_netlink::ipvs::{Command, Destination, Family, Flags, Forward, Protocol, Service, ServiceKey};

use super::Virtual;

/// The commands that make the virtual services.
pub fn render<'a>(virtuals: impl IntoIterator<Item = &'a Virtual>) -> String {
    let mut text = String::new();
    for wanted in virtuals {
        let key = wanted.service.key;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "-A {}", Head(&wanted.service));
        for to in wanted.destinations.iter() {
            let _ = writeln!(text, "-a {} {}", Key(key), To(&to));
        }
    }
    text
}

/// Commands for IPVS, a line each; what `ipvsadm` has no word for, in words.
pub fn render_commands(commands: &[Command]) -> String {
    let mut text = String::new();
    for command in commands {
        let _ = match command {
            Command::AddService(service) => writeln!(text, "-A {}", Head(service)),
            Command::SetService(service) => writeln!(text, "-E {}", Head(service)),
            Command::DeleteService(key) => writeln!(text, "-D {}", Key(*key)),
            Command::AddDestination(key, to) => writeln!(text, "-a {} {}", Key(*key), To(to)),
            Command::SetDestination(key, to) => writeln!(text, "-e {} {}", Key(*key), To(to)),
            Command::DeleteDestination(key, to) => {
                writeln!(text, "-d {} -r {}", Key(*key), at(to.address, to.port))
            }
            other => writeln!(text, "# {other}"),
        };
    }
    text
}

struct Key(ServiceKey);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ServiceKey::Address { protocol, address, port } => {
                let word = match protocol {
                    Protocol::UDP => "-u",
                    Protocol::SCTP => "--sctp-service",
                    _ => "-t",
                };
                write!(f, "{word} {}", at(address, port))
            }
            ServiceKey::Mark { family: Family::Ipv4, mark } => write!(f, "-f {mark}"),
            ServiceKey::Mark { family: Family::Ipv6, mark } => write!(f, "-f {mark} -6"),
        }
    }
}

struct Head<'a>(&'a Service);

impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Service { key, scheduler, flags, persistence } = self.0;
        write!(f, "{} -s {scheduler}", Key(*key))?;
        if let Some(persistence) = persistence {
            write!(f, " -p {}", persistence.timeout)?;
        }
        let words =
            [(Flags::SCHEDULER_1, "flag-1"), (Flags::SCHEDULER_2, "flag-2"), (Flags::SCHEDULER_3, "flag-3")];
        let words: Vec<_> =
            words.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, word)| word).collect();
        if words.is_empty() { Ok(()) } else { write!(f, " -b {}", words.join(",")) }
    }
}

struct To<'a>(&'a Destination);

impl fmt::Display for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Destination { key, forward, weight, .. } = self.0;
        let way = match forward {
            Forward::Masquerade => "-m",
            Forward::Tunnel(_) => "-i",
            Forward::Local | Forward::Route | Forward::Bypass => "-g",
        };
        write!(f, "-r {} {way} -w {weight}", at(key.address, key.port))
    }
}

fn at(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}
