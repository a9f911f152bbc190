//! Is the body the one whose digest was signed? `Content-Digest` (RFC 9530) and the older `Digest` (RFC 3230).
//!
//! Invariant: SHA-256 and SHA-512 count, and every one of them that is stated must be the body's; a digest of another
//! kind says nothing. A signature over a digest stands for the body only behind this comparison.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

use super::Flaw;
use super::structured::{Bare, Dictionary, Member};
use crate::verify::key::BASE64;

const NONE_KNOWN: Flaw = Flaw::Algorithm("the body's digest is neither SHA-256 nor SHA-512");
const OTHER_BODY: Flaw = Flaw::BodyMismatch("the body is not the one whose digest was signed");
/// More than anybody states; each costs a walk over the body.
const MAX_DIGESTS: usize = 8;

pub(super) fn check_content_digest(field: &str, body: &[u8]) -> Result<(), Flaw> {
    const NO_DIGESTS: Flaw = Flaw::Malformed("Content-Digest is not a dictionary of byte sequences");
    let stated = Dictionary::parse(field).ok_or(NO_DIGESTS)?;
    let mut any = false;
    for (name, member) in stated.iter() {
        let Member::Item(item) = member else { return Err(NO_DIGESTS) };
        let Bare::Bytes(digest) = &item.value else { return Err(NO_DIGESTS) };
        any |= check(name, digest, body)?;
    }
    if any { Ok(()) } else { Err(NONE_KNOWN) }
}

/// Of RFC 3230: names in any case, base64 as it is.
pub(super) fn check_digest(field: &str, body: &[u8]) -> Result<(), Flaw> {
    const NO_DIGESTS: Flaw = Flaw::Malformed("Digest is not a list of names and base64");
    let mut seen: Vec<String> = Vec::new();
    let mut any = false;
    for part in field.split(',') {
        let (name, encoded) = part.trim().split_once('=').ok_or(NO_DIGESTS)?;
        let name = name.to_ascii_lowercase();
        if seen.len() == MAX_DIGESTS || seen.contains(&name) {
            return Err(NO_DIGESTS);
        }
        if matches!(name.as_str(), "sha-256" | "sha-512") {
            let digest = BASE64.decode(encoded).map_err(|_| NO_DIGESTS)?;
            any |= check(&name, &digest, body)?;
        }
        seen.push(name);
    }
    if any { Ok(()) } else { Err(NONE_KNOWN) }
}

/// The digest of a body is no secret; it is compared like one so that nobody has to ask.
fn check(name: &str, stated: &[u8], body: &[u8]) -> Result<bool, Flaw> {
    let is_ours: bool = match name {
        "sha-256" => Sha256::digest(body).ct_eq(stated).into(),
        "sha-512" => Sha512::digest(body).ct_eq(stated).into(),
        _ => return Ok(false),
    };
    if is_ours { Ok(true) } else { Err(OTHER_BODY) }
}

/// What a sender would state.
pub(super) fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

pub(super) fn digest(body: &[u8]) -> String {
    format!("SHA-256={}", STANDARD.encode(Sha256::digest(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"hello": "world"}"#;
    // RFC 9421, appendix B.2; RFC 9530, appendix D.
    const SHA_256: &str = "X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=";
    const SHA_512: &str = "WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==";

    #[test]
    fn the_published_digests_are_the_bodys() {
        for field in [
            format!("sha-256=:{SHA_256}:"),
            format!("sha-512=:{SHA_512}:"),
            format!("md5=:AAEC:, sha-512=:{SHA_512}:, sha-256=:{SHA_256}:"),
            content_digest(BODY),
        ] {
            assert_eq!(check_content_digest(&field, BODY), Ok(()), "{field}");
            assert_eq!(check_content_digest(&field, b"{}"), Err(OTHER_BODY), "{field}");
        }
        for field in [
            format!("SHA-256={SHA_256}"),
            format!("sha-256={SHA_256}, SHA-512={SHA_512}"),
            format!("UNIXsum=30637,sha-512={SHA_512}"),
            digest(BODY),
        ] {
            assert_eq!(check_digest(&field, BODY), Ok(()), "{field}");
            assert_eq!(check_digest(&field, b"{}"), Err(OTHER_BODY), "{field}");
        }
    }

    #[test]
    fn one_wrong_digest_among_right_ones_is_enough() {
        let zeros = STANDARD.encode([0; 64]);
        let mixed = format!("sha-256=:{SHA_256}:, sha-512=:{zeros}:");
        assert_eq!(check_content_digest(&mixed, BODY), Err(OTHER_BODY));
        assert_eq!(check_digest(&format!("sha-512={zeros},sha-256={SHA_256}"), BODY), Err(OTHER_BODY));
        assert_eq!(check_content_digest(&format!("sha-256=:{}:", &SHA_256[..8]), BODY), Err(OTHER_BODY));
    }

    #[test]
    fn digests_that_can_be_forged_do_not_count() {
        for field in ["md5=:Sd/dVLAcvNLSq16eXua5uQ==:", "sha=:AAEC:", "crc32c=:AAEC:", ""] {
            assert_eq!(check_content_digest(field, BODY), Err(NONE_KNOWN), "{field}");
        }
        assert_eq!(check_digest("MD5=Sd/dVLAcvNLSq16eXua5uQ==", BODY), Err(NONE_KNOWN));
    }

    #[test]
    fn what_is_no_digest_or_states_one_twice_is_malformed() {
        for field in [
            format!("sha-256={SHA_256}"),
            format!("sha-256=(:{SHA_256}:)"),
            "sha-256".to_owned(),
            "sha-256=\"x\"".to_owned(),
            format!("sha-256=:{SHA_256}:, sha-256=:{SHA_256}:"),
            format!("SHA-256=:{SHA_256}:"),
        ] {
            assert!(matches!(check_content_digest(&field, BODY), Err(Flaw::Malformed(_))), "{field}");
        }
        for field in ["", "sha-256", "sha-256=***", &format!("sha-256={SHA_256},SHA-256={SHA_256}"), &"a=b,".repeat(20)]
        {
            assert!(matches!(check_digest(field, BODY), Err(Flaw::Malformed(_))), "{field}");
        }
    }
}
