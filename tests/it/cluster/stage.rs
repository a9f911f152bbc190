//! Gateways that share a state, deliveries that are all different, and senders that keep their connections.

use crate::support::engines::Redis;
use crate::support::http::{connect, read_answer};
use crate::support::{Answer, Gateway, Request, Upstream, sign};
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

pub(super) const SECRET: &str = "a-secret-of-some-length";

/// `[state]` in this Redis, with further keys.
pub(super) fn state(redis: &Redis, more: &str) -> String {
    format!("[state]\nkind = \"redis\"\nurl = \"{}\"\n{more}\n", redis.url())
}

/// `[sources.NAME]` at `/NAME`, as Stripe signs, for `app`, with further keys. A replay is refused with 409.
pub(super) fn source(name: &str, more: &str) -> String {
    format!(
        "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"stripe\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         upstream = \"app\"\n{more}\n"
    )
}

/// So many gateways, each in a folder of its own, on one configuration.
pub(super) fn gateways(many: usize, state: &str, upstream: &Upstream, sources: &str) -> Vec<Gateway> {
    let started: Vec<Gateway> =
        (0..many).map(|_| Gateway::start(&format!("{state}{}{sources}", upstream.table()))).collect();
    for gateway in &started {
        wait_until_ready(gateway);
    }
    started
}

pub(super) fn wait_until_ready(gateway: &Gateway) {
    crate::support::eventually("the gateway is ready", || (ready(gateway).0 == 200).then_some(()));
}

/// Whether the operator's port says that the gateway is ready, and its words.
pub(super) fn ready(gateway: &Gateway) -> (u16, String) {
    let answer = gateway.get("/readyz").expect("the operator's port answers");
    (answer.status, answer.text())
}

/// The event of this id, signed now.
pub(super) fn event(source: &str, id: &str) -> Request {
    let body = format!("{{\"id\":\"{id}\",\"type\":\"invoice.paid\"}}");
    let signature = sign::stripe(SECRET, sign::now(), body.as_bytes());
    Request::post(&format!("/{source}"), body).header("Stripe-Signature", signature)
}

/// 503, and when to come again.
pub(super) fn refused_for_now(answer: &Answer) -> bool {
    answer.status == 503
        && answer.header("retry-after").is_some_and(|seconds| seconds.parse().is_ok_and(|s: u32| s > 0))
}

/// How many replay keys of a source are kept in Redis.
pub(super) fn kept(redis: &Redis, source: &str) -> usize {
    let key = format!("hookward:{{{source}}}:replay");
    redis.cli(&["zcard", &key]).trim().parse().expect("a number")
}

/// One connection, kept for as long as the other side keeps it.
pub(super) struct Client {
    to: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    pub(super) fn new(to: SocketAddr) -> Self {
        Self { to, connection: None }
    }

    /// Nothing is sent twice: an error is one that the sender sees.
    pub(super) fn try_send(&mut self, request: &Request) -> io::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => BufReader::new(connect(self.to)?),
        };
        connection.get_mut().write_all(&request.bytes())?;
        let answer = read_answer(&mut connection)?;
        if !answer.header("connection").is_some_and(|word| word.eq_ignore_ascii_case("close")) {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    pub(super) fn send(&mut self, request: &Request) -> Answer {
        self.try_send(request).unwrap_or_else(|error| panic!("{} {}: {error}", request.method, request.target))
    }
}
