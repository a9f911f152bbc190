//! `run`: the story of the process. Read everything, bind, serve, reload, drain.
//!
//! Invariant: the configuration is whole and every port bound before anybody is told that the gateway is ready, and
//! signals have handlers before that (an early SIGHUP would end the process).

use super::reload::Running;
use super::{UNUSABLE_CONFIGURATION, complain};
use crate::config::{self, Config, Loaded, Problem, Severity, Workbench};
use crate::server;
use crate::verify::{NoWorkshop, Workshop};
use sd_notify::NotifyState;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Expired claims of quiet sources are let go this often.
const SWEEP: Duration = Duration::from_secs(10);

/// A silence is told so much late at most; the shortest is ten times as long.
const LISTEN: Duration = Duration::from_secs(1);

/// File descriptors for everything that is no connection: logs, stores, upstreams' sockets come on top.
const SPARE_DESCRIPTORS: u64 = 1024;

pub(super) fn run(path: &Path) -> ExitCode {
    let Loaded { config, problems, .. } = config::load(path, &config::process_environment);
    let Some(config) = config else {
        for problem in &problems {
            complain(&problem.to_string());
        }
        return ExitCode::from(UNUSABLE_CONFIGURATION);
    };
    let _log = crate::telemetry::start_log(config.log.format, config.log.level);
    log_problems(&problems);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime cannot start: {error}"));
            return ExitCode::from(UNUSABLE_CONFIGURATION);
        }
    };
    match runtime.block_on(serve(path, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::from(UNUSABLE_CONFIGURATION)
        }
    }
}

pub(super) fn log_problems(problems: &[Problem]) {
    for problem in problems {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
            Severity::Note => tracing::debug!("{problem}"),
        }
    }
}

/// The signals that mean something here.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

async fn serve(path: &Path, config: Config) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("signal handlers cannot be set: {error}");
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate()).map_err(fail)?,
        interrupt: signal(SignalKind::interrupt()).map_err(fail)?,
        hang_up: signal(SignalKind::hangup()).map_err(fail)?,
    };
    // A file that may grow no further (`ulimit -f`) is to fail the write, which is told and survived, and not to end the
    // process: with a handler, whatever it does, the write fails. It stays in place when this is dropped.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map_err(fail)?);
    let wanted = config.max_connections as u64 * 2 + SPARE_DESCRIPTORS;
    let descriptors = server::raise_open_files(wanted);
    if descriptors < wanted {
        tracing::warn!(
            descriptors,
            wanted,
            "fewer file descriptors than max_connections and their upstream connections could need; raise LimitNOFILE"
        );
    }
    let file = path.to_owned();
    // Read when somebody asks, so that no secret is kept for it.
    let workshop = move || -> Box<dyn Workshop> {
        match Workbench::read(&file, &config::process_environment) {
            Some(workbench) => Box::new(workbench),
            None => Box::new(NoWorkshop),
        }
    };
    let mut running = Running::start(config, server::inherited_sockets(), Box::new(workshop)).await?;
    tell_systemd(&[NotifyState::Ready]);

    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listen = interval(LISTEN);
    listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hang_up.recv() => reload(&mut running, path),
            _ = sweep.tick() => running.door.sweep(),
            _ = listen.tick() => running.door.listen_for_silence(),
        }
    }

    tell_systemd(&[NotifyState::Stopping]);
    tracing::info!("draining: not ready; connections are still accepted for drain_delay");
    running.door.start_draining();
    let (drain_delay, drain_timeout) = (running.drain_delay, running.drain_timeout);
    let calm = async {
        sleep(drain_delay).await;
        running.stop_accepting();
        tokio::time::timeout(drain_timeout, running.finished()).await
    };
    tokio::select! {
        ended = calm => if ended.is_err() {
            tracing::warn!("drain_timeout is over; what is still under way is cut");
        },
        _ = signals.terminate.recv() => tracing::warn!("told again; what is still under way is cut"),
        _ = signals.interrupt.recv() => tracing::warn!("told again; what is still under way is cut"),
    }
    running.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn reload(running: &mut Running, path: &Path) {
    let mut telling = vec![NotifyState::Reloading];
    telling.extend(NotifyState::monotonic_usec_now().ok());
    tell_systemd(&telling);
    let Loaded { config, problems, .. } = config::load(path, &config::process_environment);
    log_problems(&problems);
    let done = match config {
        Some(config) => running.replace(config),
        None => Err("the file has errors".to_owned()),
    };
    running.reopen_audit();
    match done {
        Ok(()) => {
            running.door.metrics.reloads(true).inc();
            tracing::info!("reloaded");
        }
        Err(why) => {
            running.door.metrics.reloads(false).inc();
            tracing::error!("not reloaded: {why}; the configuration in force serves on");
        }
    }
    tell_systemd(&[NotifyState::Ready]);
}

/// Without systemd there is nobody to tell, and that is no error.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
