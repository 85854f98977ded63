//! What the fake promises is what the kernel does: one suite, run on both.

use std::time::{Duration, Instant};

use kernel_nft::*;
use nix::libc;

use crate::layout::{layout, name, v4, v6};
use crate::service::service_layout;

/// A kernel, and conversations with it.
pub(crate) trait World {
    /// A new conversation, as a process of its own would have it.
    fn open(&mut self) -> Box<dyn Nftables>;
    /// `nft flush ruleset` by somebody else.
    fn flush_by_stranger(&mut self);
    /// Whether tables can outlive their owner: Linux ≥ 6.9.
    fn has_persist(&self) -> bool;
    /// Whether a rule may look up only the keys of a map: Linux ≥ 6.5.
    fn maps_are_sets(&self) -> bool;
}

/// Makes a test of every function below: `$body` is called with each of them.
macro_rules! contract {
    ($run:path) => {
        $crate::contract::contract! { $run =>
            absent_table_is_none
            the_layout_reads_back_equal
            the_service_layout_reads_back_equal
            a_refused_op_is_named_and_nothing_is_changed
            the_first_of_several_refused_ops_is_named
            missing_things_are_refused
            present_things_are_refused
            used_things_are_not_deleted
            wrong_keys_and_values_are_refused
            a_map_key_changes_its_verdict_by_delete_and_add
            the_same_element_twice_is_no_error
            an_element_is_found_by_its_key
            full_sets_are_refused
            circles_of_chains_are_refused
            chains_of_a_type_stand_at_its_hooks
            translation_is_refused_where_it_does_not_work
            translation_in_a_jumped_to_chain_is_refused_by_where_it_is_jumped_from
            maps_are_looked_up_as_what_they_are
            data_of_a_map_are_changed_by_delete_and_add
            jumps_to_base_chains_are_refused
            intervals_read_back_equal
            overlapping_intervals_are_refused
            an_interval_is_replaced_by_an_overlapping_one
            a_stale_generation_is_refused
            ten_thousand_elements_are_one_transaction
            diff_moves_between_any_two_of_many_rulesets
            an_owned_table_is_refused_to_others
            an_owned_table_dies_with_its_owner
            a_persistent_table_outlives_its_owner_and_is_adopted
            an_owned_table_survives_a_flush_by_others
            table_flags_do_not_change
            it_is_known_whether_tables_can_persist
            nothing_to_do_succeeds
            counters_keep_their_values_when_renewed
            unwritable_ops_are_named
            a_deleted_table_takes_everything_along
        }
    };
    ($run:path => $($test:ident)*) => {
        $(#[test] fn $test() { $run($crate::contract::$test); })*
    };
}
pub(crate) use contract;

const T: &str = "t";

fn commit(nft: &mut dyn Nftables, ops: &[Op]) -> Result<(), CommitError> {
    let table = name(T);
    nft.commit(&Transaction { family: Family::Inet, table: &table, ops, generation: None })
}

fn observe(nft: &mut dyn Nftables) -> Option<Ruleset> {
    nft.observe(Family::Inet, T).unwrap().map(|observed| observed.ruleset)
}

/// What is left when the owner's socket is closed. A process that another test starts at that moment has a copy of
/// the socket, until it is the program that was asked for.
fn without_owner(nft: &mut dyn Nftables) -> Option<Observed> {
    let start = Instant::now();
    loop {
        let seen = nft.observe(Family::Inet, T).unwrap();
        let is_owned = seen.as_ref().is_some_and(|seen| matches!(seen.ownership, Ownership::Other(_)));
        if !is_owned || start.elapsed() > Duration::from_secs(60) {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn table() -> Table {
    Table { family: Family::Inet, name: name(T), flags: TableFlags::default(), comment: None }
}

/// A table that belongs to the socket, with the flags that the program would choose.
fn owned(world: &dyn World) -> Table {
    Table { flags: TableFlags { owner: true, persist: world.has_persist(), dormant: false }, ..table() }
}

fn chain(text: &str) -> Op {
    Op::AddChain(name(text), None, None)
}

fn base(text: &str) -> Op {
    let base = BaseChain { kind: ChainType::Filter, hook: Hook::Forward, priority: -5 };
    Op::AddChain(name(text), Some(base), None)
}

fn jump(from: &str, to: &str) -> Op {
    Op::AddRule(name(from), Rule::new().jump(&name(to)))
}

fn set4(text: &str) -> Op {
    Op::AddSet(name(text), SetSpec::set(&[DataType::Ipv4Addr]))
}

fn map4(text: &str) -> Op {
    Op::AddSet(name(text), SetSpec::verdicts(&[DataType::Ipv4Addr]))
}

fn add4(set: &str, address: &str) -> Op {
    Op::AddElements(name(set), vec![(v4(address), Value::Member)])
}

fn verdict4(address: &str, verdict: Verdict) -> Vec<(Key, Value)> {
    vec![(v4(address), Value::Verdict(verdict))]
}

fn range(first: Key, last: Key) -> (Key, Value) {
    (first, Value::Until(last))
}

/// The op and the errno of a refusal.
fn refusal(result: Result<(), CommitError>) -> (usize, i32) {
    match result {
        Err(CommitError::Refused { op, errno, .. }) => (op, errno),
        other => panic!("not refused by the kernel: {other:?}"),
    }
}

pub(crate) fn absent_table_is_none(world: &mut dyn World) {
    let mut nft = world.open();
    assert_eq!(nft.observe(Family::Inet, T).unwrap(), None);
    assert!(nft.observe_counters(Family::Inet, T).unwrap().is_empty());
}

pub(crate) fn the_layout_reads_back_equal(world: &mut dyn World) {
    let mut nft = world.open();
    let want = layout(T, TableFlags::default());
    commit(&mut *nft, &create(&want)).unwrap();
    let observed = nft.observe(Family::Inet, T).unwrap().unwrap();
    assert_eq!(observed.ruleset, want);
    assert_eq!(observed.ownership, Ownership::Free);
    assert_eq!(nft.observe_counters(Family::Inet, T).unwrap(), want.counters);
    assert_eq!(nft.observe(Family::Ip, T).unwrap(), None, "another family is another table");
}

pub(crate) fn the_service_layout_reads_back_equal(world: &mut dyn World) {
    let mut nft = world.open();
    let want = service_layout(T);
    commit(&mut *nft, &create(&want)).unwrap();
    assert_eq!(observe(&mut *nft).unwrap(), want);
}

pub(crate) fn a_refused_op_is_named_and_nothing_is_changed(world: &mut dyn World) {
    let mut nft = world.open();
    let ops = [Op::AddTable(table()), chain("a"), jump("a", "nowhere"), chain("b")];
    match commit(&mut *nft, &ops) {
        Err(CommitError::Refused { op: 2, errno: libc::ENOENT, description, .. }) => {
            assert_eq!(description, "add rule to chain a");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(observe(&mut *nft), None);
}

pub(crate) fn the_first_of_several_refused_ops_is_named(world: &mut dyn World) {
    let mut nft = world.open();
    let elements = Op::AddElements(name("nowhere"), vec![(v4("10.0.0.1"), Value::Member)]);
    let ops = [Op::AddTable(table()), chain("a"), elements.clone(), jump("a", "nowhere"), elements];
    assert_eq!(refusal(commit(&mut *nft, &ops)), (2, libc::ENOENT));
}

pub(crate) fn missing_things_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    assert_eq!(refusal(commit(&mut *nft, &[chain("a")])), (0, libc::ENOENT), "no table");
    commit(&mut *nft, &[Op::AddTable(table()), chain("a"), set4("s"), map4("m")]).unwrap();
    let (a, s, m, x) = (name("a"), name("s"), name("m"), name("x"));
    for op in [
        Op::DeleteChain(x.clone()),
        Op::DeleteSet(x.clone()),
        Op::DeleteCounter(x.clone()),
        Op::FlushChain(x.clone()),
        Op::AddRule(x.clone(), Rule::new().accept()),
        Op::AddRule(a.clone(), Rule::new().address_in(Side::Source, IpVersion::V4, &x)),
        Op::AddRule(a.clone(), Rule::new().counter_ref(x.clone())),
        Op::AddRule(a, Rule::new().goto(&x)),
        Op::AddElements(x.clone(), vec![(v4("10.0.0.1"), Value::Member)]),
        Op::AddElements(m, verdict4("10.0.0.1", Verdict::Jump(x))),
        Op::DeleteElements(s, vec![(v4("10.0.0.1"), Value::Member)]),
    ] {
        assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(&op))), (0, libc::ENOENT), "{op:?}");
    }
}

pub(crate) fn present_things_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    let counter = Op::AddCounter(name("c"), Counter::default());
    let ops = [Op::AddTable(table()), chain("a"), set4("s"), counter];
    commit(&mut *nft, &ops).unwrap();
    for op in &ops[1..] {
        assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(op))), (0, libc::EEXIST), "{op:?}");
    }
    commit(&mut *nft, &ops[..1]).expect("the table may be there");
}

