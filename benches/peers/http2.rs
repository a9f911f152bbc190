//! The generator's HTTP/2: several connections, several streams on each, every stream sent when the last was answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request};
use rustls::ClientConfig;

use crate::load::{Phase, connect as connect_tls};
use crate::message::Letters;

const STREAMS_EACH: usize = 4;

/// One handle for each of so many streams in flight.
pub(crate) async fn connect(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    streams: usize,
) -> Vec<SendRequest<Bytes>> {
    let mut senders = Vec::new();
    while senders.len() < streams {
        let wire = connect_tls(address, tls).await.expect("the gateway accepts");
        let (sender, connection) = h2::client::handshake(wire).await.expect("a gateway of HTTP/2");
        tokio::spawn(async move {
            // What breaks here shows in the streams.
            let _ = connection.await;
        });
        senders.extend(std::iter::repeat_n(sender, STREAMS_EACH));
    }
    senders
}

pub(crate) async fn send(mut sender: SendRequest<Bytes>, mut letters: Letters, end: Instant) -> Phase {
    let mut phase = Phase::default();
    let mut template = Request::new(());
    *template.method_mut() = Method::POST;
    *template.uri_mut() = "https://localhost/webhooks/github".parse().expect("a URL");
    for (name, value) in [("user-agent", "GitHub-Hookshot/044aadd"), ("accept", "*/*"), ("x-github-event", "push")] {
        template.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    template.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    loop {
        let start = Instant::now();
        if start >= end || !phase.broken.is_empty() {
            return phase;
        }
        letters.next();
        let [delivery, signature, body] = letters.parts();
        let mut request = template.clone();
        let text = |bytes| HeaderValue::from_bytes(bytes).expect("digits");
        request.headers_mut().insert("x-github-delivery", text(delivery));
        request.headers_mut().insert("x-hub-signature-256", text(signature));
        request.headers_mut().insert("content-length", HeaderValue::from(body.len()));
        let body = Bytes::copy_from_slice(body);
        let answer = exchange(&mut sender, request, body).await;
        phase.note(answer.map(|status| (status, false)).map_err(io::Error::other), start);
    }
}

async fn exchange(sender: &mut SendRequest<Bytes>, request: Request<()>, body: Bytes) -> Result<u16, h2::Error> {
    let mut ready = sender.clone().ready().await?;
    let (answer, mut stream) = ready.send_request(request, false)?;
    stream.send_data(body, true)?;
    let (head, mut body) = answer.await?.into_parts();
    while let Some(part) = body.data().await {
        let length = part?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(head.status.as_u16())
}
