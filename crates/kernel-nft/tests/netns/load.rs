//! Loads, reads back, and lets `nft` read what we wrote and write what we read.

use kernel_nft::{
    ChainType, CmpOp, CommitError, DataType, Expr, Family, Field, IpVersion, NatFlags, Nftables, Op,
    Ownership, Rule, Ruleset, SetSpec, Side, Socket, Table, TableFlags, Transaction, Value, create, diff,
    text,
};

use crate::layout::{layout, name};
use crate::namespace::{feed, in_netns, linux_is_at_least, run, try_run};
use crate::service::service_layout;

pub(crate) fn commit(socket: &mut Socket, table: &str, ops: &[Op]) {
    let table = name(table);
    socket.commit(&Transaction { family: Family::Inet, table: &table, ops, generation: None }).unwrap();
}

pub(crate) fn load(socket: &mut Socket, want: &Ruleset) {
    commit(socket, &want.table.name, &create(want));
}

pub(crate) fn observe(socket: &mut Socket, table: &str) -> Ruleset {
    socket.observe(Family::Inet, table).unwrap().expect("the table is there").ruleset
}

/// Equal, or a panic that shows the first line that is not.
pub(crate) fn similar(ours: &str, theirs: &str) {
    for (number, (our, their)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(our, their, "line {}; ours:\n{ours}", number + 1);
    }
    assert_eq!(ours, theirs);
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
        feed("nft", &["-c", "-f", "-"], &text::render(&want)).unwrap();
        feed("nft", &["-f", "-"], &text::render(&want)).unwrap();
        assert_eq!(observe(&mut Socket::open().unwrap(), "npc"), want);
    });
}

#[test]
fn the_service_layout_renders_as_nft_lists_it_and_is_taken_by_nft() {
    in_netns(|| {
        let want = service_layout("svc");
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        let text = text::render(&want);
        similar(&text, &run("nft", &["list", "table", "inet", "svc"]));
        commit(&mut socket, "svc", &[Op::DeleteTable]);
        feed("nft", &["-f", "-"], &text).unwrap();
        assert_eq!(observe(&mut socket, "svc"), want);
    });
}

/// The kernel needs no `meta l4proto` in front; nft 1.0.6 needs it to read its own words ("can not use variable
/// sized data types"), which is why they are not fed back here.
#[test]
fn original_ports_of_any_protocol_are_listed_as_rendered() {
    use DataType::{InetProto, InetService, Ipv4Addr, Ipv6Addr};
    in_netns(|| {
        let mut want = service_layout("svc");
        for (set, version, address) in [("all4", IpVersion::V4, Ipv4Addr), ("all6", IpVersion::V6, Ipv6Addr)]
        {
            let fields = [
                Field::OriginalAddress(Side::Destination),
                Field::L4Proto,
                Field::OriginalPort(Side::Destination),
            ];
            let spec = SetSpec::set(&[address, InetProto, InetService]);
            want.sets.insert(name(set), kernel_nft::Set { spec, elements: Default::default() });
            let rule = Rule::new().fields_in(version, &fields, &name(set)).masquerade(NatFlags::FULLY_RANDOM);
            want.chains.get_mut("post").unwrap().rules.push(rule);
        }
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        assert_eq!(observe(&mut socket, "svc"), want);
        similar(&text::render(&want), &run("nft", &["list", "table", "inet", "svc"]));
    });
}

