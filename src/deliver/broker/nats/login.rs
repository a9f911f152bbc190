//! Who we are to a server.
//!
//! Invariant: no error repeats a part of a secret: neither the parsers' words nor their sources are passed on.

use async_nats::ConnectOptions;
use nkeys::{KeyPair, KeyPairType};

use super::super::settings::NatsAuth;
use crate::secret::Secret;

pub(super) fn options(auth: &NatsAuth) -> Result<ConnectOptions, String> {
    let options = ConnectOptions::new();
    Ok(match auth {
        NatsAuth::None => options,
        NatsAuth::Password { username, password } => {
            options.user_and_password(username.clone(), text(password, "password")?.to_owned())
        }
        NatsAuth::Token(token) => options.token(text(token, "token")?.to_owned()),
        NatsAuth::Credentials(credentials) => {
            // The parser wants the end of the last line, which is cut off secrets that are files.
            let credentials = format!("{}\n", text(credentials, "credentials")?);
            options
                .credentials(&credentials)
                .map_err(|_| "is not the text of a .creds file: a user's JWT and the seed of its key".to_owned())?
        }
        NatsAuth::NKey(seed) => {
            let seed = text(seed, "nkey")?.trim();
            let is_user = KeyPair::from_seed(seed).is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User);
            if !is_user {
                return Err("is not the seed of a user's nkey, which begins with SU".to_owned());
            }
            options.nkey(seed.to_owned())
        }
    })
}

fn text<'a>(secret: &'a Secret, what: &str) -> Result<&'a str, String> {
    std::str::from_utf8(secret.expose()).map_err(|_| format!("is no text, as a {what} is"))
}
