//! What a person types. The only place that prints or sets exit codes.
//!
//! 0: done. 1: a check said no. 64: the command line is not one (EX_USAGE). 78: the configuration cannot be used
//! (EX_CONFIG).

mod certs;
mod check;
mod demo;
mod explain;
mod inbox;
mod providers;
mod reload;
mod run;
#[cfg_attr(not(test), warn(clippy::indexing_slicing, reason = "it reads what strangers wrote"))]
pub(crate) mod saved_request;
mod send;
mod sign;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const DEFAULT_CONFIGURATION: &str = "gateway.toml";

const NO: u8 = 1;
const USAGE: u8 = 64;
const UNUSABLE_CONFIGURATION: u8 = 78;

/// A guarded door for incoming webhooks: proves each one genuine, fresh and new, limits it, and forwards it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, default_value = DEFAULT_CONFIGURATION, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive webhooks. SIGTERM drains, SIGHUP reloads configuration, certificates and secrets.
    Run,
    /// Say all that is wrong with the configuration, and what it does not protect against.
    Check(check::Arguments),
    /// Show the whole way on this machine: development certificates, an upstream, genuine and forged webhooks.
    Demo(demo::Arguments),
    /// Print the headers that a source's sender would add to a body.
    Sign(sign::Arguments),
    /// Say, step by step, why a saved request is accepted or refused, and which common mistake would explain it.
    Explain(explain::Arguments),
    /// Send a correctly signed webhook, as a source's sender would.
    Send(send::Arguments),
    /// Look into the durable inbox, and mend what lies in it: of a gateway that runs, or of one that stands still.
    Inbox(inbox::Arguments),
    /// List the providers that are known, show one, or search for one.
    Providers(providers::Arguments),
    /// Make a development CA with server and client certificates.
    Certs(certs::Arguments),
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Printing help to a closed pipe is no reason to fail.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let config = &arguments.config;
    match arguments.command {
        Command::Run => run::run(config),
        Command::Check(of) => check::check(config, &of),
        Command::Demo(of) => demo::demo(&of),
        Command::Sign(of) => sign::sign(config, &of),
        Command::Explain(of) => explain::explain(config, &of),
        Command::Send(of) => send::send(config, &of),
        Command::Inbox(of) => inbox::inbox(config, &of),
        Command::Providers(of) => providers::providers(config, &of),
        Command::Certs(of) => certs::certs(&of),
    }
}

/// A line for people, on standard error.
#[expect(clippy::print_stderr, reason = "this room speaks to people")]
fn complain(line: &str) {
    eprintln!("{line}");
}

/// A line of what was asked for, on standard output. Exits quietly when nobody reads it any more (`| head`).
fn say(line: &str) {
    use std::io::Write as _;
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(0);
    }
}
