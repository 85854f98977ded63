//! What the program may do and what it needs: `CAP_NET_ADMIN` and no more.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use test_netns::{Attachment, Protocol};

use crate::lab::{ALL_PORTS, EXCHANGE, Firewall, Lab, PATIENCE, PROGRAM, until};

const FROM_Y: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}";

/// `setpriv` to the user nobody with these capabilities, of the form `,+net_admin`.
fn nobody(capabilities: &str) -> Vec<String> {
    let all = format!("-all{capabilities}");
    [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
        "--pdeathsig=KILL",
        &format!("--bounding-set={all}"),
        &format!("--inh-caps={all}"),
        &format!("--ambient-caps={all}"),
        "--",
    ]
    .map(str::to_owned)
    .into()
}

fn spawn(lab: &Lab, capabilities: &str, command: &str, flags: &[&str]) -> Firewall {
    // Where the program was built may be closed to others.
    let folder = lab.manifests().parent().expect("a folder").to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("set");
    let program = folder.join("npc-firewall");
    if !program.exists() {
        copy(Path::new(PROGRAM), &program);
    }
    let way = nobody(capabilities);
    let program = program.display().to_string();
    let manifests = format!("--manifests={}", lab.manifests().display());
    let own = [program.as_str(), &manifests, "--node-name=n1", "-v", command];
    let words: Vec<&str> = way.iter().map(String::as_str).chain(own).chain(flags.iter().copied()).collect();
    lab.spawn_words("n1", &words)
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).expect("copied");
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("set");
}

fn from_y_only(lab: &Lab, case: &str) {
    lab.check(case, &ALL_PORTS, |t| !t.to_ns("x") || t.of_ns("y"));
}

#[test]
fn net_admin_is_all_that_it_takes() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut lab = Lab::new(attachment, 1, 3);
        lab.objects.policy("x/p", FROM_Y);
        lab.write();
        // Two bits, so that marks are cleared as well.
        let flags = ["--mark-mask=0x30"];
        let mut firewall = spawn(&lab, ",+net_admin", "run", &flags);
        firewall.wait_ready();
        let status = fs::read_to_string(format!("/proc/{}/status", firewall.id())).expect("read");
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        assert_eq!(field("CapEff:"), "0000000000001000", "CAP_NET_ADMIN alone");
        assert!(field("Uid:").starts_with("65534\t65534"), "{status}");
        lab.apply(&[&firewall]);
        from_y_only(&lab, "as nobody");
        // Tightening, with more generations than there are.
        for round in 0..4 {
            let mut flow =
                lab.cluster.connect("y/a", lab.v4("x/a"), Protocol::Tcp, 80, PATIENCE).expect("tried");
            assert!(flow.opened().is_connected(), "round {round}: {}", flow.opened());
            lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Ingress]}");
            lab.apply(&[&firewall]);
            until("cut", || !flow.exchange(EXCHANGE).is_connected());
            lab.objects.policy("x/p", FROM_Y);
            lab.apply(&[&firewall]);
        }
        let (_, ready) = firewall.get("/readyz").expect("a page");
        assert!(!ready.contains("degraded"), "{ready}\n{}", firewall.log());
        for word in ["WARN", "ERROR"] {
            assert!(!firewall.log().contains(word), "{}", firewall.log());
        }
        let metric = |name: &str| firewall.metric(name, "");
        assert!(metric("npc_firewall_kernel_ops_total") > 0);
        assert_eq!(firewall.metric("npc_firewall_bridge_nf_call", "ipv4"), 1, "sysctls can be set");
        firewall.terminate();
        let mut cleanup = spawn(&lab, ",+net_admin", "cleanup", &[]);
        assert!(cleanup.wait().success(), "{}", cleanup.log());
        lab.check("isolation has ended", &ALL_PORTS, |_| true);
    }
}

#[test]
fn without_net_admin_it_says_what_is_missing_and_plan_needs_nothing() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    lab.objects.policy("x/p", FROM_Y);
    lab.write();
    // Others do not help.
    for capabilities in ["", ",+net_raw,+sys_admin"] {
        for (command, flags) in
            [("run", &["--once"][..]), ("diff", &[]), ("cleanup", &[]), ("cleanup", &["--kube-router"])]
        {
            let mut firewall = spawn(&lab, capabilities, command, flags);
            let status = firewall.wait();
            assert!(!status.success(), "{command}: {}", firewall.log());
            assert!(firewall.log().contains("CAP_NET_ADMIN"), "{command} {capabilities}: {}", firewall.log());
        }
        let mut plan = spawn(&lab, capabilities, "plan", &[]);
        assert!(plan.wait().success(), "{}", plan.log());
    }
    lab.check("nothing was touched", &ALL_PORTS, |_| true);
}