pub(crate) fn used_things_are_not_deleted(world: &mut dyn World) {
    let mut nft = world.open();
    let rule = Rule::new().address_in(Side::Source, IpVersion::V4, &name("s")).counter_ref(name("c"));
    let ops = [
        Op::AddTable(table()),
        chain("a"),
        chain("b"),
        chain("d"),
        set4("s"),
        map4("m"),
        Op::AddCounter(name("c"), Counter::default()),
        Op::AddRule(name("a"), rule.jump(&name("b"))),
        Op::AddElements(name("m"), verdict4("10.0.0.1", Verdict::Goto(name("d")))),
    ];
    commit(&mut *nft, &ops).unwrap();
    let delete_element = Op::DeleteElements(name("m"), verdict4("10.0.0.1", Verdict::Goto(name("d"))));
    for op in [
        Op::DeleteSet(name("s")),
        Op::DeleteCounter(name("c")),
        Op::DeleteChain(name("b")),
        Op::DeleteChain(name("d")),
    ] {
        assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(&op))), (0, libc::EBUSY), "{op:?}");
    }
    let ops = [
        Op::FlushChain(name("a")),
        Op::DeleteSet(name("s")),
        Op::DeleteCounter(name("c")),
        Op::DeleteChain(name("b")),
        delete_element,
        Op::DeleteChain(name("d")),
    ];
    commit(&mut *nft, &ops).expect("released before deleted, in one transaction");
    let ops = [chain("d"), Op::AddElements(name("m"), verdict4("10.0.0.1", Verdict::Goto(name("d"))))];
    commit(&mut *nft, &ops).unwrap();
    commit(&mut *nft, &[Op::DeleteSet(name("m")), Op::DeleteChain(name("d"))])
        .expect("a map lets go of its chains");
    let left = observe(&mut *nft).unwrap();
    assert_eq!(left.chains.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    assert!(left.sets.is_empty() && left.counters.is_empty());
}

