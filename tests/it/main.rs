//! Promises to users, kept by the real binary over real sockets. Each module is a chapter.

#![allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests speak to whoever runs them, and are senders with clocks of their own"
)]

mod accepts;
mod admin;
mod brokers;
mod cli;
mod cluster;
mod deploy;
mod docs;
mod explains;
mod fetches;
mod forwards;
mod handshakes;
mod house;
mod inbox;
mod limits;
mod message_signatures;
mod presets;
mod providers;
mod refuses;
mod reloads;
mod replays;
mod routes;
mod silence;
#[allow(dead_code, reason = "each chapter uses a part of it")]
mod support;
mod tls;
mod tokens;
