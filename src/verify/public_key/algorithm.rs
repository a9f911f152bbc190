//! The names of the signature algorithms, and what their signatures look like.
//!
//! Invariant: an algorithm is whole: curve, hash and form together. Nothing in a message chooses a part of it.

/// Of a public key. SHA-1 is here because some senders know no other; the configuration has to ask for it by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SignatureAlgorithm {
    Ed25519,
    Ecdsa { curve: Curve, hash: Hash, form: Form },
    RsaPkcs1 { hash: Hash },
    RsaPss { hash: Hash },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
    Secp256k1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

/// How the two numbers of an ECDSA signature are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// A sequence of two integers: most webhooks.
    Der,
    /// Both side by side at the curve's full width: JWS, HTTP Message Signatures.
    Raw,
}

/// As the configuration spells them. Only what can be verified is here: the curves with the hashes that senders use.
const NAMES: &[(&str, SignatureAlgorithm)] = {
    use Curve::{P256, P384, P521, Secp256k1};
    use Form::{Der, Raw};
    use Hash::{Sha1, Sha256, Sha384, Sha512};
    use SignatureAlgorithm::{Ed25519, RsaPkcs1, RsaPss};
    const fn ecdsa(curve: Curve, hash: Hash, form: Form) -> SignatureAlgorithm {
        SignatureAlgorithm::Ecdsa { curve, hash, form }
    }
    &[
        ("ed25519", Ed25519),
        ("ecdsa-p256-sha1", ecdsa(P256, Sha1, Der)),
        ("ecdsa-p256-sha1-raw", ecdsa(P256, Sha1, Raw)),
        ("ecdsa-p256-sha256", ecdsa(P256, Sha256, Der)),
        ("ecdsa-p256-sha256-raw", ecdsa(P256, Sha256, Raw)),
        ("ecdsa-p256-sha384", ecdsa(P256, Sha384, Der)),
        ("ecdsa-p256-sha384-raw", ecdsa(P256, Sha384, Raw)),
        ("ecdsa-p256-sha512", ecdsa(P256, Sha512, Der)),
        ("ecdsa-p256-sha512-raw", ecdsa(P256, Sha512, Raw)),
        ("ecdsa-p384-sha256", ecdsa(P384, Sha256, Der)),
        ("ecdsa-p384-sha256-raw", ecdsa(P384, Sha256, Raw)),
        ("ecdsa-p384-sha384", ecdsa(P384, Sha384, Der)),
        ("ecdsa-p384-sha384-raw", ecdsa(P384, Sha384, Raw)),
        ("ecdsa-p384-sha512", ecdsa(P384, Sha512, Der)),
        ("ecdsa-p384-sha512-raw", ecdsa(P384, Sha512, Raw)),
        ("ecdsa-p521-sha1", ecdsa(P521, Sha1, Der)),
        ("ecdsa-p521-sha1-raw", ecdsa(P521, Sha1, Raw)),
        ("ecdsa-p521-sha256", ecdsa(P521, Sha256, Der)),
        ("ecdsa-p521-sha256-raw", ecdsa(P521, Sha256, Raw)),
        ("ecdsa-p521-sha384", ecdsa(P521, Sha384, Der)),
        ("ecdsa-p521-sha384-raw", ecdsa(P521, Sha384, Raw)),
        ("ecdsa-p521-sha512", ecdsa(P521, Sha512, Der)),
        ("ecdsa-p521-sha512-raw", ecdsa(P521, Sha512, Raw)),
        ("ecdsa-secp256k1-sha256", ecdsa(Secp256k1, Sha256, Der)),
        ("ecdsa-secp256k1-sha256-raw", ecdsa(Secp256k1, Sha256, Raw)),
        ("rsa-pkcs1-sha1", RsaPkcs1 { hash: Sha1 }),
        ("rsa-pkcs1-sha256", RsaPkcs1 { hash: Sha256 }),
        ("rsa-pkcs1-sha384", RsaPkcs1 { hash: Sha384 }),
        ("rsa-pkcs1-sha512", RsaPkcs1 { hash: Sha512 }),
        ("rsa-pss-sha256", RsaPss { hash: Sha256 }),
        ("rsa-pss-sha384", RsaPss { hash: Sha384 }),
        ("rsa-pss-sha512", RsaPss { hash: Sha512 }),
    ]
};

impl SignatureAlgorithm {
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }

    pub(crate) fn all() -> impl Iterator<Item = (&'static str, Self)> {
        NAMES.iter().copied()
    }

    #[cfg(test)]
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// As JSON Web Signatures spell it (RFC 7518, 8037 and 8812).
    pub(crate) fn of_jose(name: &str) -> Option<Self> {
        let ecdsa = |curve, hash| Self::Ecdsa { curve, hash, form: Form::Raw };
        Some(match name {
            "EdDSA" | "Ed25519" => Self::Ed25519,
            "ES256" => ecdsa(Curve::P256, Hash::Sha256),
            "ES384" => ecdsa(Curve::P384, Hash::Sha384),
            "ES512" => ecdsa(Curve::P521, Hash::Sha512),
            "ES256K" => ecdsa(Curve::Secp256k1, Hash::Sha256),
            "RS256" => Self::RsaPkcs1 { hash: Hash::Sha256 },
            "RS384" => Self::RsaPkcs1 { hash: Hash::Sha384 },
            "RS512" => Self::RsaPkcs1 { hash: Hash::Sha512 },
            "PS256" => Self::RsaPss { hash: Hash::Sha256 },
            "PS384" => Self::RsaPss { hash: Hash::Sha384 },
            "PS512" => Self::RsaPss { hash: Hash::Sha512 },
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, known)| *known == self).map_or("unsupported", |(name, _)| name)
    }

    pub(crate) fn uses_sha1(self) -> bool {
        match self {
            Self::Ed25519 => false,
            Self::Ecdsa { hash, .. } | Self::RsaPkcs1 { hash } | Self::RsaPss { hash } => hash == Hash::Sha1,
        }
    }

    /// How many bytes a signature can have; what lies outside is malformed, and no key need be asked.
    pub(crate) fn signature_lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Ed25519 => 64..=64,
            Self::Ecdsa { curve, form: Form::Raw, .. } => 2 * curve.width()..=2 * curve.width(),
            // Two integers of one byte at least, and of a sign byte more than the curve's width at most.
            Self::Ecdsa { curve, form: Form::Der, .. } => 8..=(2 * (curve.width() + 3) + 3),
            // Keys of 1024 to 8192 bits.
            Self::RsaPkcs1 { .. } | Self::RsaPss { .. } => 128..=1024,
        }
    }
}

impl Curve {
    /// Bytes in one coordinate, and in each of a raw signature's two numbers.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::P256 | Self::Secp256k1 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}