pub(crate) fn wrong_keys_and_values_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &[Op::AddTable(table()), chain("a"), set4("s"), map4("m")]).unwrap();
    let add = |set: &str, key: Key, value: Value| Op::AddElements(name(set), vec![(key, value)]);
    let lookup = |set: &str, verdict_map: bool| {
        let rule = match verdict_map {
            true => Rule::new().address_verdict(Side::Source, IpVersion::V4, &name(set)),
            false => Rule::new().address_in(Side::Source, IpVersion::V4, &name(set)),
        };
        Op::AddRule(name("a"), rule)
    };
    for op in [
        add("s", v6("::1"), Value::Member),
        add("s", Key::from_bytes(&[1, 2]), Value::Member),
        add("s", v4("10.0.0.1"), Value::Verdict(Verdict::Accept)),
        add("m", v4("10.0.0.1"), Value::Member),
        lookup("s", true),
    ] {
        assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(&op))), (0, libc::EINVAL), "{op:?}");
    }
    let keys_only = commit(&mut *nft, &[lookup("m", false)]);
    let rules = observe(&mut *nft).unwrap().chains.remove("a").unwrap().rules;
    if world.maps_are_sets() {
        keys_only.expect("a map is a set of its keys as well");
        assert_eq!(rules, [Rule::new().address_in(Side::Source, IpVersion::V4, &name("m"))]);
    } else {
        assert_eq!((refusal(keys_only), rules), ((0, libc::EINVAL), vec![]));
    }
}

pub(crate) fn a_map_key_changes_its_verdict_by_delete_and_add(world: &mut dyn World) {
    let mut nft = world.open();
    let (accept, drop) = (verdict4("10.0.0.1", Verdict::Accept), verdict4("10.0.0.1", Verdict::Drop));
    let m = name("m");
    commit(&mut *nft, &[Op::AddTable(table()), map4("m"), Op::AddElements(m.clone(), accept.clone())])
        .unwrap();
    let add = Op::AddElements(m.clone(), drop.clone());
    assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(&add))), (0, libc::EEXIST));
    commit(&mut *nft, &[Op::DeleteElements(m.clone(), accept), add]).unwrap();
    assert_eq!(observe(&mut *nft).unwrap().sets[&m].elements, drop.into_iter().collect());
}

pub(crate) fn the_same_element_twice_is_no_error(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &[Op::AddTable(table()), set4("s"), add4("s", "10.0.0.1")]).unwrap();
    commit(&mut *nft, &[add4("s", "10.0.0.1")]).unwrap();
    commit(&mut *nft, &[map4("m"), Op::AddElements(name("m"), verdict4("10.0.0.1", Verdict::Drop))]).unwrap();
    commit(&mut *nft, &[Op::AddElements(name("m"), verdict4("10.0.0.1", Verdict::Drop))]).unwrap();
}

pub(crate) fn an_element_is_found_by_its_key(world: &mut dyn World) {
    let mut nft = world.open();
    let has = |nft: &mut dyn Nftables, set: &str, address: &str| {
        nft.has_element(Family::Inet, T, set, &v4(address)).unwrap()
    };
    assert!(!has(&mut *nft, "s", "10.0.0.1"), "there is no table");
    let ops = [Op::AddTable(table()), set4("s"), add4("s", "10.0.0.1"), map4("m")];
    commit(&mut *nft, &ops).unwrap();
    commit(&mut *nft, &[Op::AddElements(name("m"), verdict4("10.0.0.3", Verdict::Drop))]).unwrap();
    for (set, address, there) in [
        ("s", "10.0.0.1", true),
        ("s", "10.0.0.2", false),
        ("m", "10.0.0.3", true),
        ("m", "10.0.0.1", false),
        ("x", "10.0.0.1", false),
    ] {
        assert_eq!(has(&mut *nft, set, address), there, "{set} {address}");
    }
    commit(&mut *nft, &[Op::DeleteElements(name("s"), vec![(v4("10.0.0.1"), Value::Member)])]).unwrap();
    assert!(!has(&mut *nft, "s", "10.0.0.1"));
}

