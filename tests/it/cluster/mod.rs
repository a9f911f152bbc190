//! Several gateways on one Redis: what one accepted, all refuse; what one spent, all have spent; and what they say and do
//! while Redis is away, and while they themselves are replaced one by one.

mod inbox;
mod outage;
mod rolling;
mod stage;
mod together;
mod topologies;
