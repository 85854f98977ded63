//! What only the kernel can show: that it takes what we write, and that `nft` reads it as we mean it.

#[path = "support/layout.rs"]
mod layout;
#[path = "support/netns.rs"]
mod netns;

use kernel_nft::{Family, Nftables, Socket, TableFlags, Transaction};
use layout::{layout, load_ops, name};
use netns::{in_netns, run};

#[test]
fn the_layout_loads_and_reads_back_equal() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        let mut socket = Socket::open().unwrap();
        let ops = load_ops(&want);
        let table = name("npc");
        socket
            .commit(&Transaction { family: Family::Inet, table: &table, ops: &ops, generation: None })
            .unwrap();
        println!("{}", run("nft", &["list", "table", "inet", "npc"]));
        let have = socket.observe(Family::Inet, "npc").unwrap().unwrap();
        assert_eq!(have.ruleset, want);
    });
}
