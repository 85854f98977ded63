//! Random rulesets, the same for the same seed. Names come from small pools, so that two of them meet.

use std::net;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel_nft::*;

use crate::layout::name;

/// A small generator (splitmix64): cases are reproduced by their seed alone.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    fn comment(&mut self) -> Option<String> {
        match self.below(4) {
            0 => Some("a comment".to_owned()),
            1 => Some(format!("umlaut ä, number {}", self.below(3))),
            _ => None,
        }
    }

    fn version(&mut self) -> IpVersion {
        *self.pick(&[IpVersion::V4, IpVersion::V6])
    }

    fn side(&mut self) -> Side {
        *self.pick(&[Side::Source, Side::Destination])
    }

    fn v4(&mut self) -> u32 {
        // Both ends of the space, aligned and odd addresses.
        let near = self.below(20) as u32;
        *self.pick(&[near, u32::MAX - near, 0x0a00_0000 + near, 0x0a00_0000 + (near << 8), near << 28])
    }

    fn v6(&mut self) -> u128 {
        let near = u128::from(self.below(20));
        *self.pick(&[
            near,
            u128::MAX - near,
            (0xfd00 << 112) + near,
            (0xfd00 << 112) + (near << 64),
            (0xffff << 32) + near,
        ])
    }

    fn field(&mut self, field: DataType) -> Vec<u8> {
        match field {
            DataType::Ipv4Addr => self.v4().to_be_bytes().to_vec(),
            DataType::Ipv6Addr => self.v6().to_be_bytes().to_vec(),
            DataType::InetProto | DataType::Icmpv6Type | DataType::IcmpType => vec![self.next() as u8],
            DataType::InetService => (self.next() as u16).to_be_bytes().to_vec(),
            DataType::Mark => (self.next() as u32).to_ne_bytes().to_vec(),
            DataType::Ifname => {
                let mut bytes = format!("eth{}", self.below(20)).into_bytes();
                bytes.resize(16, 0);
                bytes
            }
            DataType::Foreign => unreachable!("never written"),
        }
    }

    fn key(&mut self, spec: &SetSpec) -> Key {
        let fields: Vec<Vec<u8>> = spec.key.iter().map(|field| self.field(*field)).collect();
        match fields.as_slice() {
            [single] => Key::from_bytes(single),
            several => Key::concat(&several.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        }
    }

    /// Disjoint ranges: the numbers drawn, sorted, are starts and ends in turn; or touch.
    fn ranges(&mut self, spec: &SetSpec) -> Vec<(Key, Value)> {
        let mut ends: Vec<Key> = (0..2 * self.below(8)).map(|_| self.key(spec)).collect();
        ends.sort();
        ends.dedup();
        ends.chunks_exact(2).map(|pair| (pair[0].clone(), Value::Until(pair[1].clone()))).collect()
    }

    /// A set whose type is decided by the number in its name, nearly always.
    fn set(&mut self, number: u64) -> Set {
        use DataType::*;
        let types: [&[DataType]; 10] = [
            &[Ipv4Addr],
            &[Ipv6Addr],
            &[Ipv4Addr, InetService],
            &[Ipv6Addr, InetProto, InetService],
            &[InetProto, InetService],
            &[Icmpv6Type],
            &[Ipv4Addr, Ipv4Addr],
            &[Mark],
            &[InetService],
            &[IcmpType],
        ];
        let kind = if self.chance(5) { self.below(10) } else { number };
        let mut spec = SetSpec::set(types[kind as usize]);
        spec.interval = matches!(kind, 0 | 1 | 8) && self.chance(50);
        spec.size = self.chance(10).then_some(4096);
        spec.comment = self.comment();
        let elements = match spec.interval {
            true => self.ranges(&spec),
            false => (0..self.below(8)).map(|_| (self.key(&spec), Value::Member)).collect(),
        };
        Set { spec, elements: elements.into_iter().collect() }
    }

    /// A data map whose types are decided by the number in its name, nearly always.
    fn data_map(&mut self, number: u64) -> Set {
        let kind = if self.chance(5) { self.below(DATA_MAPS.len() as u64) } else { number };
        let (key, data) = DATA_MAPS[kind as usize];
        let spec = SetSpec { comment: self.comment(), ..SetSpec::data(key, data) };
        let of_data = SetSpec::set(data);
        let elements = (0..self.below(8)).map(|_| (self.key(&spec), Value::Data(self.key(&of_data))));
        let elements = elements.collect();
        Set { spec, elements }
    }

    fn verdict_map(&mut self, key: &[DataType], chains: &[u64]) -> Set {
        let spec = SetSpec { comment: self.comment(), ..SetSpec::verdicts(key) };
        let leaves: Vec<u64> = chains.iter().copied().filter(|chain| *chain >= 5).collect();
        let elements = (0..self.below(8)).map(|_| {
            let verdict = match (self.below(4), leaves.is_empty()) {
                (0, _) => Verdict::Accept,
                (1, _) | (_, true) => Verdict::Drop,
                (2, _) => Verdict::Jump(chain_name(*self.pick(&leaves))),
                _ => Verdict::Goto(chain_name(*self.pick(&leaves))),
            };
            (self.key(&spec), Value::Verdict(verdict))
        });
        let elements = elements.collect();
        Set { spec, elements }
    }

    /// One condition, on sets that are there.
    fn condition(&mut self, rule: Rule, version: IpVersion, proto: u8, ruleset: &Ruleset) -> Rule {
        let side = self.side();
        if takes_no_port(&rule) {
            return rule;
        }
        let typed = |key: &[DataType]| -> Vec<Name> {
            let right = |set: &Set| set.spec.key == key && set.spec.maps_to == MapsTo::Nothing;
            ruleset.sets.iter().filter(|(_, set)| right(set)).map(|(name, _)| name.clone()).collect()
        };
        use DataType::*;
        let triple = match version {
            IpVersion::V4 => typed(&[Ipv4Addr, InetProto, InetService]),
            IpVersion::V6 => typed(&[Ipv6Addr, InetProto, InetService]),
        };
        match self.below(24) {
            13 => {
                let mask = *self.pick(&[0x00ff_0000, 0xff00, 0xff00_0000, 1, u32::MAX]);
                rule.mark_equals(mask, (self.next() as u32) & mask)
            }
            14 => rule.input_interface(self.pick::<&str>(&["eth0", "kube-dummy-if", "br*"])),
            15 => rule.output_interface(self.pick::<&str>(&["eth0", "kube-bridge"])),
            23 => rule.no_input_interface(),
            22 => rule.input_kind(self.pick::<&str>(&["bridge", "veth"])),
            16 => rule.ct_status(match self.below(3) {
                0 => &[CtStatus::Dnat],
                1 => &[CtStatus::Snat, CtStatus::Dnat],
                _ => &[CtStatus::Assured, CtStatus::Confirmed, CtStatus::Dying],
            }),
            17 if proto == 6 => {
                let among = (1 + self.below(63)) as u8;
                let set = (self.next() as u8) & among;
                let flags = |bits: u8| -> Vec<TcpFlag> {
                    TcpFlag::ALL.into_iter().filter(|flag| bits & flag.bit() != 0).collect()
                };
                rule.tcp_flags(&flags(among), &flags(set))
            }
            18 => match (triple.first(), self.below(3)) {
                (Some(set), 0) => rule.fields_in(version, &DESTINATION, set),
                (Some(set), 1) => rule.fields_in(version, &SOURCE, set),
                (Some(set), _) => rule.fields_not_in(version, &DESTINATION, set),
                (None, _) => rule,
            },
            19 => match typed(&[version.data_type()]).first() {
                Some(set) => rule.fields_in(version, &[Field::OriginalAddress(side)], set),
                None => rule,
            },
            20 => match typed(&[version.data_type(), InetService]).first() {
                Some(set) => rule.l4proto(proto).fields_in(
                    version,
                    &[Field::OriginalAddress(side), Field::OriginalPort(side)],
                    set,
                ),
                None => rule,
            },
            21 => match typed(&[Mark]).first() {
                Some(set) => rule.fields_in(version, &[Field::Mark], set),
                None => rule,
            },
            0 => rule.l4proto(proto),
            1 => {
                let (a, b) = (self.next() as u16, self.next() as u16);
                let (first, last) =
                    *self.pick(&[(a, a), (a.min(b), a.max(b)), (0, 65535), (0, b), (a, 65535)]);
                rule.dport(proto, first..=last)
            }
            2 => {
                let prefix: IpNet = match version {
                    IpVersion::V4 => {
                        let length = self.below(33) as u8;
                        Ipv4Net::new_assert(net::Ipv4Addr::from(self.next() as u32), length).into()
                    }
                    IpVersion::V6 => {
                        let length = self.below(129) as u8;
                        let address = (u128::from(self.next()) << 64) | u128::from(self.next());
                        Ipv6Net::new_assert(net::Ipv6Addr::from(address), length).into()
                    }
                };
                rule.address_in_prefix(side, prefix)
            }
            3 => rule.ct_state(match self.below(3) {
                0 => &[CtState::New],
                1 => &[CtState::Related, CtState::Established],
                _ => &[CtState::Untracked, CtState::Invalid, CtState::New],
            }),
            4 => rule.ct_direction_reply(),
            5 => {
                let mask = *self.pick(&[0x00ff_0000, 0xff00_0000, 1, u32::MAX]);
                rule.ct_mark_equals(mask, (self.next() as u32) & mask)
            }
            6 => rule.address_is_local(side),
            7 => rule.nfproto(version),
            8 => match (version, typed(&[Ipv4Addr]).first(), typed(&[Ipv6Addr]).first()) {
                (IpVersion::V4, Some(set), _) | (IpVersion::V6, _, Some(set)) => {
                    rule.address_in(side, version, set)
                }
                _ => rule,
            },
            9 if version == IpVersion::V4 => match typed(&[Ipv4Addr, InetService]).first() {
                Some(set) if self.chance(50) => {
                    rule.nfproto(IpVersion::V4).l4proto(proto).address_port_in(side, IpVersion::V4, set)
                }
                Some(set) => rule.address_port_in(side, IpVersion::V4, set),
                None => rule,
            },
            10 if version == IpVersion::V6 => match typed(&[Ipv6Addr, InetProto, InetService]).first() {
                Some(set) => rule.address_proto_port_in(side, IpVersion::V6, set),
                None => rule,
            },
            11 => match typed(&[InetProto, InetService]).first() {
                Some(set) => rule.proto_port_in(set),
                None => rule,
            },
            12 if version == IpVersion::V4 => match typed(&[Ipv4Addr, Ipv4Addr]).first() {
                Some(set) => rule.address_pair_in(IpVersion::V4, set),
                None => rule,
            },
            _ if rule.expressions.is_empty() => {
                match (typed(&[Icmpv6Type]).first(), typed(&[IcmpType]).first()) {
                    (Some(set), _) if version == IpVersion::V6 => rule.icmpv6_type_in(set),
                    (_, Some(set)) if version == IpVersion::V4 => rule.icmp_type_in(set),
                    _ => rule,
                }
            }
            _ => rule,
        }
    }

    /// What the rule of chain `number` (base chains are below all others) ends with.
    fn end(
        &mut self,
        rule: Rule,
        version: IpVersion,
        number: Option<u64>,
        chains: &[u64],
        ruleset: &Ruleset,
    ) -> Rule {
        let above: Vec<u64> =
            chains.iter().copied().filter(|chain| number.is_none_or(|number| *chain > number)).collect();
        let open = !takes_no_port(&rule);
        let has = |map: &str, number: usize| {
            let (key, data) = DATA_MAPS[number];
            let spec = ruleset.sets.get(map).map(|set| &set.spec);
            spec.is_some_and(|spec| spec.key == key && spec.maps_to == MapsTo::Data(data.to_vec()))
        };
        match (self.below(14), above.as_slice()) {
            (9, _) if open && version == IpVersion::V6 && has("d0", 0) => {
                rule.set_mark_from(version, &DESTINATION, &name("d0"))
            }
            (10, _) => {
                let mask = *self.pick(&[0x00ff_0000, 0xff00, u32::MAX]);
                rule.set_mark(mask, self.next() as u32)
            }
            (11, _) => rule.clamp_mss(self.next() as u16),
            (12, _)
                if open
                    && version == IpVersion::V4
                    && number.is_none_or(|number| number < 5)
                    && ruleset.sets.contains_key("m1") =>
            {
                let fields = [Field::Address(Side::Destination), Field::Port(Side::Source)];
                rule.fields_verdict(version, &fields, &name("m1"))
            }
            (13, _) => rule.notrack(),

            (0, [_, ..]) => rule.jump(&chain_name(*self.pick(&above))),
            (1, [_, ..]) => rule.goto(&chain_name(*self.pick(&above))),
            (2, _)
                if version == IpVersion::V4
                    && number.is_none_or(|number| number < 5)
                    && ruleset.sets.contains_key("m0") =>
            {
                rule.address_verdict(self.side(), IpVersion::V4, &name("m0"))
            }
            // Port unreachable is listed as `reject`, which nft reads as another answer in a rule on addresses.
            (3, _) => rule.reject(Reject::AdminProhibited),
            (4, _) => rule.ret(),
            (5, _) => rule.drop(),
            (6, _) => {
                let mask = *self.pick(&[0x00ff_0000, 0xff, u32::MAX]);
                rule.set_ct_mark(mask, self.next() as u32)
            }
            (7, _) if ruleset.counters.contains_key("k0") => rule.counter_ref(name("k0")).accept(),
            _ => rule.accept(),
        }
    }

    /// What a rule of a nat chain ends with.
    fn translate(
        &mut self,
        rule: Rule,
        version: IpVersion,
        proto: u8,
        hook: Hook,
        ruleset: &Ruleset,
    ) -> Rule {
        if takes_no_port(&rule) {
            return rule.accept();
        }
        let has = |map: &str, number: usize| {
            let (key, data) = DATA_MAPS[number];
            let spec = ruleset.sets.get(map).map(|set| &set.spec);
            spec.is_some_and(|spec| spec.key == key && spec.maps_to == MapsTo::Data(data.to_vec()))
        };
        let flags =
            NatFlags { random: self.chance(30), fully_random: self.chance(30), persistent: self.chance(30) };
        let address = match version {
            IpVersion::V4 => net::IpAddr::from(net::Ipv4Addr::from(self.v4())),
            IpVersion::V6 => net::IpAddr::from(net::Ipv6Addr::from(self.v6())),
        };
        let whole = [Field::Address(Side::Destination)];
        match (self.below(5), hook, version) {
            (0, Hook::Postrouting, _) => rule.snat_to(address, flags),
            (1, Hook::Postrouting, _) => rule.snat_to_original_destination(version, flags),
            (2, Hook::Postrouting, IpVersion::V4) if has("d1", 1) => {
                rule.snat_from(version, &whole, &name("d1"), flags)
            }
            (3, Hook::Postrouting, _) => rule.ret(),
            (_, Hook::Postrouting, _) => rule.masquerade(flags),
            (0, _, IpVersion::V4) if has("d1", 1) => rule.dnat_from(version, &whole, &name("d1"), false),
            (1, _, IpVersion::V4) if has("d2", 2) => rule.dnat_from(version, &DESTINATION, &name("d2"), true),
            (1, _, IpVersion::V6) if has("d3", 3) => rule.dnat_from(version, &DESTINATION, &name("d3"), true),
            (2, ..) => rule.dnat_to(address, None),
            (3, ..) => rule.l4proto(proto).redirect(self.chance(50).then_some(self.next() as u16)),
            _ => rule.l4proto(proto).dnat_to(address, Some(self.next() as u16)),
        }
    }

    /// A rule for a nat chain.
    fn nat_rule(&mut self, hook: Hook, ruleset: &Ruleset) -> Rule {
        let mut rule = Rule::new();
        let (version, proto) = (self.version(), *self.pick(&[6u8, 17, 132]));
        for _ in 0..self.below(3) {
            rule = self.condition(rule, version, proto, ruleset);
        }
        if self.chance(30) {
            rule = rule.counter();
        }
        self.translate(rule, version, proto, hook, ruleset)
    }

    /// A rule for chain `number`.
    pub(crate) fn rule(&mut self, number: Option<u64>, chains: &[u64], ruleset: &Ruleset) -> Rule {
        let mut rule = Rule::new();
        // A rule that asks for both versions or two protocols matches nothing, and nft does not take it.
        let version = self.version();
        let proto = *self.pick(&[6u8, 17, 132]);
        for _ in 0..self.below(4) {
            rule = self.condition(rule, version, proto, ruleset);
        }
        if self.chance(20) {
            rule = rule.limit_per_minute(self.below(100), self.below(10) as u32);
        }
        if self.chance(10) {
            rule = rule.log(format!("log{} ", self.below(10)), self.below(200) as u16);
        }
        if self.chance(10) {
            rule = rule.counter();
        }
        rule = self.end(rule, version, number, chains, ruleset);
        match self.comment() {
            Some(comment) => rule.comment(comment),
            None => rule,
        }
    }

    /// A ruleset without circles.
    pub(crate) fn ruleset(&mut self, table: &str) -> Ruleset {
        let comment = Some("random".to_owned());
        let table = Table { family: Family::Inet, name: name(table), flags: TableFlags::default(), comment };
        let mut ruleset = Ruleset::new(table);
        let chains: Vec<u64> = (0..10).filter(|_| self.chance(70)).collect();
        for number in (0..2).filter(|_| self.chance(80)).collect::<Vec<_>>() {
            let counter = Counter { comment: self.comment(), ..Counter::default() };
            ruleset.counters.insert(name(&format!("k{number}")), counter);
        }
        for number in 0..10 {
            if self.chance(70) {
                ruleset.sets.insert(name(&format!("s{number}")), self.set(number));
            }
        }
        if self.chance(80) {
            ruleset.sets.insert(name("m0"), self.verdict_map(&[DataType::Ipv4Addr], &chains));
        }
        if self.chance(50) {
            let key = [DataType::Ipv4Addr, DataType::InetService];
            ruleset.sets.insert(name("m1"), self.verdict_map(&key, &chains));
        }
        for number in 0..DATA_MAPS.len() as u64 {
            if self.chance(60) {
                ruleset.sets.insert(name(&format!("d{number}")), self.data_map(number));
            }
        }
        for number in &chains {
            let comment = self.comment().filter(|_| *number < 8);
            let rules = (0..self.below(4)).map(|_| self.rule(Some(*number), &chains, &ruleset)).collect();
            ruleset.chains.insert(chain_name(*number), Chain { base: None, comment, rules });
        }
        for (text, hook) in [("b0", Hook::Forward), ("b1", Hook::Input)] {
            if self.chance(80) {
                let rules = (0..self.below(4)).map(|_| self.rule(None, &chains, &ruleset)).collect();
                let priority = self.below(400) as i32 - 250;
                let base = Some(BaseChain { kind: ChainType::Filter, hook, priority });
                ruleset.chains.insert(name(text), Chain { base, comment: None, rules });
            }
        }
        for (text, hook) in [("n0", Hook::Postrouting), ("n1", Hook::Prerouting), ("n2", Hook::Output)] {
            if self.chance(60) {
                let rules = (0..self.below(4)).map(|_| self.nat_rule(hook, &ruleset)).collect();
                let priority = self.below(320) as i32 - 199;
                let base = Some(BaseChain { kind: ChainType::Nat, hook, priority });
                ruleset.chains.insert(name(text), Chain { base, comment: None, rules });
            }
        }
        if self.chance(40) {
            let priority = self.below(400) as i32 - 250;
            let base = Some(BaseChain { kind: ChainType::Route, hook: Hook::Output, priority });
            let rules = vec![Rule::new().set_mark(u32::MAX, self.below(9) as u32)];
            ruleset.chains.insert(name("r0"), Chain { base, comment: None, rules });
        }
        ruleset
    }
}

/// Types of the data maps, by the number in their names.
const DATA_MAPS: [(&[DataType], &[DataType]); 4] = [
    (&[DataType::Ipv6Addr, DataType::InetProto, DataType::InetService], &[DataType::Mark]),
    (&[DataType::Ipv4Addr], &[DataType::Ipv4Addr]),
    (
        &[DataType::Ipv4Addr, DataType::InetProto, DataType::InetService],
        &[DataType::Ipv4Addr, DataType::InetService],
    ),
    (
        &[DataType::Ipv6Addr, DataType::InetProto, DataType::InetService],
        &[DataType::Ipv6Addr, DataType::InetService],
    ),
];

/// True after a match on the type of an ICMP message, as a port would be read as a field of it; and after one
/// on `ct original proto-dst`, as nft does not take its text where the `meta l4proto` before it is not
/// listed, because a match on a port follows.
fn takes_no_port(rule: &Rule) -> bool {
    let icmp = Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 1, dreg: Register(0) };
    let original_port = |e: &Expr| matches!(e, Expr::CtTuple { key: TupleKey::Port(_), .. });
    rule.expressions.contains(&icmp) || rule.expressions.iter().any(original_port)
}

fn chain_name(number: u64) -> Name {
    name(&format!("c{number}"))
}
