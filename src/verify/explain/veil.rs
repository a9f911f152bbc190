//! What is told holds no secret of the source.
//!
//! Invariant: secrets are taken out before anything is cut, so that no half of one stays; as they are, without white space
//! around them, and without a prefix such as `whsec_`; and once more, as they would be escaped, from every text.

use super::story::escaped;
use crate::secret::Secret;

/// Below this a secret is a word like any other, and taking it out would spoil the text.
const SHORTEST: usize = 4;
/// What stands behind a prefix may be a word.
const SHORTEST_PART: usize = 8;
const INSTEAD: &str = "(the secret)";

#[derive(Debug)]
pub(super) struct Veil(Option<Vec<Secret>>);

impl Veil {
    /// `None`: nobody knows the secrets.
    pub(super) fn new(secrets: Option<Vec<Secret>>) -> Self {
        let forms = |secret: Secret| {
            let whole = secret.expose();
            let behind = whole.rsplit(|byte| *byte == b'_').next().unwrap_or_default();
            [(whole, SHORTEST), (whole.trim_ascii(), SHORTEST), (behind, SHORTEST_PART)]
                .into_iter()
                .filter(|(form, shortest)| form.len() >= *shortest)
                .map(|(form, _)| Secret::new(form.to_vec()))
                .collect::<Vec<_>>()
        };
        Self(secrets.map(|secrets| secrets.into_iter().flat_map(forms).collect()))
    }

    pub(super) fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let Some(secrets) = &self.0 else { return b"(not shown: the configuration cannot be read)".to_vec() };
        let mut bytes = bytes.to_vec();
        for secret in secrets {
            while let Some(at) = find(&bytes, secret.expose()) {
                bytes.splice(at..at + secret.len(), INSTEAD.bytes());
            }
        }
        bytes
    }

    pub(super) fn text(&self, text: String) -> String {
        let Some(secrets) = &self.0 else { return text.split('"').next().unwrap_or_default().to_owned() };
        let mut text = text;
        for secret in secrets {
            for form in [String::from_utf8_lossy(secret.expose()).into_owned(), escaped(secret.expose())] {
                if !INSTEAD.contains(&form) && text.contains(&form) {
                    text = text.replace(&form, INSTEAD);
                }
            }
        }
        text
    }
}

fn find(bytes: &[u8], secret: &[u8]) -> Option<usize> {
    // A secret that stands in what replaces it would be found for ever.
    let loops = INSTEAD.as_bytes().windows(secret.len()).any(|window| window == secret);
    if loops { None } else { bytes.windows(secret.len()).position(|window| window == secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_secret_stays() {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        let veil =
            Veil::new(Some(vec![secret("whsec_abcdefgh"), secret(" with\nline "), secret("abc"), secret("secret")]));
        let told = |text: &str| String::from_utf8(veil.bytes(text.as_bytes())).unwrap();
        assert_eq!(told("1whsec_abcdefgh2abcdefgh3abc"), "1(the secret)2(the secret)3abc");
        assert_eq!(told("x with\nline x with\nlinex"), "x(the secret)x (the secret)x");
        assert_eq!(veil.text("a\"with\\nline\"".to_owned()), "a\"(the secret)\"");
        assert_eq!(told("a secret"), "a secret");
        let unknown = Veil::new(None);
        assert_eq!(unknown.text("header x: \"whsec_ab\"".to_owned()), "header x: ");
        assert!(!String::from_utf8(unknown.bytes(b"body")).unwrap().contains("body"));
    }
}
