//! Public keys that are configured: Ed25519, ECDSA and RSA over a template.

use serde_json::Value;

use super::{preset_with, quoted, texts, tolerance};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    match provider {
        // The other of Fireblocks' shapes is a token.
        "fireblocks" if config["scheme"] != "rsa-static" => None,
        "qq_bot" => Some(preset_with("qq-bot", &[config["bot_secret"].as_str()?]) + &tolerance_of(config)),
        "standard_webhooks_v1a" => {
            Some(preset_with("standard-webhooks-v1a", &texts(&config["public_keys"])) + &tolerance_of(config))
        }
        "github_secret_scanning" | "ebay" | "circle" | "wechat_pay" => {
            let keys = config["keys"].as_object()?.iter();
            let secrets: Option<Vec<_>> = keys
                .map(|(id, key)| Some(format!("{{ value = {}, id = {} }}", quoted(key.as_str()?), quoted(id))))
                .collect();
            let preset = provider.replace('_', "-");
            Some(format!("provider = \"{preset}\"\nsecrets = [{}]\n", secrets?.join(", ")) + &tolerance_of(config))
        }
        "discord" | "telnyx" | "sendgrid" | "starkbank" | "wise" | "fireblocks" | "alipay" | "paddle_classic"
        | "travis_ci" => {
            let preset = provider.replace('_', "-");
            Some(preset_with(&preset, &[config["public_key"].as_str()?]) + &tolerance_of(config))
        }
        _ => None,
    }
}

fn tolerance_of(config: &Value) -> String {
    tolerance(config.get("tolerance_seconds"))
}

mod tests {
    use crate::fields::Fields;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{self as aws, EcdsaKeyPair, KeyPair, RsaKeyPair};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use http::Method;

    use super::super::source;
    use super::*;
    use crate::clock::UnixMillis;
    use crate::delivery::Delivery;
    use crate::fetched::NoLibrary;
    use crate::refusal::Refusal;
    use crate::secret::Secret;

    const NOW: UnixMillis = UnixMillis(1_760_000_000_000);

    const EDWARDS_HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    /// Public and private half, as a configuration and as `--private-key` take them.
    struct Pair(String, String);

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    fn edwards() -> Pair {
        Pair(
            "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".to_owned(),
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".to_owned(),
        )
    }

    fn ec(algorithm: &'static aws::EcdsaSigningAlgorithm) -> Pair {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let private = pair.to_pkcs8v1().unwrap();
        Pair(STANDARD.encode(public.as_ref()), pem("PRIVATE KEY", private.as_ref()))
    }

    fn rsa() -> Pair {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
        Pair(pem("RSA PUBLIC KEY", pair.public_key().as_ref()), pem("PRIVATE KEY", private.as_ref()))
    }

