//! What the tests of this crate share.
//!
//! ```text
//! random ──► objects ──┬─► oracle ────────────────────────────────► what the API says of a packet ┐
//!                      └─► planner ─► table, virtual services ─► node ─► what becomes of it       ├─ must agree
//! conformance ─► objects, expected packets ───────────────────────────────────────────────────────┘
//! ```
#![allow(dead_code, reason = "each test binary uses another part of these modules")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]
#![allow(unreachable_pub, reason = "modules of test binaries are private")]

use common_informer::decode::ServiceDetail;
use common_informer::intern::Interner;
use common_informer::manifests::parse_with;
use common_informer::object::Change;
use kernel_nft::{Ruleset, TableFlags};
use svc_proxy_ipvs::args::{Cli, Config, PROGRAM};
use svc_proxy_ipvs::model::addresses::{Addresses, LocalAddress};
use svc_proxy_ipvs::model::world::{Touched, World};
use svc_proxy_ipvs::plan::{Planner, Update};

/// The flags of a node of an ordinary cluster.
pub const FLAGS: [&str; 3] = [
    "--service-cluster-ip-range=10.96.0.0/12,fd00:96::/112",
    "--service-external-ip-range=203.0.113.0/24,2001:db8:e::/64",
    "--loadbalancer-ip-range=198.51.100.0/24",
];

/// The node itself.
pub const NODE: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}},
  spec: {podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]},
  status: {addresses: [
    {type: InternalIP, address: 192.168.50.1}, {type: InternalIP, address: "fd50::1"},
    {type: ExternalIP, address: 172.16.9.1}]}}
"#;

/// What the flags mean; one of [`FLAGS`] holds where it is not given otherwise.
pub fn config(words: &[impl AsRef<str>]) -> Config {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let name = |word: &str| word.split('=').next().unwrap().to_owned();
    let defaults = FLAGS.iter().filter(|flag| !words.iter().any(|word| name(word) == name(flag)));
    let all: Vec<&str> = [PROGRAM.name].into_iter().chain(defaults.copied()).chain(words.clone()).collect();
    let parsed = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, all).unwrap();
    parsed.cli.proxy.into_config().unwrap()
}

/// The objects of a text, each as a change.
pub fn changes(yaml: &str) -> Vec<Change> {
    let documents = parse_with(ServiceDetail::Full, yaml, &mut Interner::new());
    assert_eq!(documents.malformed, [""; 0]);
    documents.objects.into_iter().map(|decoded| Change::Applied(decoded.unwrap().object)).collect()
}

/// The pure part of the proxy of one node.
pub struct Pure {
    pub config: Config,
    pub world: World,
    pub planner: Planner,
    /// The node's own addresses; those that the Node object names if there are none.
    pub local: Vec<LocalAddress>,
}

impl Pure {
    pub fn new(node: &str, config: Config) -> Self {
        let world = World::new(
            node.into(),
            config.proxy_name.clone(),
            config.admission.clone(),
            config.pod_cidrs.clone(),
        );
        let planner = Planner::new(config.plan.clone(), TableFlags::default());
        Self { config, world, planner, local: Vec::new() }
    }

    /// One batch of changes, as the controller passes it on.
    pub fn update(&mut self, changes: Vec<Change>) -> Update {
        let mut touched = Touched::default();
        for change in changes {
            self.world.apply(change, &mut touched);
        }
        let addresses = self.addresses();
        self.planner.update(&self.world, &addresses, &touched)
    }

    pub fn addresses(&self) -> Addresses {
        let node = self.world.node_addresses();
        let named = node.iter().map(|address| LocalAddress { ip: address.ip, device: "eth0".into() });
        let local = if self.local.is_empty() { named.collect() } else { self.local.clone() };
        Addresses::of(&self.config.plan.node_ports, &local, node)
    }

    pub fn ruleset(&self) -> &Ruleset {
        self.planner.ruleset()
    }
}

pub mod node;
pub mod oracle;
pub mod random;