pub(crate) fn full_sets_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    let spec = SetSpec { size: Some(2), ..SetSpec::set(&[DataType::Ipv4Addr]) };
    let ops =
        [Op::AddTable(table()), Op::AddSet(name("s"), spec), add4("s", "10.0.0.1"), add4("s", "10.0.0.2")];
    commit(&mut *nft, &ops).unwrap();
    assert_eq!(refusal(commit(&mut *nft, &[add4("s", "10.0.0.3")])), (0, libc::ENFILE));
}

pub(crate) fn circles_of_chains_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    let ops = [Op::AddTable(table()), base("f"), chain("a"), chain("b"), jump("f", "a"), jump("a", "b")];
    commit(&mut *nft, &ops).unwrap();
    let circle = refusal(commit(&mut *nft, &[chain("x"), jump("b", "a"), chain("y")]));
    assert_eq!(circle, (1, libc::EMLINK));
    let through_map = [
        map4("m"),
        Op::AddRule(name("b"), Rule::new().address_verdict(Side::Source, IpVersion::V4, &name("m"))),
        Op::AddElements(name("m"), verdict4("10.0.0.1", Verdict::Goto(name("a")))),
    ];
    assert_eq!(refusal(commit(&mut *nft, &through_map)), (2, libc::EMLINK));
}

fn base_at(text: &str, kind: ChainType, hook: Hook, priority: i32) -> Op {
    Op::AddChain(name(text), Some(BaseChain { kind, hook, priority }), None)
}

const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

pub(crate) fn chains_of_a_type_stand_at_its_hooks(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &[Op::AddTable(table())]).unwrap();
    for hook in HOOKS {
        for (kind, taken) in [
            (ChainType::Filter, true),
            (ChainType::Nat, hook != Hook::Forward),
            (ChainType::Route, hook == Hook::Output),
        ] {
            let made = commit(&mut *nft, &[base_at("c", kind, hook, -100)]);
            if taken {
                made.unwrap_or_else(|error| panic!("{kind:?} at {hook:?}: {error}"));
                let base = observe(&mut *nft).unwrap().chains["c"].base.unwrap();
                assert_eq!(base, BaseChain { kind, hook, priority: -100 });
                commit(&mut *nft, &[Op::DeleteChain(name("c"))]).unwrap();
            } else {
                assert_eq!(refusal(made), (0, libc::EOPNOTSUPP), "{kind:?} at {hook:?}");
            }
        }
    }
    let too_early = commit(&mut *nft, &[base_at("c", ChainType::Nat, Hook::Prerouting, -200)]);
    assert_eq!(refusal(too_early), (0, libc::EOPNOTSUPP), "before conntrack");
    commit(&mut *nft, &[base_at("c", ChainType::Nat, Hook::Prerouting, -199)]).unwrap();
}

/// Statements that translate or refuse, and the hooks that they work at; in nat chains only, but for the last.
fn placed() -> Vec<(&'static str, Rule, Vec<Hook>)> {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    let to = std::net::IpAddr::from([10, 0, 0, 1]);
    let any = NatFlags::default();
    vec![
        ("masquerade", Rule::new().masquerade(any), vec![Postrouting]),
        ("snat", Rule::new().snat_to(to, any), vec![Input, Postrouting]),
        ("dnat", Rule::new().dnat_to(to, None), vec![Prerouting, Output]),
        ("redirect", Rule::new().redirect(None), vec![Prerouting, Output]),
        ("reject", Rule::new().reject(Reject::PortUnreachable), vec![Prerouting, Input, Forward, Output]),
    ]
}

pub(crate) fn translation_is_refused_where_it_does_not_work(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &[Op::AddTable(table())]).unwrap();
    for (text, rule, hooks) in placed() {
        for kind in [ChainType::Filter, ChainType::Nat] {
            for hook in HOOKS.into_iter().filter(|hook| kind == ChainType::Filter || *hook != Hook::Forward) {
                let ops = [base_at("c", kind, hook, 50), Op::AddRule(name("c"), rule.clone())];
                let made = commit(&mut *nft, &ops);
                if hooks.contains(&hook) && (kind == ChainType::Nat || text == "reject") {
                    made.unwrap_or_else(|error| panic!("{text} in {kind:?} at {hook:?}: {error}"));
                    commit(&mut *nft, &[Op::DeleteChain(name("c"))]).unwrap();
                } else {
                    assert_eq!(refusal(made), (1, libc::EOPNOTSUPP), "{text} in {kind:?} at {hook:?}");
                }
            }
        }
    }
    let everywhere = Rule::new().set_mark(u32::MAX, 1).clamp_mss(1440).notrack();
    for hook in HOOKS {
        let ops = [
            base_at("c", ChainType::Filter, hook, -300),
            Op::AddRule(name("c"), everywhere.clone()),
            Op::DeleteChain(name("c")),
        ];
        commit(&mut *nft, &ops).unwrap_or_else(|error| panic!("{hook:?}: {error}"));
    }
}

