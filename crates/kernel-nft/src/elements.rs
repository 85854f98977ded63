//! Elements of sets and maps, packed: a service proxy keeps three for each Service, and a `BTreeMap` takes 130 bytes
//! for one of 12.
//!
//! ```text
//! Elements ── pages, in order ──► rows, in order of their keys:  length, key, value
//!                                  a page is about a kilobyte       └ a byte for its kind, and what it has
//! ```
//!
//! What is asked for is found by its page, and in that by looking at each row.

use std::fmt;
use std::ops::Range;
use std::slice;

use smallvec::SmallVec;

use crate::expr::Verdict;
use crate::ruleset::{Key, Value};

/// Elements in the order of their keys, each key once. They are put together when they are looked at, so they are
/// given by value.
#[derive(Clone, Default)]
pub struct Elements {
    /// None of them is empty.
    pages: Vec<Vec<u8>>,
    len: usize,
}

/// A page with more bytes is split: enough that pages cost little beside their rows, few enough to be looked
/// through at once.
const PAGE: usize = 1024;
/// By how much a page grows.
const GROWTH: usize = 128;
/// A length that does not fit into a byte is told by this one and four more.
const LONG: u8 = u8::MAX;

const MEMBER: u8 = 0;
const UNTIL: u8 = 1;
const DATA: u8 = 2;
const ACCEPT: u8 = 3;
const DROP: u8 = 4;
const RETURN: u8 = 5;
const JUMP: u8 = 6;
const GOTO: u8 = 7;

type Bytes = SmallVec<[u8; 64]>;

/// A row of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Row<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// All of it.
    len: usize,
}

/// Where a row is. If there is none, where it belongs, with no bytes.
struct Place {
    page: usize,
    row: Range<usize>,
}

impl Elements {
    /// No elements.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All, by key.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.rows())
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + use<'_> {
        self.rows().map(|row| Key::from_bytes(row.key))
    }

    /// What the keys are mapped to, by key.
    pub fn values(&self) -> impl Iterator<Item = Value> + use<'_> {
        self.rows().map(|row| decode(row.value))
    }

    /// What a key is mapped to.
    pub fn get(&self, key: &Key) -> Option<Value> {
        self.read(&self.find(key))
    }

    /// Whether there is an element with this key.
    pub fn contains_key(&self, key: &Key) -> bool {
        !self.find(key).row.is_empty()
    }

    /// The last element whose key is this one or before it.
    pub fn last_until(&self, key: &Key) -> Option<(Key, Value)> {
        let page = self.pages.get(self.page_of(key))?;
        rows(page).take_while(|row| row.key <= key.as_bytes()).last().map(Row::read)
    }

    /// Puts an element in; gives what its key was mapped to.
    pub fn insert(&mut self, key: Key, value: Value) -> Option<Value> {
        let row = encode(&key, &value);
        let mut place = self.find(&key);
        let before = self.read(&place);
        if before.is_none() {
            self.len += 1;
            place = self.make_room(&key, row.len(), place);
        }
        let page = &mut self.pages[place.page];
        if page.capacity() < page.len() + row.len() {
            page.reserve_exact(row.len().max(GROWTH));
        }
        page.splice(place.row, row);
        before
    }

    /// Takes an element out; gives what its key was mapped to.
    pub fn remove(&mut self, key: &Key) -> Option<Value> {
        let Place { page: number, row } = self.find(key);
        let before = self.read(&Place { page: number, row: row.clone() })?;
        self.len -= 1;
        let page = &mut self.pages[number];
        page.drain(row);
        let left = page.len();
        if left == 0 {
            self.pages.remove(number);
        } else if self.pages.get(number + 1).is_some_and(|next| left + next.len() <= PAGE / 2) {
            let next = self.pages.remove(number + 1);
            self.pages[number].extend(next);
        }
        Some(before)
    }

    /// Elements that others have not, or have with another value.
    pub(crate) fn not_in<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = (Key, Value)> + use<'a> {
        let mut theirs = others.rows().peekable();
        let differs = move |ours: &Row<'_>| {
            while theirs.next_if(|their| their.key < ours.key).is_some() {}
            theirs.peek() != Some(ours)
        };
        self.rows().filter(differs).map(Row::read)
    }

    fn rows(&self) -> Rows<'_> {
        Rows { page: &[], pages: self.pages.iter() }
    }

    fn read(&self, place: &Place) -> Option<Value> {
        let page = self.pages.get(place.page)?;
        rows(&page[place.row.clone()]).next().map(|row| decode(row.value))
    }

    /// The page in which a key is, if it is there.
    fn page_of(&self, key: &Key) -> usize {
        let begins_before = |page: &Vec<u8>| rows(page).next().is_some_and(|row| row.key <= key.as_bytes());
        self.pages.partition_point(begins_before).saturating_sub(1)
    }

    fn find(&self, key: &Key) -> Place {
        let page = self.page_of(key);
        let mut at = 0;
        for row in self.pages.get(page).into_iter().flat_map(|page| rows(page)) {
            if row.key >= key.as_bytes() {
                let len = if row.key == key.as_bytes() { row.len } else { 0 };
                return Place { page, row: at..at + len };
            }
            at += row.len;
        }
        Place { page, row: at..at }
    }

    /// Where a row belongs that is not there, on a page with room for it.
    fn make_room(&mut self, key: &Key, len: usize, place: Place) -> Place {
        let Some(page) = self.pages.get(place.page) else {
            self.pages.push(Vec::new());
            return Place { page: 0, row: 0..0 };
        };
        if page.len() + len <= PAGE {
            return place;
        }
        if place.row.start == page.len() && place.page + 1 == self.pages.len() {
            // Where rows come in order, full pages are left behind.
            self.pages.push(Vec::new());
            return Place { page: place.page + 1, row: 0..0 };
        }
        self.split(place.page);
        self.find(key)
    }

    /// Makes two pages of one, unless it has a single row.
    fn split(&mut self, number: usize) {
        let page = &mut self.pages[number];
        let half = page.len() / 2;
        let mut at = 0;
        for row in rows(page) {
            if at > half {
                break;
            }
            at += row.len;
        }
        let rest = page.split_off(at);
        page.shrink_to_fit();
        if !rest.is_empty() {
            self.pages.insert(number + 1, rest);
        }
    }
}

