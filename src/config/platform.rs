//! The `platform` table: what a platform's own proof needs to know of this source.

use super::reader::Table;
use crate::verify::{Adobe, Alexa, Apple, Environment, PayPal, Proof, Roots, Sns, SnsVersion};
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

#[derive(Clone, Copy)]
enum Kind {
    Sns,
    PayPal,
    Apple,
    Alexa,
    Adobe,
}

/// None: it could not be built, and why was told.
pub(super) fn read(table: &Table<'_>, label: Option<&str>) -> Option<Arc<dyn Proof>> {
    if !table.has("kind") {
        table.error("", "`kind` is missing", r#"kind = "aws-sns""#);
    }
    let kinds = [
        ("aws-sns", Kind::Sns),
        ("paypal", Kind::PayPal),
        ("apple-app-store", Kind::Apple),
        ("alexa", Kind::Alexa),
        ("adobe-io", Kind::Adobe),
    ];
    let kind = table.choice("kind", None, &kinds);
    let named = |name: &str| -> Arc<str> { label.unwrap_or(name).into() };
    match kind {
        Some(Kind::Sns) => sns(table, named("aws-sns")),
        Some(Kind::PayPal) => paypal(table, named("paypal")),
        Some(Kind::Apple) => apple(table, named("apple-app-store")),
        Some(Kind::Alexa) => alexa(table, named("alexa")),
        Some(Kind::Adobe) => adobe(table, named("adobe-io")),
        None => {
            table.ignore(&[
                "topics",
                "signature_versions",
                "confirm_subscriptions",
                "webhook_id",
                "bundle_id",
                "environment",
                "app_apple_id",
                "application_ids",
                "client_id",
                "tolerance",
                "roots",
            ]);
            None
        }
    }
}

fn sns(table: &Table<'_>, label: Arc<str>) -> Option<Arc<dyn Proof>> {
    let topics = table.all_parsed("topics", |text| match text.split(':').collect::<Vec<_>>().as_slice() {
        ["arn", _, "sns", _, _, name] if !name.is_empty() && !text.contains('*') => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no ARN of a topic, which is arn:aws:sns:REGION:ACCOUNT:NAME, whole")),
    });
    if topics.is_empty() && !table.has("topics") {
        table.error(
            "topics",
            "is missing: SNS signs the topics of every AWS account with one certificate",
            r#"platform.topics = ["arn:aws:sns:us-east-1:123456789012:my-topic"]"#,
        );
    }
    let versions = table.all_parsed("signature_versions", |text| match text {
        "1" => Ok(SnsVersion::One),
        "2" => Ok(SnsVersion::Two),
        _ => Err(format!("{text:?} is neither \"1\" nor \"2\"")),
    });
    let versions = if versions.is_empty() { vec![SnsVersion::Two] } else { versions };
    if versions.contains(&SnsVersion::One) {
        table.remark(
            "signature_versions",
            "version 1 signs with SHA-1, for which collisions can be made; it is what a topic uses until it is told otherwise",
            r#"aws sns set-topic-attributes --attribute-name SignatureVersion --attribute-value 2, then signature_versions = ["2"]"#,
        );
    }
    let tolerance = tolerance(table);
    let confirms = table.flag("confirm_subscriptions", true);
    let roots = match table.has("roots") {
        true => Some(roots(table)?),
        false => None,
    };
    (!topics.is_empty())
        .then(|| Arc::new(Sns { label, topics, versions, tolerance, roots, confirms }) as Arc<dyn Proof>)
}

fn paypal(table: &Table<'_>, label: Arc<str>) -> Option<Arc<dyn Proof>> {
    let example = r#"platform.webhook_id = "8PT597110X687430L": PayPal's developer dashboard shows it"#;
    let webhook_id = needed(table, "webhook_id", example);
    let tolerance = tolerance(table);
    let roots = public_or(table);
    table.remark("", "PayPal signs a CRC32 of the body, which can be forged by whoever has seen the delivery; fetch the resource by its id before you act on it", "");
    Some(Arc::new(PayPal::new(label, webhook_id?, roots?, tolerance)))
}

fn apple(table: &Table<'_>, label: Arc<str>) -> Option<Arc<dyn Proof>> {
    let bundle_id = needed(table, "bundle_id", r#"platform.bundle_id = "com.example.app""#);
    let environments = [("Production", Environment::Production), ("Sandbox", Environment::Sandbox)];
    let environment = table.choice("environment", Some("Production"), &environments);
    let app_apple_id = table.has("app_apple_id").then(|| table.count("app_apple_id", 0, 1..=i64::MAX as u64));
    if environment == Some(Environment::Production) && app_apple_id.is_none() {
        table.error(
            "",
            "`app_apple_id` is missing: notifications of production carry it",
            "platform.app_apple_id = 1234567890",
        );
        return None;
    }
    let tolerance = tolerance(table);
    let roots = match table.has("roots") {
        true => roots(table),
        false => {
            table.note_default("roots", "Apple Root CA - G3");
            Apple::root().ok()
        }
    };
    let (bundle_id, environment, roots) = (bundle_id?, environment?, roots?);
    Some(Arc::new(Apple { label, bundle_id, environment, app_apple_id, roots, tolerance }))
}

fn alexa(table: &Table<'_>, label: Arc<str>) -> Option<Arc<dyn Proof>> {
    let applications = table.texts("application_ids");
    if applications.is_empty() {
        table.warn(
            "application_ids",
            "is missing: Alexa signs the requests of everybody's skills alike, and any of them would pass",
            r#"platform.application_ids = ["amzn1.ask.skill.…"]"#,
        );
    }
    let tolerance = table.duration("tolerance", Duration::from_secs(150), Duration::from_secs(1)..=DAY);
    let roots = public_or(table)?;
    Some(Arc::new(Alexa::new(label, applications, roots, tolerance)))
}

fn adobe(table: &Table<'_>, label: Arc<str>) -> Option<Arc<dyn Proof>> {
    let client_id =
        needed(table, "client_id", r#"platform.client_id = "…": of the project in Adobe's developer console"#);
    Some(Arc::new(Adobe::new(label, client_id?)))
}

fn needed(table: &Table<'_>, name: &'static str, example: &str) -> Option<String> {
    table.needed_text(name, example).filter(|text| !text.is_empty())
}

fn tolerance(table: &Table<'_>) -> Option<Duration> {
    table.has("tolerance").then(|| table.duration("tolerance", DAY, Duration::from_secs(1)..=LONGEST))
}

fn public_or(table: &Table<'_>) -> Option<Roots> {
    match table.has("roots") {
        true => roots(table),
        false => {
            table.note_default("roots", "the public ones");
            Some(Roots::public())
        }
    }
}

/// A file, or the PEM itself.
fn roots(table: &Table<'_>) -> Option<Roots> {
    let is_pem = table.peek_text("roots").is_some_and(|text| text.trim_start().starts_with("-----BEGIN"));
    let (place, bytes) = match is_pem {
        true => (String::new(), table.text("roots")?.into_bytes()),
        false => table.file("roots").map(|(path, bytes)| (format!("{}: ", path.display()), bytes))?,
    };
    match Roots::read(&bytes) {
        Ok(roots) => Some(roots),
        Err(error) => {
            table.error("roots", format!("{place}{error}"), "PEM certificates of the CA, or DER of one");
            None
        }
    }
}