#[test]
fn every_type_of_set_is_listed_as_rendered() {
    use DataType::{IcmpType, Icmpv6Type, Ifname, InetProto, InetService, Ipv4Addr, Ipv6Addr, Mark};
    in_netns(|| {
        let table =
            Table { family: Family::Inet, name: name("t"), flags: TableFlags::default(), comment: None };
        let mut want = Ruleset::new(table);
        let byte = |n: u32| kernel_nft::Key::from_bytes(&[n as u8]);
        let word = |n: u32| kernel_nft::Key::from_bytes(&(n as u16).to_be_bytes());
        let ifname = |n: u32| {
            let mut bytes = format!("eth{n}").into_bytes();
            bytes.resize(16, 0);
            kernel_nft::Key::from_bytes(&bytes)
        };
        let v6 = |n: u32| kernel_nft::Key::from(std::net::Ipv6Addr::from(u128::from(n) << (n % 100)));
        type ToKey<'a> = &'a dyn Fn(u32) -> kernel_nft::Key;
        let types: [(&str, DataType, ToKey<'_>); 8] = [
            ("a", InetProto, &byte),
            ("b", Icmpv6Type, &byte),
            ("c", IcmpType, &byte),
            ("d", InetService, &word),
            ("e", Mark, &|n| kernel_nft::Key::from_bytes(&(n << 20).to_ne_bytes())),
            ("f", Ifname, &ifname),
            ("g", Ipv4Addr, &|n| kernel_nft::Key::from(std::net::Ipv4Addr::from(n << 22))),
            ("h", Ipv6Addr, &v6),
        ];
        for (set, key, element) in types {
            let elements = (0..256).map(|n| (element(n), Value::Member)).collect();
            want.sets.insert(name(set), kernel_nft::Set { spec: SetSpec::set(&[key]), elements });
        }
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        assert_eq!(observe(&mut socket, "t"), want);
        similar(&text::render(&want), &run("nft", &["list", "table", "inet", "t"]));
    });
}

#[test]
fn a_stranger_in_our_table_is_seen_and_removed() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        let script = "
            add map inet npc data { type ipv4_addr : ether_addr; elements = { 10.0.0.1 : 00:00:5e:00:53:01 }; }
            add set inet npc timed { type ipv4_addr; timeout 1h; elements = { 10.0.0.1 }; }
            add set inet npc pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 1-2 }; }
            add set inet npc counted { type ipv4_addr; counter; elements = { 10.0.0.1 }; }
            add chain inet npc closed { type filter hook input priority 0; policy drop; }
            add chain inet npc extra
            add rule inet npc extra snat ip to 10.0.0.1-10.0.0.9
            add rule inet npc extra meta l4proto tcp dnat ip to 10.0.0.1:80-90
            add rule inet npc extra meta l4proto tcp masquerade to :1000-2000
            add rule inet npc extra meta l4proto tcp redirect to :80-90
            add rule inet npc extra snat ip prefix to ip saddr map { 10.1.0.0/16 : 10.2.0.0/16 }
            add rule inet npc extra ct original protocol tcp accept
            add rule inet npc extra tcp option maxseg size 1-1000 accept
            add rule inet npc extra ip saddr { 10.0.0.1, 10.0.0.2 } tcp dport != 80 limit rate 1/second masquerade
            insert rule inet npc ok ip saddr @timed ct mark set 0x1 accept
            add element inet npc p4_f1a2 { 10.9.9.9 }
            delete element inet npc in4 { 10.50.0.10 }";
        feed("nft", &["-f", "-"], script).unwrap();
        let have = observe(&mut socket, "npc");
        for set in ["data", "timed", "pairs", "counted"] {
            assert_eq!(have.sets[set].spec.key, [DataType::Foreign], "{set}");
        }
        assert_eq!(have.chains["closed"].base.unwrap().kind, ChainType::Foreign);
        let foreign = |rule: &Rule| rule.expressions.iter().any(|e| matches!(e, Expr::Other { .. }));
        let extra = &have.chains["extra"].rules;
        assert_eq!(extra.len(), 8);
        for (number, rule) in extra.iter().enumerate() {
            assert!(foreign(rule), "rule {number} of the stranger looks like one of ours: {rule:?}");
        }
        commit(&mut socket, "npc", &diff(&want, &have));
        assert_eq!(observe(&mut socket, "npc"), want);
    });
}

#[test]
fn a_dormant_table_is_seen_and_woken() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        run("nft", &["add", "table", "inet", "npc", "{ flags dormant; }"]);
        let have = observe(&mut socket, "npc");
        assert!(have.table.flags.dormant);
        let ops = diff(&want, &have);
        assert_eq!(ops, [Op::AddTable(want.table.clone())]);
        commit(&mut socket, "npc", &ops);
        assert_eq!(observe(&mut socket, "npc"), want);
    });
}

#[test]
fn an_owned_table_cannot_be_changed_by_nft() {
    in_netns(|| {
        let flags = TableFlags { owner: true, persist: linux_is_at_least(6, 9), dormant: false };
        let want = layout("npc", flags);
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        let error = try_run("nft", &["flush", "chain", "inet", "npc", "ok"]).unwrap_err();
        assert!(error.contains("Operation not permitted"), "{error}");
        assert_eq!(socket.observe(Family::Inet, "npc").unwrap().unwrap().ownership, Ownership::Ours);
        assert_eq!(observe(&mut socket, "npc"), want);
    });
}

