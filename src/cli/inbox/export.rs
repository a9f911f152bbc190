//! `inbox export`: deliveries as lines of JSON, each as the store tells it.
//!
//! Invariant: credentials are masked unless they were asked for, and a file with them is new and its owner's alone.

use super::place::Place;
use super::{Done, Enough, Failure, Filter, NO, complain, each_page, print};
use http::Method;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Exporting {
    #[command(flatten)]
    filter: Filter,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// A new file, readable by its owner alone; default: standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Credentials too, which are masked otherwise: needed where a request is to be made again with them.
    #[arg(long)]
    reveal: bool,
}

pub(super) fn export(place: &Place, exporting: &Exporting) -> Done {
    let mut query = exporting.filter.query();
    query.extend(exporting.limit.map(|limit| ("limit", limit.to_string())));
    if exporting.reveal {
        query.push(("reveal", "1".to_owned()));
    }
    let named =
        exporting.output.as_ref().map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
    let fail = |error: std::io::Error| Failure::new(NO, format!("{named}: {error}"));
    let mut out: Box<dyn Write> = match &exporting.output {
        Some(path) => {
            let mut options = std::fs::OpenOptions::new();
            // Never into what is there: its mode would stay, and others might read it.
            let file =
                options.write(true).create_new(true).mode(0o600).open(path).map_err(|error| match error.kind() {
                    std::io::ErrorKind::AlreadyExists => {
                        Failure::new(NO, format!("{named}: is there already, and is not written over: name a new file"))
                    }
                    _ => fail(error),
                })?;
            Box::new(std::io::BufWriter::new(file))
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let (mut found, mut masked, mut is_read) = (0, 0, true);
    each_page(place, (&Method::GET, "/inbox/export"), query, |page| {
        for delivery in &page.deliveries {
            masked += u64::from(delivery.get().contains(r#""masked":true"#));
            let line = print::json(delivery.get());
            match writeln!(out, "{line}") {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    is_read = false;
                    return Ok(Enough::Yes);
                }
                done => done.map_err(fail)?,
            }
        }
        found += page.deliveries.len() as u64;
        Ok(match exporting.limit {
            Some(limit) if found >= limit => Enough::Yes,
            limit => Enough::No(limit.map(|limit| limit - found)),
        })
    })?;
    if !is_read {
        return Ok(ExitCode::SUCCESS);
    }
    out.flush().map_err(fail)?;
    if masked > 0 {
        complain(&format!(
            "of {found} deliveries {masked} have credentials, which were masked; --reveal writes them too"
        ));
    }
    if found == 0 {
        complain("nothing in the inbox matches");
        return Ok(ExitCode::from(NO));
    }
    Ok(ExitCode::SUCCESS)
}
