//! Which stored deliveries of a source must arrive one after the other?
//!
//! Pure. Invariant: one lane for one source and one key, whenever and by whichever process it is asked for; a delivery
//! without its key, or with one that cannot be relied on, is in no lane and waits for nothing.

use crate::fields::Fields;
use crate::verify::{Found, Json};
use http::HeaderName;
use sha2::{Digest, Sha256};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    None,
    /// All of the source.
    Source,
    /// Those with one value at a JSON pointer.
    Json(String),
    /// Those with one value of a header.
    Header(HeaderName),
}

impl Order {
    pub(crate) fn pointer(&self) -> Option<&str> {
        match self {
            Self::Json(pointer) => Some(pointer),
            Self::None | Self::Source | Self::Header(_) => None,
        }
    }

    /// A hash: two keys may share a lane, and then only wait for each other.
    pub(crate) fn lane(&self, source: &str, headers: &Fields, json: &Json) -> Option<i64> {
        match self {
            Self::None => None,
            Self::Source => Some(lane(source, None)),
            Self::Json(pointer) => match json.at(pointer) {
                Found::Value(key) if !key.is_empty() => Some(lane(source, Some(&key))),
                Found::Value(_) | Found::Absent | Found::Ambiguous => None,
            },
            Self::Header(name) => {
                let mut values = headers.get_all(name);
                match (values.next(), values.next()) {
                    (Some(key), None) if !key.is_empty() => Some(lane(source, Some(key.as_bytes()))),
                    _ => None,
                }
            }
        }
    }
}

/// Kept on disk: it must not change. A source's name has no NUL.
fn lane(source: &str, key: Option<&[u8]>) -> i64 {
    let mut hash = Sha256::new_with_prefix(source);
    if let Some(key) = key {
        hash.update([0]);
        hash.update(key);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().copied().map_or(0, i64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Pointers;
    use http::HeaderValue;

    fn by_customer(source: &str, body: &str) -> Option<i64> {
        let mut pointers = Pointers::default();
        pointers.add("/customer").expect("a pointer");
        let json = pointers.read(body.as_bytes());
        Order::Json("/customer".to_owned()).lane(source, &Fields::new(), &json)
    }

    #[test]
    fn one_source_or_one_key_of_it_is_one_lane() {
        let (headers, json) = (Fields::new(), Json::default());
        let whole = |source| Order::Source.lane(source, &headers, &json);
        assert!(whole("a").is_some() && whole("a") == whole("a"));
        assert_ne!(whole("a"), whole("b"));
        assert_eq!(Order::None.lane("a", &headers, &json), None);
        let one = by_customer("a", r#"{"customer":"c1"}"#);
        assert!(one.is_some());
        assert_eq!(one, by_customer("a", r#"{ "x": [1], "customer": "c1" }"#));
        assert_ne!(one, by_customer("a", r#"{"customer":"c2"}"#));
        assert_ne!(one, by_customer("b", r#"{"customer":"c1"}"#));
        assert_ne!(one, whole("a"));
        assert!(by_customer("a", r#"{"customer":7}"#).is_some());
    }

    #[test]
    fn lanes_on_disk_are_found_again_by_every_version() {
        assert_eq!(Order::Source.lane("shop", &Fields::new(), &Json::default()), Some(lane("shop", None)));
        assert_eq!(lane("shop", None), SHOP);
        assert_eq!(by_customer("shop", r#"{"customer":"c1"}"#), Some(SHOP_C1));
    }

    /// The first 8 bytes of `printf shop | sha256sum` and of `printf 'shop\0c1' | sha256sum`.
    const SHOP: i64 = -8_246_088_911_220_477_891;
    const SHOP_C1: i64 = -2_638_057_685_606_952_678;

    #[test]
    fn a_delivery_without_its_key_is_in_no_lane() {
        for body in [
            "",
            "x",
            "{}",
            r#"{"customer":""}"#,
            r#"{"customer":null}"#,
            r#"{"customer":{}}"#,
            r#"{"customer":1,"customer":2}"#,
        ] {
            assert_eq!(by_customer("a", body), None, "{body}");
        }
        let order = Order::Header(HeaderName::from_static("x-customer"));
        let lane = |values: &[&'static str]| {
            let mut headers = Fields::new();
            for value in values {
                headers.append("x-customer", HeaderValue::from_static(value));
            }
            order.lane("a", &headers, &Json::default())
        };
        assert!(lane(&["1"]).is_some() && lane(&["1"]) != lane(&["2"]));
        for values in [&[][..], &[""], &["1", "2"], &["1", "1"]] {
            assert_eq!(lane(values), None, "{values:?}");
        }
    }
}
