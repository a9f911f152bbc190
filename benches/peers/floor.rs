//! The floor: the least that a proxy of this kind can do, to measure the others against. A reference, not for use: it reads
//! a head by hand, checks one HMAC and forwards. It has no limits, no deadlines, no claims, no log and no manners towards
//! malformed requests; one that it does not understand ends its connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certificates;
use crate::load::Wire;
use crate::message::{Head, SECRET, field};

const FIRST_BUFFER: usize = 4096;
const REFUSAL: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
/// Ahead of what came, as every proxy tells whom it speaks for.
const FORWARDED: &[u8] = b"X-Forwarded-For: 127.0.0.1\r\n";

struct Floor {
    upstream: SocketAddr,
    key: hmac::Key,
    /// Idle connections to the upstream; the last one used is the next.
    pool: Mutex<Vec<TcpStream>>,
}

pub(crate) fn run(port: u16, upstream: u16, certificates: Option<&Path>, mutual: bool) {
    let tls = certificates.map(|folder| TlsAcceptor::from(Certificates::server(folder, mutual)));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let floor = Arc::new(Floor { upstream: (Ipv4Addr::LOCALHOST, upstream).into(), key, pool: Mutex::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a free port");
        loop {
            let (stream, _) = listener.accept().await.expect("descriptors enough");
            let (floor, tls) = (floor.clone(), tls.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let wire: Wire = match tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(tls.accept(stream).await?),
                };
                floor.serve(wire).await
            });
        }
    });
}

impl Floor {
    async fn serve(&self, mut wire: Wire) -> io::Result<()> {
        let mut request = Vec::with_capacity(FIRST_BUFFER);
        let mut answer = Vec::with_capacity(FIRST_BUFFER);
        loop {
            let Some(head) = receive(&mut wire, &mut request).await? else {
                return wire.shutdown().await;
            };
            if self.is_genuine(&request, &head) {
                self.forward(&request, &mut answer).await?;
                wire.write_all(&answer).await?;
            } else {
                wire.write_all(REFUSAL).await?;
            }
            wire.flush().await?;
            request.drain(..head.whole());
            answer.clear();
        }
    }

    fn is_genuine(&self, request: &[u8], head: &Head) -> bool {
        let mut digest = [0; 32];
        let mut lines = request[..head.end].split(|&byte| byte == b'\n');
        let sent = lines.find_map(|line| field(line, b"x-hub-signature-256:")?.trim_ascii().strip_prefix(b"sha256="));
        sent.is_some_and(|sent| hex::decode_to_slice(sent, &mut digest).is_ok())
            && hmac::verify(&self.key, &request[head.end..head.whole()], &digest).is_ok()
    }

    async fn forward(&self, request: &[u8], answer: &mut Vec<u8>) -> io::Result<()> {
        let pooled = self.pool.lock().expect("one thread").pop();
        let mut upstream = match pooled {
            Some(upstream) => upstream,
            None => {
                let upstream = TcpStream::connect(self.upstream).await?;
                upstream.set_nodelay(true)?;
                upstream
            }
        };
        let line = request.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut parts = [&request[..line], FORWARDED, &request[line..]].map(io::IoSlice::new);
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            let written = upstream.write_vectored(parts).await?;
            io::IoSlice::advance_slices(&mut parts, written);
        }
        let Some(_) = receive(&mut upstream, answer).await? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        self.pool.lock().expect("one thread").push(upstream);
        Ok(())
    }
}

/// Until a whole message is there; nothing where the peer closed before one began.
async fn receive(from: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<Option<Head>> {
    let mut found: Option<Head> = None;
    loop {
        if found.is_none() {
            found = Head::parse(buffer);
        }
        match &found {
            Some(head) if head.whole() <= buffer.len() => return Ok(found),
            Some(head) => buffer.reserve(head.whole() - buffer.len()),
            None => {}
        }
        if from.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}
