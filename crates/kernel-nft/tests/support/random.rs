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
        let types: [&[DataType]; 9] = [
            &[Ipv4Addr],
            &[Ipv6Addr],
            &[Ipv4Addr, InetService],
            &[Ipv6Addr, InetProto, InetService],
            &[InetProto, InetService],
            &[Icmpv6Type],
            &[Ipv4Addr, Ipv4Addr],
            &[Mark],
            &[InetService],
        ];
        let kind = if self.chance(5) { self.below(9) } else { number };
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

    fn map(&mut self, chains: &[u64]) -> Set {
        let spec = SetSpec { comment: self.comment(), ..SetSpec::verdicts(&[DataType::Ipv4Addr]) };
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
        let icmp = Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 1, dreg: Register(0) };
        if rule.expressions.contains(&icmp) {
            return rule;
        }
        let typed = |key: &[DataType]| -> Vec<Name> {
            let right = |set: &Set| set.spec.key == key && set.spec.maps_to == MapsTo::Nothing;
            ruleset.sets.iter().filter(|(_, set)| right(set)).map(|(name, _)| name.clone()).collect()
        };
        use DataType::*;
        match self.below(13) {
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
            _ if version == IpVersion::V4 => match typed(&[Ipv4Addr, Ipv4Addr]).first() {
                Some(set) => rule.address_pair_in(IpVersion::V4, set),
                None => rule,
            },
            _ => match typed(&[Icmpv6Type]).first() {
                Some(set) if rule.expressions.is_empty() => rule.icmpv6_type_in(set),
                _ => rule,
            },
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
        match (self.below(9), above.as_slice()) {
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
        for number in 0..9 {
            if self.chance(70) {
                ruleset.sets.insert(name(&format!("s{number}")), self.set(number));
            }
        }
        if self.chance(80) {
            ruleset.sets.insert(name("m0"), self.map(&chains));
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
        ruleset
    }
}

fn chain_name(number: u64) -> Name {
    name(&format!("c{number}"))
}
