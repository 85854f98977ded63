//! Stale generation marks of tracked connections are cleared; `conntrack` is the witness.

use std::collections::BTreeMap;

use kernel_nft::conntrack::clear_marks;

use crate::namespace::{in_netns, run};

const MASK: u32 = 0x00ff_0000;

/// A tracked UDP flow with that mark.
fn flow(version: &str, port: u16, mark: u32) {
    let (source, destination) =
        if version == "ipv4" { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
    let (port, mark) = (port.to_string(), mark.to_string());
    run(
        "conntrack",
        &[
            "-I",
            "-p",
            "udp",
            "-s",
            source,
            "-d",
            destination,
            "--sport",
            &port,
            "--dport",
            "53",
            "-t",
            "600",
            "-m",
            &mark,
        ],
    );
}

/// Mark by family and source port.
fn marks() -> BTreeMap<(String, String), u32> {
    let mut marks = BTreeMap::new();
    for version in ["ipv4", "ipv6"] {
        for line in run("conntrack", &["-L", "-f", version, "-o", "extended"]).lines() {
            let field = |name: &str| {
                line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
            };
            if let (Some(port), Some(mark)) = (field("sport="), field("mark=")) {
                marks.insert((version.to_owned(), port), mark.parse().unwrap());
            }
        }
    }
    marks
}

#[test]
fn marks_of_other_generations_are_cleared_and_the_rest_stays() {
    in_netns(|| {
        let cases = [
            (1, 0x0001_0000, 0),
            (2, 0x0002_0000, 0x0002_0000),
            (3, 0x00ff_0000, 0),
            (4, 0, 0),
            (5, 0xab01_00cd, 0xab00_00cd),
            (6, 0xab02_00cd, 0xab02_00cd),
            (7, 0xab00_00cd, 0xab00_00cd),
        ];
        let mut want = BTreeMap::new();
        for version in ["ipv4", "ipv6"] {
            for (port, before, after) in cases {
                flow(version, port, before);
                want.insert((version.to_owned(), port.to_string()), after);
            }
        }
        assert_eq!(clear_marks(MASK, 0x0002_0000).unwrap(), 6);
        assert_eq!(marks(), want);
        assert_eq!(clear_marks(MASK, 0x0002_0000).unwrap(), 0, "nothing is left to be cleared");
    });
}

#[test]
fn thousands_of_connections_are_cleared() {
    in_netns(|| {
        let mut restore = String::new();
        for port in 1..=3000u32 {
            restore.push_str(&format!(
                "-I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport {port} --dport 53 -t 600 -m 65536\n"
            ));
        }
        let file = format!("/tmp/kernel-nft-conntrack-{}", std::process::id());
        std::fs::write(&file, restore).unwrap();
        let loaded = crate::namespace::try_run("conntrack", &["--load-file", &file]);
        std::fs::remove_file(&file).unwrap();
        loaded.unwrap();
        assert_eq!(clear_marks(MASK, 0x0002_0000).unwrap(), 3000);
        assert!(marks().values().all(|mark| *mark == 0));
    });
}

#[test]
fn a_namespace_without_connections_is_no_error() {
    in_netns(|| assert_eq!(clear_marks(MASK, 0).unwrap(), 0));
}
