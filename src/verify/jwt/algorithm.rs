//! The signature algorithms of JSON Web Tokens, by the names of RFC 7518 and RFC 8037.
//!
//! Invariant: `none` is not among them, and no name means two things. A token's own `alg` is only ever compared with
//! what the configuration lists.

use super::super::hmac::Hash;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JwsAlgorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    Es256K,
    EdDsa,
}

impl JwsAlgorithm {
    pub(crate) const ALL: [Self; 14] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Es256K,
        Self::EdDsa,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Es256K => "ES256K",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Exact: `None`, `nOnE` and `hs256` are names of nothing.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The hash of those that share a secret; the others have public keys.
    pub(crate) fn mac(self) -> Option<Hash> {
        match self {
            Self::Hs256 => Some(Hash::Sha256),
            Self::Hs384 => Some(Hash::Sha384),
            Self::Hs512 => Some(Hash::Sha512),
            Self::Rs256
            | Self::Rs384
            | Self::Rs512
            | Self::Ps256
            | Self::Ps384
            | Self::Ps512
            | Self::Es256
            | Self::Es384
            | Self::Es512
            | Self::Es256K
            | Self::EdDsa => None,
        }
    }

    pub(crate) fn is_shared(self) -> bool {
        self.mac().is_some()
    }
}
