//! Header fields (RFC 9110 §5) in the order in which they came, duplicates kept.
//!
//! A delivery has some ten of them, looked up a handful of times: walking a list costs less than building a hash table.
//! Invariant: nothing here costs more than one walk over the list (`keys`, which is for tools, one for each field), and
//! names that a stranger chose are sorted before they are looked for: a message of many fields costs what its length does.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::cell::RefCell;
use std::fmt;

#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(HeaderName, HeaderValue)>);

/// What a field can be looked up by, in whatever case.
pub(crate) trait Name {
    fn is(&self, name: &HeaderName) -> bool;
}

impl Name for HeaderName {
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        self == name
    }
}

impl Name for str {
    fn is(&self, name: &HeaderName) -> bool {
        self.eq_ignore_ascii_case(name.as_str())
    }
}

impl<N: Name + ?Sized> Name for &N {
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        (**self).is(name)
    }
}

/// What a field can be called.
pub(crate) trait Named {
    fn named(self) -> HeaderName;
}

impl Named for HeaderName {
    #[inline]
    fn named(self) -> HeaderName {
        self
    }
}

impl Named for &HeaderName {
    #[inline]
    fn named(self) -> HeaderName {
        self.clone()
    }
}

/// As a test writes it, in small letters.
#[cfg(any(test, feature = "measure"))]
impl Named for &'static str {
    fn named(self) -> HeaderName {
        HeaderName::from_static(self)
    }
}

#[cfg(test)]
impl<N: Name> std::ops::Index<N> for Fields {
    type Output = HeaderValue;

    fn index(&self, name: N) -> &HeaderValue {
        self.get(name).expect("a field of the name")
    }
}

impl Fields {
    /// What the gateway adds to a delivery's own before it leaves: whoever makes a delivery leaves room for as many.
    /// Five that tell how it came, six that tell what it is.
    pub(crate) const ADDED: usize = 11;

    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    pub(crate) fn reserve(&mut self, more: usize) {
        self.0.reserve(more);
    }

    /// How many fields, not how many names.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self, name: &impl Name) -> Option<usize> {
        self.0.iter().position(|(other, _)| name.is(other))
    }

    pub(crate) fn contains_key(&self, name: impl Name) -> bool {
        self.place(&name).is_some()
    }

    /// The first of the name.
    pub(crate) fn get(&self, name: impl Name) -> Option<&HeaderValue> {
        self.iter().find(|(other, _)| name.is(other)).map(|(_, value)| value)
    }

    /// All of the name, as they came.
    pub(crate) fn get_all<N: Name>(&self, name: N) -> impl DoubleEndedIterator<Item = &HeaderValue> + use<'_, N> {
        self.iter().filter(move |(other, _)| name.is(other)).map(|(_, value)| value)
    }

    /// In the order in which they came.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&HeaderName, &HeaderValue)> + Clone {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// Each name once, in the order in which they first came.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &HeaderName> {
        let names = || self.0.iter().map(|(name, _)| name);
        let is_first = move |(place, name): &(usize, &HeaderName)| !names().take(*place).any(|one| one == *name);
        names().enumerate().filter(is_first).map(|(_, name)| name)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &HeaderValue> {
        self.0.iter().map(|(_, value)| value)
    }

    /// One more, behind all others.
    #[inline]
    pub(crate) fn append(&mut self, name: impl Named, value: HeaderValue) {
        self.0.push((name.named(), value));
    }

    /// In place of all of the name: where the first of them stood, or behind all others.
    pub(crate) fn insert(&mut self, name: impl Named, value: HeaderValue) {
        let name = name.named();
        let Some(first) = self.place(&name) else { return self.append(name, value) };
        if let Some((_, there)) = self.0.get_mut(first) {
            *there = value;
        }
        self.retain_from(first + 1, |other| *other != name);
    }

    /// Takes away all of the name, and gives the first.
    #[cfg(test)]
    pub(crate) fn remove(&mut self, name: impl Name) -> Option<HeaderValue> {
        let first = self.place(&name)?;
        let value = self.0.get(first).map(|(_, value)| value.clone());
        self.retain_from(first, |other| !name.is(other));
        value
    }

    /// Keeps those whose name passes.
    pub(crate) fn retain(&mut self, keeps: impl FnMut(&HeaderName) -> bool) {
        self.retain_from(0, keeps);
    }

    fn retain_from(&mut self, first: usize, mut keeps: impl FnMut(&HeaderName) -> bool) {
        let mut place = 0;
        self.0.retain(|(name, _)| {
            place += 1;
            place <= first || keeps(name)
        });
    }

    /// Takes away all of these names, of which a stranger may have sent thousands.
    pub(crate) fn remove_every(&mut self, mut names: Vec<HeaderName>) {
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        self.retain(|name| names.binary_search_by(|one| one.as_str().cmp(name.as_str())).is_err());
    }
}

