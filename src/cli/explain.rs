//! `explain`: one saved request through the source's own verifier, narrated; and what would have made it pass.

use super::saved_request::SavedRequest;
use super::{NO, UNUSABLE_CONFIGURATION, USAGE, complain, say};
use crate::clock::{Clock, UnixMillis};
use crate::config::{self, Loaded, Severity, Workbench};
use crate::delivery::Delivery;
use crate::fetch::{self, Fetcher};
use crate::fetched::{Library, Lookup, NoLibrary};
use crate::gateway::explain::{Question, explain as explain_delivery, source_for};
use crate::gateway::source::Settings;
use crate::refusal::Refusal;
use crate::telemetry::Metrics;
use crate::verify::{Explanation, NoWorkshop, Step, Verdict, Workshop};
use bytes::Bytes;
use serde_json::json;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// A proof asks for one or two: a key set, a certificate.
const MOST_DOCUMENTS: usize = 3;

/// A body is bounded by the largest that a source can take.
const LARGEST_BODY: u64 = 1 << 30;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The saved request, or - for standard input: a raw HTTP message, what curl -v printed, an audit line with headers
    /// and body, or a HAR export.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Whose request it is; default: the source that the request's host and path lead to.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The body, where the saved request does not have it (curl -v shows none).
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// Which request of a file with several, from 1.
    #[arg(long, value_name = "N")]
    entry: Option<usize>,
    /// Judge it at this time, in unix seconds; default: now.
    #[arg(long, value_name = "UNIX")]
    now: Option<u64>,
    /// The verdict, the steps and the hints as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(config: &Path, arguments: &Arguments) -> ExitCode {
    let usage = |why: String| {
        complain(&why);
        ExitCode::from(USAGE)
    };
    let Loaded { config: loaded, problems, .. } = config::load(config, &config::process_environment);
    let Some(loaded) = loaded else {
        for problem in problems.iter().filter(|problem| problem.severity == Severity::Error) {
            complain(&problem.to_string());
        }
        return ExitCode::from(UNUSABLE_CONFIGURATION);
    };
    let saved = match read(arguments) {
        Ok(saved) => saved,
        Err(why) => return usage(why),
    };
    let sources = &loaded.plan.sources;
    let named = arguments.source.as_ref().or(saved.source.as_ref());
    let source = match named {
        Some(name) => match sources.iter().find(|source| *source.name == **name) {
            Some(source) => Some(source),
            None => {
                let names: Vec<_> = sources.iter().map(|source| &*source.name).collect();
                return usage(format!("there is no source {name:?}; there are: {}", names.join(", ")));
            }
        },
        None => source_for(sources.iter(), saved.authority.as_deref().unwrap_or_default(), &saved.path),
    };
    let Some(source) = source else {
        return nobodys(&saved, sources, arguments.json);
    };
    if saved.body.is_none() {
        return usage(format!(
            "{}: {} does not show the body; give it with --body FILE (an empty file, if there was none)",
            arguments.request.display(),
            saved.format.name()
        ));
    }

    let mut notes: Vec<_> = saved.notes.iter().map(|note| Step::new("saved request", None, note.clone())).collect();
    let format = saved.format.name();
    let delivery = saved.into_delivery("https", source.host.as_deref().unwrap_or("localhost"));
    let workbench = Workbench::read(config, &config::process_environment);
    let workshop: &dyn Workshop = match &workbench {
        Some(workbench) => workbench,
        None => &NoWorkshop,
    };
    let now = arguments.now.map_or_else(|| Clock::default().now(), UnixMillis::from_secs);
    let fetched = fetch_keys(source, &delivery, now, loaded.plan.fetch.clone(), &mut notes);
    let library: &dyn Library = match &fetched {
        Some(fetcher) => &**fetcher,
        None => &NoLibrary,
    };
    let explanation = explain_delivery(&Question {
        settings: source,
        delivery: &delivery,
        now,
        library,
        workshop,
        for_its_owner: true,
    });
    let explanation = explanation.after(notes, None);
    match arguments.json {
        true => print_json(&explanation, Some(source)),
        false => print(&explanation, source, &delivery, format),
    }
    match explanation.verdict {
        Verdict::Accept | Verdict::Challenge => ExitCode::SUCCESS,
        Verdict::Refuse => ExitCode::from(NO),
    }
}

