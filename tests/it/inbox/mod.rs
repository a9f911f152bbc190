//! `delivery = "inbox"`: what was acknowledged is stored, and what is stored reaches its upstream, whatever happens to
//! the process, the upstream, the disk, the file or the clock.

#[allow(dead_code, reason = "each chapter uses a part of it")]
mod stage;

mod attacks;
mod clock;
mod crashes;
mod damage;
mod delivers;
mod disk;
mod operator;
mod quarantine;
mod routes;
mod upstreams;