/// A name as it came, in whatever case. None: it is none.
///
/// Senders and upstreams write the same names again and again, and to make one costs a copy and an allocation: those that
/// a worker saw last are kept. Whoever writes others puts them out of their places, and gains nothing by it.
pub(crate) fn name(sent: &[u8]) -> Option<HeaderName> {
    struct Known {
        sent: Box<[u8]>,
        name: HeaderName,
    }
    const LONGEST: usize = 64;
    const PLACES: usize = 64;
    thread_local! {
        static KNOWN: RefCell<[Option<Known>; PLACES]> = const { RefCell::new([const { None }; PLACES]) };
    }
    let place = match sent {
        [first, .., last] if sent.len() <= LONGEST => {
            let middle = sent.get(sent.len() / 2).copied().unwrap_or_default();
            (sent.len() + 5 * usize::from(*first) + 11 * usize::from(middle) + 3 * usize::from(*last)) % PLACES
        }
        _ => return HeaderName::from_bytes(sent).ok(),
    };
    KNOWN.with_borrow_mut(|known| {
        let there = known.get_mut(place)?;
        if let Some(known) = there
            && *known.sent == *sent
        {
            return Some(known.name.clone());
        }
        let name = HeaderName::from_bytes(sent).ok()?;
        *there = Some(Known { sent: sent.into(), name: name.clone() });
        Some(name)
    })
}

impl IntoIterator for Fields {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<(HeaderName, HeaderValue)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Appends.
impl Extend<(HeaderName, HeaderValue)> for Fields {
    fn extend<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(&mut self, fields: I) {
        let fields = fields.into_iter();
        self.reserve(fields.size_hint().0);
        fields.for_each(|(name, value)| self.append(name, value));
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        let mut made = Self::new();
        made.extend(fields);
        made
    }
}

/// With room for what the gateway adds. Of one name the order stays; which of two names came first a map does not know.
impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len() + Self::ADDED);
        for (name, value) in map {
            // A map names only the first of each name.
            if let Some(name) = name.or_else(|| fields.0.last().map(|(name, _)| name.clone())) {
                fields.append(name, value);
            }
        }
        fields
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        // And for what whoever sends it adds: the date, the length.
        let mut map = Self::with_capacity(fields.len() + 2);
        map.extend(fields);
        map
    }
}

