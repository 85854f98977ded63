//! Random rulesets: the kernel gives back what was sent, `nft` lists what we render, and reads what we
//! render as we mean it.

use kernel_nft::{Nftables, Op, Ruleset, Socket, diff, text};
use proptest::prelude::*;

use crate::load::{commit, load, observe, similar};
use crate::namespace::{feed, in_netns, run};
use crate::random::Random;

fn cases(cases: u32) -> ProptestConfig {
    // Failing seeds are printed; there is no source file next to the binary to keep them in.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn what_is_sent_is_what_is_read_and_listed(seed: u64) {
        in_netns(move || {
            let want = Random::new(seed).ruleset("t");
            let mut socket = Socket::open().unwrap();
            load(&mut socket, &want);
            assert_eq!(observe(&mut socket, "t"), want);
            let text = text::render(&want);
            similar(&text, &run("nft", &["list", "table", "inet", "t"]));
            commit(&mut socket, "t", &[Op::DeleteTable]);
            feed("nft", &["-f", "-"], &text).unwrap();
            // nft may put `meta nfproto` where the first match needs it: other expressions, the same words.
            similar(&text::render(&observe(&mut socket, "t")), &text);
        });
    }

    #[test]
    fn the_kernel_takes_the_difference_of_any_two(seed: u64) {
        in_netns(move || {
            let mut random = Random::new(seed);
            let (first, second): (Ruleset, Ruleset) = (random.ruleset("t"), random.ruleset("t"));
            let mut socket = Socket::open().unwrap();
            load(&mut socket, &first);
            commit(&mut socket, "t", &diff(&second, &first));
            assert_eq!(observe(&mut socket, "t"), second);
        });
    }

    #[test]
    fn rendered_changes_do_in_nft_what_they_do_here(seed: u64) {
        in_netns(move || {
            let mut random = Random::new(seed);
            let (first, second): (Ruleset, Ruleset) = (random.ruleset("t"), random.ruleset("t"));
            let mut socket = Socket::open().unwrap();
            load(&mut socket, &first);
            let ops = diff(&second, &first);
            let commands = text::render_ops(&second, &ops);
            if let Err(error) = feed("nft", &["-f", "-"], &commands) {
                panic!("{error}\n{commands}");
            }
            similar(&text::render(&observe(&mut socket, "t")), &text::render(&second));
            assert!(socket.portid() != 0);
        });
    }
}
