//! How the flags of a daemon are read, seen by a binary that has some of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use clap::{Parser, Subcommand};
use node_runtime::args::{ListenAddr, Parsed, command, duration, try_parse_from};
use node_runtime::{CommonArgs, Program};
use proptest::prelude::*;

const PROGRAM: Program = Program {
    name: "npc-firewall",
    version: "1.2.3",
    health_port: 20250,
    sync_period_aliases: &["iptables-sync-period"],
};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[arg(long)]
    quiet: bool,
    #[arg(long, default_value_t = true)]
    run_firewall: bool,
    #[command(subcommand)]
    command: Option<Verb>,
}

#[derive(Debug, Subcommand, PartialEq, Eq)]
enum Verb {
    Plan {
        #[arg(long)]
        full: bool,
    },
    Cleanup,
}

fn read(words: &str) -> Result<Parsed<Cli>, clap::Error> {
    try_parse_from(&PROGRAM, std::iter::once("npc-firewall").chain(words.split_whitespace()))
}

fn cli(words: &str) -> Cli {
    read(words).unwrap_or_else(|error| panic!("{words}: {error}")).cli
}

#[test]
fn the_command_holds_clap_s_own_rules() {
    command::<Cli>(&PROGRAM).debug_assert();
}

#[test]
fn the_arguments_of_a_kube_router_firewall_daemonset_are_accepted() {
    let words = "--run-router=false --run-firewall=true --run-service-proxy=false \
                 --iptables-sync-period=4m --cache-sync-timeout=3m --metrics-port=8080 -v=2 \
                 --hostname-override=node-1 --service-cluster-ip-range 10.0.0.0/16 --enable-pprof";
    let Parsed { cli, ignored } = read(words).unwrap();
    assert_eq!(cli.common.sync_period, Duration::from_secs(240));
    assert_eq!(cli.common.cache_sync_timeout, Duration::from_secs(180));
    assert_eq!(cli.common.metrics_port, 8080);
    assert_eq!(cli.common.verbosity, 2);
    assert_eq!(cli.common.resolve_node_name().unwrap(), "node-1");
    assert!(cli.run_firewall);
    let names: Vec<_> = ignored.names().collect();
    assert_eq!(names, ["enable-pprof", "run-router", "run-service-proxy", "service-cluster-ip-range"]);
}

#[test]
fn each_ignored_flag_is_told_once_although_given_twice() {
    let parsed = read("--peer-router-ips=10.0.0.1 --peer-router-ips=10.0.0.2").unwrap();
    assert_eq!(parsed.ignored.names().collect::<Vec<_>>(), ["peer-router-ips"]);
}

#[test]
fn unknown_flags_and_words_are_refused() {
    for words in ["--no-such-flag", "--run-routers=false", "stray", "--run-router=perhaps"] {
        assert!(read(words).is_err(), "{words}");
    }
}

#[test]
fn cleanup_config_is_refused_and_names_the_command() {
    let error = read("--cleanup-config").unwrap_err().to_string();
    assert!(error.contains("`npc-firewall cleanup`"), "{error}");
    assert_eq!(read("--cleanup-config=false").unwrap().ignored.names().count(), 1);
}

#[test]
fn booleans_are_read_as_in_go() {
    for (words, quiet) in [("", false), ("--quiet", true), ("--quiet=true", true), ("--quiet=false", false)] {
        assert_eq!(cli(words).quiet, quiet, "{words}");
    }
    for (words, run) in [("", true), ("--run-firewall", true), ("--run-firewall=false", false)] {
        assert_eq!(cli(words).run_firewall, run, "{words}");
    }
    // As in Go, a word after the flag is not its value.
    assert!(read("--quiet false").is_err());
    assert_eq!(cli("--quiet cleanup").command, Some(Verb::Cleanup));
}

#[test]
fn the_verbosity_has_all_of_its_forms() {
    let forms = [
        ("", 0),
        ("-v", 1),
        ("-vv", 2),
        ("-v -v -v", 3),
        ("-v=2", 2),
        ("-v2", 2),
        ("-v 2", 2),
        ("--v=2", 2),
        ("--v 2", 2),
        ("--verbosity=2", 2),
        ("-v=1 -v=4", 4),
        ("-v=2 -v", 3),
    ];
    for (words, level) in forms {
        assert_eq!(cli(words).common.verbosity, level, "{words}");
    }
    let before_command = cli("-v plan");
    assert_eq!(before_command.common.verbosity, 1);
    assert_eq!(before_command.command, Some(Verb::Plan { full: false }));
    assert!(read("-v=high").is_err());
    assert!(read("-vx").is_err());
}

#[test]
fn common_flags_may_stand_before_and_after_the_command() {
    for words in
        ["--manifests /m plan --full", "plan --manifests /m --full=true", "plan --full --manifests=/m"]
    {
        let cli = cli(words);
        assert_eq!(cli.common.manifests.as_deref(), Some("/m".as_ref()), "{words}");
        assert_eq!(cli.command, Some(Verb::Plan { full: true }), "{words}");
    }
}