#[test]
fn a_refusal_tells_the_offending_attribute() {
    in_netns(|| {
        let mut socket = Socket::open().unwrap();
        let table = name("t");
        let flags = TableFlags::default();
        let ops = [
            Op::AddTable(Table { family: Family::Inet, name: table.clone(), flags, comment: None }),
            Op::AddChain(name("a"), None, None),
            Op::AddRule(name("a"), Rule::new().address_in_set_that_is_missing()),
        ];
        let transaction = Transaction { family: Family::Inet, table: &table, ops: &ops, generation: None };
        match socket.commit(&transaction) {
            Err(CommitError::Refused { op: 2, offset: Some(offset), .. }) => assert!(offset > 20, "{offset}"),
            other => panic!("{other:?}"),
        }
    });
}

trait Missing {
    fn address_in_set_that_is_missing(self) -> Self;
}

impl Missing for Rule {
    fn address_in_set_that_is_missing(self) -> Self {
        self.address_in(Side::Source, IpVersion::V4, &name("missing"))
    }
}

#[test]
fn rarer_expressions_read_back_equal_and_are_listed_as_rendered() {
    in_netns(|| {
        let mut want = layout("npc", TableFlags::default());
        let load_port = Rule::new().dport(6, 1..=1).expressions;
        let mut rule = Rule::new();
        rule.expressions.extend_from_slice(&load_port[..3]);
        let range = Expr::Range {
            negate: true,
            sreg: kernel_nft::Register(0),
            from: 80u16.to_be_bytes().to_vec(),
            to: 90u16.to_be_bytes().to_vec(),
        };
        let rule = rule.expression(range).accept();
        want.chains.get_mut("ok").unwrap().rules.push(rule);
        let different =
            Rule::new().expression(Expr::Ct { key: kernel_nft::CtKey::Mark, dreg: kernel_nft::Register(0) });
        let cmp =
            Expr::Cmp { op: CmpOp::Neq, sreg: kernel_nft::Register(0), data: 7u32.to_ne_bytes().to_vec() };
        want.chains.get_mut("ok").unwrap().rules.push(different.expression(cmp).drop());
        let unreachable = Rule::new().reject(kernel_nft::Reject::PortUnreachable);
        want.chains.get_mut("ok").unwrap().rules.push(unreachable);
        let mut socket = Socket::open().unwrap();
        load(&mut socket, &want);
        assert_eq!(observe(&mut socket, "npc"), want);
        similar(&text::render(&want), &run("nft", &["list", "table", "inet", "npc"]));
    });
}

#[test]
fn a_reader_is_not_disturbed_by_a_writer() {
    in_netns(|| {
        let want = layout("npc", TableFlags::default());
        let mut reader = Socket::open().unwrap();
        load(&mut reader, &want);
        let mut writer = Socket::open().unwrap();
        let writing = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                // Each transaction keeps the two counters of elements equal.
                for n in 0..2000u32 {
                    let element = vec![(std::net::Ipv4Addr::from(n).into(), Value::Member)];
                    let ops = ["p4_77c0", "p4_9d3e"].map(|set| Op::AddElements(name(set), element.clone()));
                    commit(&mut writer, "npc", &ops);
                }
            });
            let mut read = 0;
            while !writing.is_finished() {
                match reader.observe(Family::Inet, "npc") {
                    Ok(seen) => {
                        let sets = seen.expect("the table is there").ruleset.sets;
                        assert_eq!(sets["p4_77c0"].elements.len(), sets["p4_9d3e"].elements.len());
                        read += 1;
                    }
                    Err(kernel_nft::Error::Unstable { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            read
        });
        println!("read {writing} times meanwhile");
        assert_eq!(observe(&mut reader, "npc").sets["p4_77c0"].elements.len(), 2001);
    });
}

/// The kernel still grows the set's hash table then, which changes the order of its elements.
#[test]
fn a_set_that_is_read_right_after_it_grew_is_whole() {
    in_netns(|| {
        let mut socket = Socket::open().unwrap();
        for round in 0..20u32 {
            let mut want = layout(&format!("npc{round}"), TableFlags::default());
            let set = want.sets.get_mut("p4_f1a2").unwrap();
            let numbers = 0..2_000 + 2_000 * (round % 7);
            set.elements = numbers.map(|n| (std::net::Ipv4Addr::from(n).into(), Value::Member)).collect();
            load(&mut socket, &want);
            assert_eq!(observe(&mut socket, &want.table.name), want);
        }
    });
}