impl PartialEq for Elements {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.rows().eq(other.rows())
    }
}

impl Eq for Elements {}

impl fmt::Debug for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl Extend<(Key, Value)> for Elements {
    fn extend<T: IntoIterator<Item = (Key, Value)>>(&mut self, elements: T) {
        for (key, value) in elements {
            self.insert(key, value);
        }
    }
}

impl FromIterator<(Key, Value)> for Elements {
    fn from_iter<T: IntoIterator<Item = (Key, Value)>>(elements: T) -> Self {
        let mut all = Self::new();
        all.extend(elements);
        all
    }
}

impl<const N: usize> From<[(Key, Value); N]> for Elements {
    fn from(elements: [(Key, Value); N]) -> Self {
        elements.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Elements {
    type Item = (Key, Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// All elements, by key.
#[derive(Clone)]
pub struct Iter<'a>(Rows<'a>);

impl Iterator for Iter<'_> {
    type Item = (Key, Value);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(Row::read)
    }
}

/// The rows that are left of a page, and of the pages after it.
#[derive(Clone)]
struct Rows<'a> {
    page: &'a [u8],
    pages: slice::Iter<'a, Vec<u8>>,
}

/// The rows of a page, or of a part of it.
fn rows(page: &[u8]) -> Rows<'_> {
    Rows { page, pages: [].iter() }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        while self.page.is_empty() {
            self.page = self.pages.next()?;
        }
        let (key, rest) = part(self.page)?;
        let after = match rest.first()? {
            &(UNTIL | DATA | JUMP | GOTO) => part(&rest[1..])?.1,
            _ => &rest[1..],
        };
        let row = Row { key, value: &rest[..rest.len() - after.len()], len: self.page.len() - after.len() };
        self.page = after;
        Some(row)
    }
}

impl Row<'_> {
    fn read(self) -> (Key, Value) {
        (Key::from_bytes(self.key), decode(self.value))
    }
}

/// Takes what was written by [`put`] from the beginning of some bytes.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    if len != LONG {
        return rest.split_at_checked(len.into());
    }
    let (len, rest) = rest.split_first_chunk()?;
    rest.split_at_checked(usize::from_le_bytes(*len))
}

/// Writes bytes with their number before them.
fn put(row: &mut Bytes, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) if len != LONG => row.push(len),
        _ => {
            row.push(LONG);
            row.extend_from_slice(&bytes.len().to_le_bytes());
        }
    }
    row.extend_from_slice(bytes);
}

/// A row.
fn encode(key: &Key, value: &Value) -> Bytes {
    let (kind, what) = match value {
        Value::Member => (MEMBER, None),
        Value::Until(last) => (UNTIL, Some(last.as_bytes())),
        Value::Data(data) => (DATA, Some(data.as_bytes())),
        Value::Verdict(Verdict::Accept) => (ACCEPT, None),
        Value::Verdict(Verdict::Drop) => (DROP, None),
        Value::Verdict(Verdict::Return) => (RETURN, None),
        Value::Verdict(Verdict::Jump(chain)) => (JUMP, Some(chain.as_bytes())),
        Value::Verdict(Verdict::Goto(chain)) => (GOTO, Some(chain.as_bytes())),
    };
    let mut row = Bytes::new();
    put(&mut row, key.as_bytes());
    row.push(kind);
    if let Some(what) = what {
        put(&mut row, what);
    }
    row
}

