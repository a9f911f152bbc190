//! What the process was handed when it started: sockets from a service manager, and how many files it may open.
//!
//! Invariant: an inherited descriptor is taken at most once, and what is not a listening TCP socket is left alone.

use std::net::TcpListener;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sockets passed by systemd (`LISTEN_FDS`), each with its `FileDescriptorName=` where the unit gives one.
pub(crate) fn inherited_sockets() -> Vec<(Option<String>, TcpListener)> {
    // listenfd knows nothing of names; it takes the other variables out of the environment, so this one is read first.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        match passed.take_tcp_listener(index) {
            Ok(Some(socket)) => sockets.push((name_at(&names, index), socket)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(index, %error, "an inherited descriptor is not a TCP socket; it is left alone")
            }
        }
    }
    sockets
}

/// systemd writes `unknown` for a socket without a name, and the socket unit's own name by default.
fn name_at(names: &[&str], index: usize) -> Option<String> {
    names.get(index).filter(|name| !name.is_empty() && **name != "unknown").map(|name| (*name).to_owned())
}

/// Raises the soft limit of open files to `wanted`, as far as the hard limit lets us. Returns the limit in force.
///
/// The default soft limit is 1024 on most systems (kept low for programs that use `select`), and every connection is a
/// file, and so is every connection to an upstream.
pub(crate) fn raise_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // `None` is "no limit".
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    let raised = wanted.min(limit.maximum.unwrap_or(u64::MAX));
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_socket_has_no_name() {
        let names = ["public", "", "unknown"];
        assert_eq!(name_at(&names, 0).as_deref(), Some("public"));
        assert_eq!(name_at(&names, 1), None);
        assert_eq!(name_at(&names, 2), None);
        assert_eq!(name_at(&names, 3), None);
    }

    #[test]
    fn the_limit_of_open_files_never_goes_down() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert_eq!(raise_open_files(1), before);
        assert!(raise_open_files(before) >= before);
    }
}
