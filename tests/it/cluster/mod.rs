//! Several gateways: what they say and do while they are replaced one by one.

mod rolling;
#[allow(dead_code, reason = "each chapter uses a part of it")]
mod stage;