/// The value of a row.
fn decode(value: &[u8]) -> Value {
    let (kind, what) = value.split_first().unwrap_or((&MEMBER, &[]));
    let what = part(what).map_or(&[][..], |(what, _)| what);
    // It was text when it was written.
    let chain = || str::from_utf8(what).unwrap_or_default().into();
    match *kind {
        UNTIL => Value::Until(Key::from_bytes(what)),
        DATA => Value::Data(Key::from_bytes(what)),
        ACCEPT => Value::Verdict(Verdict::Accept),
        DROP => Value::Verdict(Verdict::Drop),
        RETURN => Value::Verdict(Verdict::Return),
        JUMP => Value::Verdict(Verdict::Jump(chain())),
        GOTO => Value::Verdict(Verdict::Goto(chain())),
        _ => Value::Member,
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    /// Few keys, of a few lengths, so that they meet; many more than fit on a page.
    fn key() -> impl Strategy<Value = Key> {
        let bytes = prop_oneof![
            8 => any::<[u8; 2]>().prop_map(|bytes| [&[10, 96], &bytes[..], &[6, 0, 0, 0, 0, 80, 0, 0]].concat()),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
            1 => Just(vec![7; 300]),
            1 => Just(Vec::new()),
        ];
        bytes.prop_map(|bytes| Key::from_bytes(&bytes))
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Member),
            key().prop_map(Value::Until),
            key().prop_map(Value::Data),
            Just(Value::Verdict(Verdict::Accept)),
            Just(Value::Verdict(Verdict::Drop)),
            Just(Value::Verdict(Verdict::Return)),
            "[a-zä]{0,20}".prop_map(|chain| Value::Verdict(Verdict::Jump(chain.into()))),
            Just(Value::Verdict(Verdict::Goto("x".repeat(255).into()))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn they_hold_what_a_map_holds(
            first in prop::collection::btree_map(key(), value(), 0..600),
            steps in prop::collection::vec((key(), prop::option::of(value())), 0..600),
        ) {
            // In order, as many come at first; then anywhere.
            let mut elements: Elements = first.clone().into_iter().collect();
            let mut map = first;
            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(elements.insert(key.clone(), value.clone()), map.insert(key, value)),
                    None => prop_assert_eq!(elements.remove(&key), map.remove(&key)),
                }
            }
            for key in map.keys().cloned().collect::<Vec<_>>().iter().step_by(2) {
                prop_assert_eq!(elements.remove(key), map.remove(key));
            }
            prop_assert_eq!(elements.len(), map.len());
            prop_assert!(elements.iter().eq(map.clone()));
            prop_assert!(elements.pages.iter().all(|page| !page.is_empty()));
            prop_assert_eq!(&elements, &map.clone().into_iter().collect());
        }

        #[test]
        fn they_are_found_as_in_a_map(
            map in prop::collection::btree_map(key(), value(), 0..300), asked in prop::collection::vec(key(), 0..50),
        ) {
            let elements: Elements = map.clone().into_iter().collect();
            for key in map.keys().chain(&asked) {
                prop_assert_eq!(elements.get(key), map.get(key).cloned());
                prop_assert_eq!(elements.contains_key(key), map.contains_key(key));
                let last = map.range(..=key.clone()).next_back().map(|(key, value)| (key.clone(), value.clone()));
                prop_assert_eq!(elements.last_until(key), last);
            }
        }

        #[test]
        fn what_is_not_in_others_is_missing_there_or_differs(
            ours in prop::collection::btree_map(key(), value(), 0..100),
            theirs in prop::collection::btree_map(key(), value(), 0..100),
        ) {
            let mut theirs = theirs;
            theirs.extend(ours.clone().into_iter().step_by(2));
            let not_in: Vec<_> = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(*value))
                .map(|(key, value)| (key.clone(), value.clone())).collect();
            let (ours, theirs): (Elements, Elements) = (ours.into_iter().collect(), theirs.into_iter().collect());
            prop_assert_eq!(ours.not_in(&theirs).collect::<Vec<_>>(), not_in);
        }
    }

    #[test]
    fn an_element_takes_little_more_than_its_key() {
        let front = |n: u32| Key::address_proto_port(std::net::Ipv4Addr::from(n).into(), 6, 80);
        let elements: Elements = (0..20_000).map(|n| (front(n), Value::Member)).collect();
        let bytes: usize = elements.pages.iter().map(Vec::capacity).sum();
        let pages = elements.pages.capacity() * size_of::<Vec<u8>>();
        assert!((bytes + pages) / elements.len() <= 18, "{} bytes each", (bytes + pages) / elements.len());
    }
}
