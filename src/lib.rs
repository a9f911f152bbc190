//! hookward: the guarded door through which other people's webhooks enter your network.
//!
//! The house, from the top floor down; `use crate::…` goes downwards only, and a test holds every file to that.
//!
//! | room | its one reason to be |
//! | --- | --- |
//! | `cli` | what a person types; the only place that prints or sets exit codes |
//! | `admin` | the operator's port: metrics, health, readiness |
//! | `config` | the TOML file made into what the rooms work with, or all that is wrong with it |
//! | `gateway` | the way of a request, from its head to its record |
//! | `deliver` | getting a parcel to where it goes |
//! | `inbox` | durable until settled: what was acknowledged and is still to be delivered |
//! | `parcel` | what leaves |
//! | `telemetry` | one outcome in; counters, an audit line and the log out |
//! | `verify` | does this request prove itself? Pure: no clock, no socket |
//! | `fetch` | certificates and key sets from the network, guarded |
//! | `state` | what was accepted, and how much of every budget is spent |
//! | `server` | listeners, TLS, connections; knows no webhook |
//! | `redis_link` | a lasting connection to Redis, for `state` and `deliver` |
//! | `delivery`, `refusal`, `fetched`, `secret`, `client`, `database`, `tls_client`, `dial`, `threads`, `framing`, `fields`, `timer`, `clock` | the ground floor: words that everybody uses |

mod admin;
mod cli;
mod client;
mod clock;
mod config;
mod database;
mod deliver;
mod delivery;
mod dial;
#[cfg_attr(not(test), warn(clippy::indexing_slicing, reason = "it reads what strangers wrote"))]
mod fetch;
mod fetched;
mod fields;
mod framing;
mod gateway;
mod inbox;
mod parcel;
mod redis_link;
mod refusal;
mod secret;
mod server;
mod state;
mod telemetry;
mod threads;
mod timer;
mod tls_client;
#[cfg_attr(not(test), warn(clippy::indexing_slicing, reason = "it judges what strangers wrote"))]
mod verify;

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;

#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measuring;

pub use cli::main;