/// The keys that the proofs ask for, fetched as the gateway fetches them. `None`: they ask for none.
fn fetch_keys(
    source: &Settings,
    delivery: &Delivery,
    now: UnixMillis,
    settings: fetch::Settings,
    notes: &mut Vec<Step>,
) -> Option<Arc<Fetcher>> {
    let wanted = |library: &dyn Library| {
        source.verifier.judge(delivery.clone(), now, library).err().and_then(|refused| refused.wanted)
    };
    wanted(&NoDocuments)?;
    let metrics = Metrics::new();
    let meters = fetch::Meters::new(metrics.fetches, metrics.fetch_seconds, metrics.fetched_documents);
    let fetcher = Fetcher::new(settings, Arc::new(Clock::default()), meters);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    for _ in 0..MOST_DOCUMENTS {
        let Some(wanted) = wanted(&*fetcher) else { break };
        if let Err(error) = runtime.block_on(fetcher.fetch(&wanted)) {
            notes.push(Step::new("document", Some(false), format!("{}: {error}", wanted.url)));
            break;
        }
        notes.push(Step::new("document", Some(true), format!("{} was fetched", wanted.url)));
    }
    Some(fetcher)
}

/// Nothing was fetched yet, and everything may be.
struct NoDocuments;

impl Library for NoDocuments {
    fn look_up(&self, _url: &str) -> Lookup {
        Lookup::Missing
    }
}

fn read(arguments: &Arguments) -> Result<SavedRequest, String> {
    let request = read_file(&arguments.request, super::saved_request::LARGEST_FILE as u64)?;
    let body = arguments.body.as_deref().map(|path| read_file(path, LARGEST_BODY)).transpose()?;
    SavedRequest::parse(&request, arguments.entry, body.map(Bytes::from))
        .map_err(|error| format!("{}: {error}", arguments.request.display()))
}

fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    // One byte more than is taken, so that what is too long is seen to be.
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    } else {
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    }
    Ok(bytes)
}

/// What the gateway answers to a request that no source is for.
fn nobodys(saved: &SavedRequest, sources: &[Settings], as_json: bool) -> ExitCode {
    let places: Vec<_> = sources
        .iter()
        .take(20)
        .map(|source| format!("{} ({}{})", source.name, source.host.as_deref().unwrap_or("any host"), source.path))
        .collect();
    let says =
        format!("{}: {}{}", Refusal::NoSource.sentence(), saved.authority.as_deref().unwrap_or("no host"), saved.path);
    let step = Step::new("source", Some(false), format!("{says}; there are: {}", places.join(", ")));
    let explanation = Explanation {
        verdict: Verdict::Refuse,
        refusal: Some(Refusal::NoSource),
        steps: vec![step],
        hints: Vec::new(),
    };
    match as_json {
        true => print_json(&explanation, None),
        false => {
            for step in &explanation.steps {
                say(&line(step));
            }
            say("\nrefused: no_source; name the source with --source NAME");
        }
    }
    ExitCode::from(NO)
}

fn print_json(explanation: &Explanation, source: Option<&Settings>) {
    let mut object = explanation.to_json();
    if let Some(object) = object.as_object_mut() {
        object.insert("source".to_owned(), json!(source.map(|source| &*source.name)));
    }
    say(&object.to_string());
}

fn line(step: &Step) -> String {
    let mark = match step.ok {
        Some(true) => "ok",
        Some(false) => "NO",
        None => "--",
    };
    format!("  {mark}  {:<14} {}", step.about, step.says)
}

fn print(explanation: &Explanation, source: &Settings, delivery: &Delivery, format: &str) {
    say(&format!("sources.{}, {format}: {} {}", source.name, delivery.method, delivery.path.escape_debug()));
    for step in &explanation.steps {
        say(&line(step));
    }
    match explanation.refusal {
        None => say(&format!("\n{}", explanation.verdict.name())),
        Some(refusal) => say(&format!("\nrefused: {}: {}", refusal.label(), refusal.sentence())),
    }
    for hint in &explanation.hints {
        say(&format!("\n{}: {}\n  try: {}", hint.kind, hint.says, hint.try_this));
    }
    if explanation.verdict == Verdict::Refuse && explanation.hints.is_empty() {
        say("\nnone of the usual mistakes explains it: compare the secret, and save the request as it left the sender");
    }
}