pub(crate) fn translation_in_a_jumped_to_chain_is_refused_by_where_it_is_jumped_from(world: &mut dyn World) {
    let mut nft = world.open();
    let masquerade = Rule::new().masquerade(NatFlags::FULLY_RANDOM);
    let ops = [
        Op::AddTable(table()),
        base("f"),
        base_at("post", ChainType::Nat, Hook::Postrouting, 100),
        chain("a"),
        Op::AddRule(name("a"), masquerade.clone()),
        chain("b"),
        jump("b", "a"),
        jump("post", "b"),
    ];
    commit(&mut *nft, &ops).expect("a chain that nothing leads to may hold anything");
    let ops = [chain("x"), jump("f", "b"), chain("y")];
    assert_eq!(refusal(commit(&mut *nft, &ops)), (1, libc::EOPNOTSUPP));
    let through_map = [
        map4("m"),
        Op::AddRule(name("f"), Rule::new().address_verdict(Side::Source, IpVersion::V4, &name("m"))),
        Op::AddElements(name("m"), verdict4("10.0.0.1", Verdict::Goto(name("a")))),
    ];
    assert_eq!(refusal(commit(&mut *nft, &through_map)), (2, libc::EOPNOTSUPP));
}

pub(crate) fn maps_are_looked_up_as_what_they_are(world: &mut dyn World) {
    let mut nft = world.open();
    let fields = [Field::Address(Side::Destination)];
    let mark_of =
        |map: &str| Op::AddRule(name("a"), Rule::new().set_mark_from(IpVersion::V4, &fields, &name(map)));
    let marks = SetSpec::data(&[DataType::Ipv4Addr], &[DataType::Mark]);
    let ops = [Op::AddTable(table()), chain("a"), set4("s"), map4("m"), Op::AddSet(name("d"), marks)];
    commit(&mut *nft, &ops).unwrap();
    assert_eq!(refusal(commit(&mut *nft, &[mark_of("nowhere")])), (0, libc::ENOENT));
    let verdict = Rule::new().fields_verdict(IpVersion::V4, &fields, &name("d"));
    let add = |map: &str, value: Value| Op::AddElements(name(map), vec![(v4("10.0.0.1"), value)]);
    for op in [
        mark_of("s"),
        mark_of("m"),
        Op::AddRule(name("a"), verdict),
        add("d", Value::Member),
        add("d", Value::Verdict(Verdict::Accept)),
        add("d", Value::Data(v6("::1"))),
        add("s", Value::Data(Key::mark(1))),
        add("m", Value::Data(Key::mark(1))),
    ] {
        assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(&op))), (0, libc::EINVAL), "{op:?}");
    }
    commit(&mut *nft, &[mark_of("d"), add("d", Value::Data(Key::mark(1)))]).unwrap();
    assert_eq!(refusal(commit(&mut *nft, &[Op::DeleteSet(name("d"))])), (0, libc::EBUSY));
    commit(&mut *nft, &[Op::FlushChain(name("a")), Op::DeleteSet(name("d"))]).unwrap();
}

pub(crate) fn data_of_a_map_are_changed_by_delete_and_add(world: &mut dyn World) {
    let mut nft = world.open();
    let spec = SetSpec::data(&[DataType::Ipv6Addr], &[DataType::Ipv6Addr, DataType::InetService]);
    let data =
        |port: u16| vec![(v6("fd00::1"), Value::Data(Key::address_port("fd00::2".parse().unwrap(), port)))];
    let d = name("d");
    let ops = [Op::AddTable(table()), Op::AddSet(d.clone(), spec), Op::AddElements(d.clone(), data(80))];
    commit(&mut *nft, &ops).unwrap();
    commit(&mut *nft, &ops[2..]).expect("the same again is no error");
    let add = Op::AddElements(d.clone(), data(81));
    assert_eq!(refusal(commit(&mut *nft, std::slice::from_ref(&add))), (0, libc::EEXIST));
    commit(&mut *nft, &[Op::DeleteElements(d.clone(), data(80)), add]).unwrap();
    assert_eq!(observe(&mut *nft).unwrap().sets[&d].elements, data(81).into_iter().collect());
}

pub(crate) fn jumps_to_base_chains_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    let ops = [Op::AddTable(table()), base("f"), chain("a"), jump("a", "f")];
    assert_eq!(refusal(commit(&mut *nft, &ops)), (3, libc::EOPNOTSUPP));
}