    fn draft(body: &str) -> Delivery {
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "hooks.example.com".into(),
            path: "/in/it".into(),
            query: None,
            headers: Fields::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    fn keys(preset: &str, public: &str) -> String {
        format!("provider = \"{preset}\"\nsecrets = [{{ value = {}, id = \"key-1\" }}]\n", quoted(public))
    }

    #[test]
    fn what_a_sender_signs_with_its_private_key_is_accepted_and_one_byte_more_is_not() {
        let p256 = || ec(&aws::ECDSA_P256_SHA256_ASN1_SIGNING);
        for (preset, pair) in [
            ("discord", Pair(EDWARDS_HEX.to_owned(), edwards().1)),
            ("telnyx", edwards()),
            ("standard-webhooks-v1a", edwards()),
            ("svix-asymmetric", edwards()),
            ("sendgrid", p256()),
            ("github-secret-scanning", p256()),
            ("circle", p256()),
            ("starkbank", ec(&aws::ECDSA_P256K1_SHA256_ASN1_SIGNING)),
            ("wise", rsa()),
            ("fireblocks", rsa()),
            ("wechat-pay", rsa()),
        ] {
            let source = source(&keys(preset, &pair.0), None).unwrap();
            let private = Secret::new(pair.1.into());
            let signed = source.verifier.sign(draft(r#"{"a":1}"#), "id-1", NOW, Some(&private)).unwrap().delivery;
            let verified = source.verifier.judge(signed.clone(), NOW, &NoLibrary).unwrap();
            assert_eq!(verified.replay_keys().len(), 1, "{preset}");
            let changed = Delivery { body: Bytes::from_static(br#"{"a":1} "#), ..signed };
            let refused = source.verifier.judge(changed, NOW, &NoLibrary).unwrap_err();
            assert_eq!(refused.refusal, Refusal::BadSignature, "{preset}");
        }
    }

    #[test]
    fn a_bot_secret_makes_both_halves() {
        let source = source(&preset_with("qq-bot", &["naOC0ocQE3shWLAfffVLB1rhYPG7"]), None).unwrap();
        let signed = source.verifier.sign(draft("{}"), "id-1", NOW, None).unwrap().delivery;
        assert!(source.verifier.judge(signed, NOW, &NoLibrary).is_ok());
    }

    #[test]
    fn a_sender_that_names_a_key_is_held_to_it() {
        let (first, second) = (ec(&aws::ECDSA_P256_SHA256_ASN1_SIGNING), ec(&aws::ECDSA_P256_SHA256_ASN1_SIGNING));
        let toml = format!(
            "provider = \"circle\"\nsecrets = [{{ value = \"{}\", id = \"one\" }}, {{ value = \"{}\", id = \"two\" }}]\n",
            first.0, second.0
        );
        let source = source(&toml, None).unwrap();
        let private = Secret::new(second.1.into());
        let signed = source.verifier.sign(draft("{}"), "id-1", NOW, Some(&private)).unwrap().delivery;
        assert_eq!(signed.headers["x-circle-key-id"], "two");
        assert!(source.verifier.judge(signed.clone(), NOW, &NoLibrary).is_ok());
        let refusal = |id: &'static str| {
            let mut delivery = signed.clone();
            delivery.headers.insert("x-circle-key-id", id.parse().unwrap());
            source.verifier.judge(delivery, NOW, &NoLibrary).map(|_| ()).map_err(|refused| refused.refusal)
        };
        assert_eq!(refusal("two"), Ok(()));
        assert_eq!(refusal("one"), Err(Refusal::BadSignature));
        assert_eq!(refusal("three"), Err(Refusal::UntrustedKey));
    }

    #[test]
    fn what_would_prove_nothing_does_not_load() {
        let told = |toml: &str| source(toml, None).err().unwrap_or_default();
        let p256 = ec(&aws::ECDSA_P256_SHA256_ASN1_SIGNING);
        let own = |algorithm: &str, more: &str, secret: &str| {
            format!(
                "secrets = [{{ value = {} }}]\n[sources.it.verify]\nalgorithm = \"{algorithm}\"\n{more}\n\
                 signature = {{ header = \"x-sig\", encoding = \"base64\" }}\nmessage = \"{{body}}\"\n",
                quoted(secret)
            )
        };
        assert_eq!(told(&own("ecdsa-p256-sha256", "", &p256.0)), "");
        assert!(told(&own("ecdsa-p384-sha384", "", &p256.0)).contains("of another kind"));
        assert!(told(&own("ecdsa-p256-sha1", "", &p256.0)).contains("allow_sha1 = true"));
        assert_eq!(told(&own("ecdsa-p256-sha1", "allow_sha1 = true", &p256.0)), "");
        assert!(told(&own("ecdsa-p256-sha256", "", &p256.1)).contains("this is a private key"));
        assert!(told(&own("ecdsa-p256-sha256", "key_id = { header = \"x-key\" }", &p256.0)).contains("no `id`"));
        assert!(told(&own("hmac-sha256", "key = { encoding = \"pem\" }", &p256.0)).contains("is none of the choices"));
        let beside = "key_id = { header_json = \"/kid\" }";
        let with_id = own("ecdsa-p256-sha256", beside, &p256.0).replace(" }]", ", id = \"a\" }]");
        assert!(told(&with_id).contains("something beside it"), "{}", told(&with_id));
    }
}
