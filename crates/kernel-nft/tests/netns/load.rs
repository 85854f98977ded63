//! Loads, reads back, and lets `nft` read what we wrote and write what we read.

use kernel_nft::{Family, Nftables, Ruleset, Socket, TableFlags, Transaction, create, text};

use crate::layout::layout;
use crate::namespace::{feed, in_netns, run};

fn load(socket: &mut Socket, want: &Ruleset) {
    let transaction =
        Transaction { family: Family::Inet, table: &want.table.name, ops: &create(want), generation: None };
    socket.commit(&transaction).unwrap();
}

fn observe(socket: &mut Socket, table: &str) -> Ruleset {
    socket.observe(Family::Inet, table).unwrap().expect("the table is there").ruleset
}

#[test]
fn the_layout_loads_and_reads_back_equal() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        assert_eq!(observe(&mut socket, "npc"), want);
    });
}

#[test]
fn the_layout_renders_as_nft_lists_it() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        load(&mut Socket::open().unwrap(), &want);
        similar(&text::render(&want), &run("nft", &["list", "table", "inet", "npc"]));
    });
}

#[test]
fn the_rendered_layout_is_taken_by_nft_and_means_the_same() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        feed("nft", &["-f", "-"], &text::render(&want)).unwrap();
        assert_eq!(observe(&mut Socket::open().unwrap(), "npc"), want);
    });
}

/// Equal, or a panic that shows the first line that is not.
fn similar(ours: &str, theirs: &str) {
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "line {}", number + 1);
    }
    assert_eq!(ours, theirs);
}