pub(crate) fn intervals_read_back_equal(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &[Op::AddTable(table())]).unwrap();
    let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let cases: Vec<(DataType, Vec<(Key, Value)>)> = vec![
        (DataType::Ipv4Addr, vec![range(v4("0.0.0.0"), v4("255.255.255.255"))]),
        (DataType::Ipv4Addr, vec![range(v4("0.0.0.0"), v4("0.0.0.0"))]),
        (DataType::Ipv4Addr, vec![range(v4("255.255.255.255"), v4("255.255.255.255"))]),
        (
            DataType::Ipv4Addr,
            vec![range(v4("10.0.0.0"), v4("10.0.0.9")), range(v4("10.0.0.10"), v4("10.0.0.10"))],
        ),
        (
            DataType::Ipv4Addr,
            vec![
                range(v4("0.0.0.0"), v4("9.255.255.255")),
                range(v4("10.0.0.0"), v4("10.0.0.0")),
                range(v4("10.0.0.1"), v4("255.255.255.255")),
            ],
        ),
        (DataType::Ipv6Addr, vec![range(v6("::"), v6(all))]),
        (DataType::Ipv6Addr, vec![range(v6("fd00::"), v6("fd00::ffff")), range(v6("fd00::1:0"), v6(all))]),
        (DataType::InetService, vec![range(Key::from_bytes(&[0, 0]), Key::from_bytes(&[255, 255]))]),
    ];
    for (index, (key, elements)) in cases.into_iter().enumerate() {
        let set = name(&format!("s{index}"));
        let ops = [
            Op::AddSet(set.clone(), SetSpec::intervals(key)),
            Op::AddElements(set.clone(), elements.clone()),
        ];
        commit(&mut *nft, &ops).unwrap();
        let have = observe(&mut *nft).unwrap().sets.remove(&set).unwrap();
        assert_eq!(have.spec, SetSpec::intervals(key));
        assert_eq!(have.elements, elements.iter().cloned().collect(), "case {index}");
        commit(&mut *nft, &[Op::DeleteElements(set.clone(), elements)]).unwrap();
        assert!(observe(&mut *nft).unwrap().sets[&set].elements.is_empty(), "case {index}");
    }
}

pub(crate) fn overlapping_intervals_are_refused(world: &mut dyn World) {
    let mut nft = world.open();
    let set = name("s");
    let ops = [
        Op::AddTable(table()),
        Op::AddSet(set.clone(), SetSpec::intervals(DataType::Ipv4Addr)),
        Op::AddElements(set.clone(), vec![range(v4("10.0.0.10"), v4("10.0.0.20"))]),
    ];
    commit(&mut *nft, &ops).unwrap();
    for (first, last) in [
        ("10.0.0.15", "10.0.0.30"),
        ("10.0.0.0", "10.0.0.15"),
        ("10.0.0.12", "10.0.0.13"),
        ("10.0.0.0", "10.0.0.30"),
    ] {
        let op = Op::AddElements(set.clone(), vec![range(v4(first), v4(last))]);
        let (op, errno) = refusal(commit(&mut *nft, &[op]));
        assert_eq!((op, errno), (0, libc::EEXIST), "{first}-{last}");
    }
    let reversed = Op::AddElements(set, vec![range(v4("10.0.1.2"), v4("10.0.1.1"))]);
    assert!(matches!(commit(&mut *nft, &[reversed]), Err(CommitError::Invalid { op: 0, .. })));
}

pub(crate) fn an_interval_is_replaced_by_an_overlapping_one(world: &mut dyn World) {
    let mut nft = world.open();
    let set = name("s");
    let (old, new) = (range(v4("10.0.0.0"), v4("10.0.0.255")), range(v4("10.0.0.0"), v4("10.0.3.255")));
    let ops = [
        Op::AddTable(table()),
        Op::AddSet(set.clone(), SetSpec::intervals(DataType::Ipv4Addr)),
        Op::AddElements(set.clone(), vec![old.clone()]),
    ];
    commit(&mut *nft, &ops).unwrap();
    let ops = [Op::DeleteElements(set.clone(), vec![old]), Op::AddElements(set.clone(), vec![new.clone()])];
    commit(&mut *nft, &ops).unwrap();
    assert_eq!(observe(&mut *nft).unwrap().sets[&set].elements, [new].into());
}

pub(crate) fn a_stale_generation_is_refused(world: &mut dyn World) {
    let (mut nft, mut stranger) = (world.open(), world.open());
    commit(&mut *nft, &[Op::AddTable(table())]).unwrap();
    let generation = nft.observe(Family::Inet, T).unwrap().unwrap().generation;
    let other = name("other");
    let ops = [Op::AddTable(Table { name: other.clone(), ..table() })];
    stranger
        .commit(&Transaction { family: Family::Inet, table: &other, ops: &ops, generation: None })
        .unwrap();
    let table = name(T);
    let ops = [chain("a")];
    let mut transaction =
        Transaction { family: Family::Inet, table: &table, ops: &ops, generation: Some(generation) };
    let error = nft.commit(&transaction).unwrap_err();
    assert!(matches!(error, CommitError::GenerationChanged), "{error:?}");
    assert!(error.is_retryable());
    transaction.generation = Some(nft.observe(Family::Inet, T).unwrap().unwrap().generation);
    nft.commit(&transaction).unwrap();
}

pub(crate) fn ten_thousand_elements_are_one_transaction(world: &mut dyn World) {
    let mut nft = world.open();
    let elements = |values: &dyn Fn() -> Value| -> Vec<(Key, Value)> {
        (0..12_000u32).map(|n| (std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), values())).collect()
    };
    let (members, jumps) =
        (elements(&|| Value::Member), elements(&|| Value::Verdict(Verdict::Jump(name("a")))));
    let ops = [
        Op::AddTable(table()),
        chain("a"),
        set4("s"),
        map4("m"),
        Op::AddElements(name("s"), members.clone()),
        Op::AddElements(name("m"), jumps.clone()),
    ];
    commit(&mut *nft, &ops).unwrap();
    let have = observe(&mut *nft).unwrap();
    assert_eq!(have.sets[&name("s")].elements, members.iter().cloned().collect());
    assert_eq!(have.sets[&name("m")].elements, jumps.into_iter().collect());
    let missing = Op::DeleteElements(name("s"), vec![(v4("11.0.0.1"), Value::Member)]);
    let ops = [Op::DeleteElements(name("s"), members), missing];
    assert_eq!(refusal(commit(&mut *nft, &ops)), (1, libc::ENOENT), "named though op 0 is several messages");
    commit(&mut *nft, &ops[..1]).unwrap();
}