#[test]
fn of_a_flag_given_twice_the_last_counts() {
    assert_eq!(cli("--metrics-port=1 --metrics-port=2").common.metrics_port, 2);
    assert!(!cli("--quiet --quiet=false").quiet);
}

#[test]
fn objects_come_from_one_source() {
    assert!(read("--manifests /m --kubeconfig /k").is_err());
    assert!(read("--manifests /m --master https://10.0.0.1").is_err());
    assert!(read("--kubeconfig /k --master https://10.0.0.1").is_ok());
}

#[test]
fn each_flag_has_an_environment_variable_named_after_the_binary() {
    let command = command::<Cli>(&PROGRAM);
    let env_of = |id: &str| {
        let arg = command.get_arguments().find(|arg| arg.get_id() == id).unwrap();
        arg.get_env().map(|name| name.to_str().unwrap().to_owned())
    };
    assert_eq!(env_of("sync_period").as_deref(), Some("NPC_FIREWALL_SYNC_PERIOD"));
    assert_eq!(env_of("quiet").as_deref(), Some("NPC_FIREWALL_QUIET"));
    assert_eq!(env_of("node_name").as_deref(), Some("NODE_NAME"));
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        assert!(arg.get_env().is_some(), "{}", arg.get_id());
        assert!(arg.get_help().is_some() || arg.get_id() == "quiet" || arg.get_id() == "run_firewall");
    }
}

#[test]
fn defaults_are_those_of_kube_router_but_the_health_port_is_the_programs() {
    let CommonArgs { kubeconfig, master, manifests, cache_sync_timeout, sync_period, .. } = cli("").common;
    assert_eq!((kubeconfig, master, manifests), (None, None, None));
    assert_eq!((cache_sync_timeout, sync_period), (Duration::from_secs(60), Duration::from_secs(300)));
    let CommonArgs { metrics_port, metrics_path, health_port, health_addr, .. } = cli("").common;
    assert_eq!((metrics_port, metrics_path.as_str()), (0, "/metrics"));
    assert_eq!((health_port, health_addr), (20250, ListenAddr::Any));
}

#[test]
fn listeners_are_merged_or_left_out_as_the_ports_say() {
    let ports = |words: &str| -> Vec<(u16, bool)> {
        cli(words).common.listeners().iter().map(|listener| (listener.port, listener.metrics)).collect()
    };
    assert_eq!(ports(""), [(20250, false)]);
    assert_eq!(ports("--metrics-port=8080"), [(20250, false), (8080, true)]);
    assert_eq!(ports("--metrics-port=20250"), [(20250, true)]);
    assert_eq!(ports("--metrics-port=20250 --metrics-addr=::1"), [(20250, false), (20250, true)]);
    assert_eq!(ports("--health-port=0"), []);
    assert_eq!(ports("--health-port=0 --metrics-port=8080"), [(8080, true)]);
}

#[test]
fn addresses_are_read_in_both_families() {
    for text in ["127.0.0.1", "::1", "[::1]", "0.0.0.0", "fd00::1"] {
        let ip = text.trim_matches(['[', ']']).parse().unwrap();
        assert_eq!(text.parse::<ListenAddr>().unwrap(), ListenAddr::Ip(ip));
    }
    assert_eq!(cli("--health-addr=").common.health_addr, ListenAddr::Any);
    for text in ["[::1", "::1]", "127.0.0.1:80", "node-1", "[]"] {
        assert!(text.parse::<ListenAddr>().is_err(), "{text}");
    }
}

#[test]
fn paths_that_serve_something_else_are_refused_for_metrics() {
    assert_eq!(cli("--metrics-path=/m/x").common.metrics_path, "/m/x");
    for path in ["metrics", "/", "/healthz", "/state", "/a?b", "/ä"] {
        assert!(read(&format!("--metrics-path={path}")).is_err(), "{path}");
    }
}

#[test]
fn durations_are_those_of_go_and_no_others() {
    let good = [
        ("0", Duration::ZERO),
        ("0s", Duration::ZERO),
        ("90s", Duration::from_secs(90)),
        ("5m", Duration::from_secs(300)),
        ("1h30m", Duration::from_secs(5400)),
        ("1m0s", Duration::from_secs(60)),
        ("1.5h", Duration::from_secs(5400)),
        ("100ms", Duration::from_millis(100)),
        ("7us", Duration::from_micros(7)),
        ("7µs", Duration::from_micros(7)),
        ("7ns", Duration::from_nanos(7)),
    ];
    for (text, expected) in good {
        assert_eq!(duration(text), Ok(expected), "{text}");
    }
    for text in ["", "5", "5M", "1d", "1 m", "-5m", "m", "1h-1m", "five", "99999999999999999999h", "5min"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn what_go_prints_for_a_duration_is_read_back(seconds in 0u64..10_000_000) {
        let text = format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60);
        prop_assert_eq!(duration(&text), Ok(Duration::from_secs(seconds)));
    }

    #[test]
    fn no_words_make_it_panic(words in prop::collection::vec("(-{0,2}[a-z=0-9v.:-]{0,12}|-v+|--v=[0-9]{1,4})", 0..6)) {
        let _ = try_parse_from::<Cli, _>(&PROGRAM, std::iter::once("x".to_owned()).chain(words));
    }
}
