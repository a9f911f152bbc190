//! The inverse: the token that the sender would put into a request.
//!
//! Invariant: what is signed is made by the same code that judges it.

use super::super::sign::{Draft, SignError, Signing};
use super::{Jwt, Payload};

impl Jwt {
    pub(super) fn put_token(&self, _draft: &mut Draft, _signing: &Signing<'_>) -> Result<(), SignError> {
        match &self.payload {
            Payload::Claims(_) | Payload::Body | Payload::TrueLayer(_) => Err(SignError::NeedsPrivateKey),
        }
    }
}