/// Rulesets that differ from the layout in one thing each.
fn variants() -> Vec<Ruleset> {
    let base = || layout(T, TableFlags::default());
    let with = |change: &dyn Fn(&mut Ruleset)| {
        let mut ruleset = base();
        change(&mut ruleset);
        ruleset
    };
    vec![
        Ruleset::new(base().table),
        base(),
        with(&|r| {
            r.chains.get_mut("in-5be1").unwrap().comment = Some("another comment".to_owned());
        }),
        with(&|r| {
            r.chains.get_mut("ok").unwrap().rules.insert(0, Rule::new().counter());
        }),
        with(&|r| {
            r.chains.get_mut("dispatch").unwrap().rules.truncate(2);
        }),
        with(&|r| {
            r.sets.get_mut("p4_f1a2").unwrap().spec.size = Some(100);
        }),
        with(&|r| {
            r.sets.get_mut("in4").unwrap().spec.comment = Some("renewed".to_owned());
        }),
        with(&|r| {
            r.sets.get_mut("in4").unwrap().elements =
                verdict4("10.50.0.10", Verdict::Drop).into_iter().collect();
        }),
        with(&|r| {
            r.sets.get_mut("b4_c41d").unwrap().elements =
                [range(v4("10.60.0.0"), v4("10.60.255.255"))].into();
        }),
        with(&|r| {
            r.counters.get_mut("deny_in").unwrap().comment = None;
        }),
        with(&|r| {
            r.chains.get_mut("forward").unwrap().base.as_mut().unwrap().priority = -7;
        }),
        with(&|r| {
            r.chains.remove("output");
            r.chains.remove("input");
            r.sets.retain(|name, _| !name.starts_with("svc") && &**name != "nodeports");
        }),
        with(&|r| {
            r.table.comment = Some("npc-firewall schema=2".to_owned());
        }),
    ]
}

pub(crate) fn diff_moves_between_any_two_of_many_rulesets(world: &mut dyn World) {
    let mut nft = world.open();
    let variants = variants();
    commit(&mut *nft, &create(&variants[0])).unwrap();
    let mut have = variants[0].clone();
    for (from, to) in (0..variants.len()).flat_map(|a| (0..variants.len()).map(move |b| (a, b))) {
        for index in [from, to] {
            let ops = diff(&variants[index], &have);
            commit(&mut *nft, &ops).unwrap_or_else(|error| panic!("{from} to {to}: {error}: {ops:#?}"));
            have = observe(&mut *nft).unwrap();
            assert_eq!(have, variants[index], "{from} to {to}");
            assert_eq!(diff(&variants[index], &have), [], "{from} to {to}");
        }
    }
}

pub(crate) fn an_owned_table_is_refused_to_others(world: &mut dyn World) {
    let owned = owned(world);
    let (mut owner, mut stranger) = (world.open(), world.open());
    commit(&mut *owner, &[Op::AddTable(owned.clone()), chain("a")]).unwrap();
    assert_eq!(owner.observe(Family::Inet, T).unwrap().unwrap().ownership, Ownership::Ours);
    let seen = stranger.observe(Family::Inet, T).unwrap().unwrap();
    assert_eq!(seen.ownership, Ownership::Other(owner.portid()));
    for ops in [vec![chain("b")], vec![Op::DeleteTable], vec![Op::AddTable(owned.clone())]] {
        let error = commit(&mut *stranger, &ops).unwrap_err();
        assert!(matches!(error, CommitError::NotOwner { op: 0, .. }), "{error:?}");
        assert!(!error.is_retryable());
    }
    commit(&mut *owner, &[Op::AddTable(owned), chain("b")]).expect("the owner may go on");
}

pub(crate) fn an_owned_table_dies_with_its_owner(world: &mut dyn World) {
    let mut owner = world.open();
    let flags = TableFlags { owner: true, ..TableFlags::default() };
    commit(&mut *owner, &[Op::AddTable(Table { flags, ..table() })]).unwrap();
    drop(owner);
    assert_eq!(without_owner(&mut *world.open()), None);
}