/// As a map prints, sensitive values hidden.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).expect("a name")
    }

    fn fields(list: &[(&str, &'static str)]) -> Fields {
        list.iter().map(|(of, value)| (name(of), HeaderValue::from_static(value))).collect()
    }

    fn text(fields: &Fields) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned())).collect()
    }

    fn all<'f>(fields: &'f Fields, of: &str) -> Vec<&'f str> {
        fields.get_all(of).map(|value| value.to_str().expect("text")).collect()
    }

    #[test]
    fn fields_stay_as_they_came_and_are_found_in_any_case() {
        let sent = fields(&[("X-B", "1"), ("accept", "2"), ("x-b", "3"), ("X-A", "4")]);
        let came = [("x-b", "1"), ("accept", "2"), ("x-b", "3"), ("x-a", "4")];
        assert_eq!(text(&sent), came.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(all(&sent, "X-b"), ["1", "3"]);
        assert_eq!(sent.get("ACCEPT"), sent.get(http::header::ACCEPT));
        assert_eq!(sent.get(name("x-b")).expect("the first"), "1");
        assert_eq!(sent.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-b", "accept", "x-a"]);
        assert!(sent.contains_key("x-A") && !sent.contains_key("x-") && !sent.contains_key("x_a"));
        assert_eq!((sent.len(), Fields::new().len()), (4, 0));
    }

    #[test]
    fn what_is_inserted_replaces_all_of_its_name_and_what_is_removed_leaves_none() {
        let mut changed = fields(&[("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-c", "4"), ("x-a", "5")]);
        changed.insert(name("x-a"), HeaderValue::from_static("new"));
        assert_eq!(changed, fields(&[("x-a", "new"), ("x-b", "2"), ("x-c", "4")]));
        changed.append(name("x-b"), HeaderValue::from_static("6"));
        assert_eq!(changed.remove("x-b").expect("the first"), "2");
        assert_eq!(changed.remove("x-b"), None);
        assert_eq!(changed, fields(&[("x-a", "new"), ("x-c", "4")]));
        changed.insert(name("x-d"), HeaderValue::from_static("7"));
        assert_eq!(changed, fields(&[("x-a", "new"), ("x-c", "4"), ("x-d", "7")]));
    }

    #[test]
    fn fields_are_made_from_a_map_and_into_one() {
        let sent = fields(&[("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("x-a", "4")]);
        let map = HeaderMap::from(sent);
        assert_eq!(map.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2", "4"]);
        let again = Fields::from(map);
        assert_eq!((all(&again, "x-a"), all(&again, "x-b")), (vec!["1", "2", "4"], vec!["3"]));
    }

    #[test]
    fn a_value_that_is_marked_sensitive_is_not_printed() {
        let mut told = fields(&[("x-a", "1")]);
        let mut secret = HeaderValue::from_static("hunter2");
        secret.set_sensitive(true);
        told.append(name("authorization"), secret);
        assert_eq!(format!("{told:?}"), r#"{"x-a": "1", "authorization": Sensitive}"#);
    }

    #[test]
    fn thousands_of_names_to_take_away_from_many_fields_cost_no_more_than_sorting_them() {
        let mut sent: Fields =
            (0..100).map(|number| (name(&format!("x-{number}")), HeaderValue::from_static("1"))).collect();
        let names: Vec<HeaderName> = (1..20_000).map(|number| name(&format!("x-{number}"))).collect();
        let begun = std::time::Instant::now();
        sent.remove_every(names);
        assert_eq!(sent, fields(&[("x-0", "1")]));
        assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn a_name_is_the_same_however_often_and_in_whatever_case_it_comes() {
        for _ in 0..3 {
            for text in ["Host", "host", "HOST", "X-GitHub-Event", "x-github-event", "x", "te", "X_a.b~!"] {
                assert_eq!(super::name(text.as_bytes()).expect("a name").as_str(), text.to_ascii_lowercase());
            }
            for text in [&b""[..], b" host", b"host ", b"ho st", b"x:", b"x\n", b"caf\xe9", &[b'a'; 70_000]] {
                assert_eq!(super::name(text), None);
            }
            let long = [b'A'; 200];
            assert_eq!(super::name(&long).expect("a name").as_str(), "a".repeat(200));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(u8, u16),
        Insert(u8, u16),
        Remove(u8),
        RemoveEvery(Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..5u8, any::<u16>()).prop_map(|(name, value)| Step::Append(name, value)),
            (0..5u8, any::<u16>()).prop_map(|(name, value)| Step::Insert(name, value)),
            (0..5u8).prop_map(Step::Remove),
            proptest::collection::vec(0..5u8, 0..4).prop_map(Step::RemoveEvery),
        ]
    }

    proptest! {
        #[test]
        fn whatever_names_come_each_is_its_own(names in proptest::collection::vec("[a-cA-C-]{1,5}|[ -~]{0,9}", 0..200)) {
            for text in &names {
                prop_assert_eq!(super::name(text.as_bytes()), HeaderName::from_bytes(text.as_bytes()).ok(), "{}", text);
            }
        }

        #[test]
        fn whatever_is_done_each_name_has_the_values_that_a_map_would_have(
            steps in proptest::collection::vec(step(), 0..40),
        ) {
            let (mut fields, mut map) = (Fields::new(), HeaderMap::new());
            let of = |number: u8| [name("x-0"), name("x-1"), name("accept"), name("host"), name("x-a")][usize::from(number)].clone();
            for step in steps {
                match step {
                    Step::Append(name, value) => {
                        fields.append(of(name), value.into());
                        map.append(of(name), value.into());
                    }
                    Step::Insert(name, value) => {
                        fields.insert(of(name), value.into());
                        map.insert(of(name), value.into());
                    }
                    Step::Remove(name) => prop_assert_eq!(fields.remove(of(name)), map.remove(of(name))),
                    Step::RemoveEvery(names) => {
                        names.iter().for_each(|name| drop(map.remove(of(*name))));
                        fields.remove_every(names.into_iter().map(of).collect());
                    }
                }
                prop_assert_eq!(fields.len(), map.len());
                for name in (0..5).map(of) {
                    prop_assert_eq!(fields.get(&name), map.get(&name));
                    prop_assert_eq!(fields.get_all(&name).collect::<Vec<_>>(), map.get_all(&name).iter().collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(HeaderMap::from(fields), map);
        }
    }
}
