//! `sign`: the headers that a source's sender would add to a body, made by the verifier's own inverse.

use super::{NO, UNUSABLE_CONFIGURATION, complain, say};
use crate::clock::{Clock, UnixMillis};
use crate::config::{self, Loaded, Severity};
use crate::delivery::Delivery;
use crate::fields::Fields;
use crate::gateway::source::{PathRule, Settings};
use crate::secret::Secret;
use crate::verify::Draft;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

// `send` takes these as well; two argument groups of one name would be one too many for clap.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Whose sender to act as.
    #[arg(long, value_name = "NAME")]
    source: String,
    /// A file with the body, or - for standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    body: PathBuf,
    /// The delivery's id, where the scheme has a header for one; default: a random one.
    #[arg(long)]
    id: Option<String>,
    /// The signed time in unix seconds; default: now.
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// A header of the delivery itself, as "Name: value"; may be given several times.
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The url's query, without `?`.
    #[arg(long)]
    query: Option<String>,
    #[arg(long, default_value = "POST")]
    method: String,
    /// The private key, for schemes whose configured key is public: 32 bytes as hex or base64, or PKCS#8 PEM.
    #[arg(long, value_name = "FILE")]
    private_key: Option<PathBuf>,
}

/// A webhook ready to be sent.
pub(super) struct Signed {
    pub(super) source: Settings,
    pub(super) method: Method,
    pub(super) path_and_query: String,
    /// The delivery's own and those that prove it.
    pub(super) headers: Fields,
    pub(super) proof: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    /// The query and the body, where the proof is in there.
    new_query: Option<String>,
    new_body: Option<Bytes>,
}

pub(super) fn sign(config: &Path, arguments: &Arguments) -> ExitCode {
    match make(config, arguments) {
        Ok(signed) => {
            for (name, value) in &signed.proof {
                say(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
            }
            // Some senders write the proof elsewhere; what was given is then not what must be sent.
            if let Some(query) = &signed.new_query {
                say(&format!("?{query}"));
            }
            if let Some(body) = &signed.new_body {
                say("");
                say(&String::from_utf8_lossy(body));
            }
            ExitCode::SUCCESS
        }
        Err(refused) => refused,
    }
}

pub(super) fn make(config: &Path, arguments: &Arguments) -> Result<Signed, ExitCode> {
    let no = |why: String| {
        complain(&why);
        ExitCode::from(NO)
    };
    let Loaded { config, problems, .. } = config::load(config, &config::process_environment);
    let Some(config) = config else {
        for problem in problems.iter().filter(|problem| problem.severity == Severity::Error) {
            complain(&problem.to_string());
        }
        return Err(ExitCode::from(UNUSABLE_CONFIGURATION));
    };
    let names: Vec<_> = config.plan.sources.iter().map(|source| source.name.to_string()).collect();
    let source = config
        .plan
        .sources
        .into_iter()
        .find(|source| *source.name == *arguments.source)
        .ok_or_else(|| no(format!("there is no source {:?}; there are: {}", arguments.source, names.join(", "))))?;
    let body = read_body(&arguments.body).map_err(no)?;
    let mut headers = Fields::new();
    for header in &arguments.headers {
        let parsed = header.split_once(':').and_then(|(name, value)| {
            Some((name.trim().parse::<HeaderName>().ok()?, value.trim().parse::<HeaderValue>().ok()?))
        });
        let (name, value) = parsed.ok_or_else(|| no(format!("{header:?} is not \"Name: value\"")))?;
        headers.append(name, value);
    }
    let private = match &arguments.private_key {
        Some(path) => {
            Some(Secret::new(std::fs::read(path).map_err(|error| no(format!("{}: {error}", path.display())))?))
        }
        None => None,
    };
    let method: Method = arguments.method.parse().map_err(|_| no(format!("{:?} is no method", arguments.method)))?;
    let path = match &source.path {
        PathRule::Exact(path) | PathRule::Prefix(path) => path.clone(),
    };
    let draft = Delivery {
        method,
        scheme: "https",
        authority: source.host.clone().unwrap_or_else(|| "localhost".to_owned()),
        path,
        query: arguments.query.clone(),
        headers,
        body,
    };
    let (query_before, body_before) = (draft.query.clone(), draft.body.clone());
    let now = arguments.time.map_or_else(|| Clock::default().now(), UnixMillis::from_secs);
    let id = arguments.id.clone().unwrap_or_else(|| format!("msg_{}", hex::encode(rand::random::<[u8; 12]>())));
    let signed = source
        .verifier
        .sign(draft, &id, now, private.as_ref())
        .map_err(|error| no(format!("sources.{}: {error}", source.name)))?;
    let Draft { delivery, added: proof } = signed;
    let new_query = delivery.query.clone().filter(|_| delivery.query != query_before);
    let new_body = (delivery.body != body_before).then(|| delivery.body.clone());
    let path_and_query = match &delivery.query {
        Some(query) => format!("{}?{query}", delivery.path),
        None => delivery.path,
    };
    let Delivery { method, headers, body, .. } = delivery;
    Ok(Signed { source, method, path_and_query, headers, proof, body, new_query, new_body })
}

fn read_body(path: &Path) -> Result<Bytes, String> {
    let mut body = Vec::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().read_to_end(&mut body).map(drop),
        _ => std::fs::read(path).map(|bytes| body = bytes),
    };
    read.map(|()| Bytes::from(body)).map_err(|error| format!("{}: {error}", path.display()))
}