pub(crate) fn a_persistent_table_outlives_its_owner_and_is_adopted(world: &mut dyn World) {
    let mut first = world.open();
    let want = layout(T, TableFlags { owner: true, persist: true, dormant: false });
    let made = commit(&mut *first, &create(&want));
    if !world.has_persist() {
        // It takes the flag or it refuses the table; it never makes one that dies.
        assert_eq!(refusal(made), (0, libc::EOPNOTSUPP));
        assert_eq!(observe(&mut *first), None);
        return;
    }
    made.unwrap();
    drop(first);
    let mut second = world.open();
    let found = without_owner(&mut *second).unwrap();
    assert_eq!(found.ownership, Ownership::Orphaned);
    let ops = diff(&want, &found.ruleset);
    assert_eq!(ops, [Op::AddTable(want.table.clone())], "adopting is all there is to do");
    commit(&mut *second, &ops).unwrap();
    let adopted = second.observe(Family::Inet, T).unwrap().unwrap();
    assert_eq!((adopted.ruleset, adopted.ownership), (want, Ownership::Ours));
    let mut third = world.open();
    assert!(matches!(commit(&mut *third, &[chain("x")]), Err(CommitError::NotOwner { .. })));
}

pub(crate) fn an_owned_table_survives_a_flush_by_others(world: &mut dyn World) {
    let mut owner = world.open();
    commit(&mut *owner, &[Op::AddTable(owned(world)), chain("a")]).unwrap();
    let free = name("free");
    let ops = [Op::AddTable(Table { name: free.clone(), ..table() })];
    owner.commit(&Transaction { family: Family::Inet, table: &free, ops: &ops, generation: None }).unwrap();
    let before = observe(&mut *owner);
    world.flush_by_stranger();
    assert_eq!(observe(&mut *owner), before);
    assert_eq!(owner.observe(Family::Inet, "free").unwrap(), None);
}

pub(crate) fn table_flags_do_not_change(world: &mut dyn World) {
    let (mut nft, owned) = (world.open(), owned(world));
    commit(&mut *nft, &[Op::AddTable(table())]).unwrap();
    assert_eq!(refusal(commit(&mut *nft, &[Op::AddTable(owned.clone())])), (0, libc::EOPNOTSUPP));
    let ops = diff(&Ruleset::new(owned.clone()), &observe(&mut *nft).unwrap());
    commit(&mut *nft, &ops).expect("but the table can be made anew in one transaction");
    assert_eq!(observe(&mut *nft), Some(Ruleset::new(owned)));
}

pub(crate) fn it_is_known_whether_tables_can_persist(world: &mut dyn World) {
    let mut nft = world.open();
    assert_eq!(nft.supports_persist().unwrap(), world.has_persist());
    let probe = format!("probe-{}", nft.portid());
    assert_eq!(nft.observe(Family::Inet, &probe).unwrap(), None, "the probe leaves nothing");
}

pub(crate) fn nothing_to_do_succeeds(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &[]).unwrap();
    commit(&mut *nft, &[Op::AddElements(name("nowhere"), vec![])]).unwrap();
    assert_eq!(observe(&mut *nft), None);
}

pub(crate) fn counters_keep_their_values_when_renewed(world: &mut dyn World) {
    let mut nft = world.open();
    let counter = Counter { comment: Some("old".to_owned()), packets: 7, bytes: 700 };
    commit(&mut *nft, &[Op::AddTable(table()), Op::AddCounter(name("c"), counter)]).unwrap();
    let have = observe(&mut *nft).unwrap();
    let mut want = have.clone();
    let fresh = Counter { comment: Some("new".to_owned()), ..Counter::default() };
    want.counters.insert(name("c"), fresh);
    commit(&mut *nft, &diff(&want, &have)).unwrap();
    let found = nft.observe_counters(Family::Inet, T).unwrap().remove("c").unwrap();
    assert_eq!((found.comment.as_deref(), found.packets, found.bytes), (Some("new"), 7, 700));
}

pub(crate) fn unwritable_ops_are_named(world: &mut dyn World) {
    let mut nft = world.open();
    let foreign = SetSpec::set(&[DataType::Foreign]);
    let long = Table { comment: Some("x".repeat(129)), ..table() };
    let other = Table { name: name("other"), ..table() };
    let many = Rule { expressions: vec![Expr::Counter; 3000], comment: None };
    for op in [
        Op::AddChain(name(&"x".repeat(256)), None, None),
        Op::AddChain(name(""), None, None),
        Op::AddChain(name("a\0b"), None, None),
        Op::AddSet(name("s"), foreign),
        Op::AddTable(long),
        Op::AddTable(other),
        Op::AddRule(name("a"), many),
        Op::AddRule(name("a"), Rule::new().expression(Expr::Other { name: "x".to_owned(), data: vec![] })),
    ] {
        let ops = [Op::AddTable(table()), op];
        let error = commit(&mut *nft, &ops).unwrap_err();
        assert!(matches!(error, CommitError::Invalid { op: 1, .. }), "{error:?}");
        assert!(!error.is_retryable());
    }
    assert_eq!(observe(&mut *nft), None);
}

pub(crate) fn a_deleted_table_takes_everything_along(world: &mut dyn World) {
    let mut nft = world.open();
    commit(&mut *nft, &create(&layout(T, TableFlags::default()))).unwrap();
    commit(&mut *nft, &[Op::DeleteTable]).unwrap();
    assert_eq!(observe(&mut *nft), None);
    assert_eq!(refusal(commit(&mut *nft, &[Op::DeleteTable])), (0, libc::ENOENT));
}
