//! The PROXY header: a load balancer's word for who its client is.
//!
//! Invariant: nothing is believed before the peer was found among `trusted_proxies` (listen.rs), the header is whole and
//! of the exact form, and not a byte behind it is lost. The caller sets the deadline; the bound on bytes is here.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt;

use super::transport::Socket;

/// The specification's longest version 1 line, CRLF included.
const V1_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_FIXED: usize = 16;
/// Version 2 allows 64 KiB of extensions. What balancers really send (cloud endpoint ids, a client certificate's
/// name) stays far below this.
const V2_MAX: usize = 4096;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// `source` connected to `destination`.
    Client { source: SocketAddr, destination: SocketAddr },
    /// The balancer speaks for itself (version 2 LOCAL: its health checks) or does not know (version 1 UNKNOWN): the
    /// socket's own addresses hold, as the specification says.
    NoClient,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error(
        "the connection does not begin with a PROXY header; let the balancer send one, or set proxy_protocol = false"
    )]
    Missing,
    #[error("the PROXY header is longer than {V2_MAX} bytes (version 1: {V1_MAX})")]
    TooLong,
    #[error("the PROXY header is malformed: {0}")]
    Malformed(String),
    #[error("the PROXY header is for {0}, which is not TCP over IPv4 or IPv6")]
    NotTcp(&'static str),
    #[error("the connection ended within the PROXY header")]
    Ended,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

pub(super) async fn read(socket: &mut Socket) -> Result<Header, ProxyError> {
    let mut bytes = Vec::with_capacity(256);
    let length = loop {
        if let Some(length) = whole(&bytes)? {
            break length;
        }
        // `whole` refuses a header that is longer than this before it is read.
        let room = V2_MAX.saturating_sub(bytes.len()).min(256) as u64;
        if (&mut *socket).take(room).read_buf(&mut bytes).await? == 0 {
            return Err(ProxyError::Ended);
        }
    };
    let header = parse(&bytes[..length]);
    // The TLS handshake or the request is often in the same segment.
    socket.replay(bytes.split_off(length));
    header
}

/// The header's length, once all of it is there.
///
/// The `ppp` crate could be asked too, but takes some headers that are cut in the middle for malformed ones, and some
/// malformed ones for cut: it is only ever shown whole headers.
fn whole(bytes: &[u8]) -> Result<Option<usize>, ProxyError> {
    if is_start_of(bytes, ppp::v2::PROTOCOL_PREFIX) {
        let Some([high, low]) = bytes.get(14..V2_FIXED) else { return Ok(None) };
        let length = V2_FIXED + usize::from(u16::from_be_bytes([*high, *low]));
        if length > V2_MAX {
            return Err(ProxyError::TooLong);
        }
        return Ok((bytes.len() >= length).then_some(length));
    }
    if is_start_of(bytes, V1_START) {
        let line = &bytes[..bytes.len().min(V1_MAX)];
        return match line.windows(2).position(|pair| pair == b"\r\n") {
            Some(end) => Ok(Some(end + 2)),
            None if bytes.len() >= V1_MAX => Err(ProxyError::TooLong),
            None => Ok(None),
        };
    }
    Err(ProxyError::Missing)
}

fn is_start_of(bytes: &[u8], start: &[u8]) -> bool {
    let common = bytes.len().min(start.len());
    bytes[..common] == start[..common]
}

fn parse(header: &[u8]) -> Result<Header, ProxyError> {
    if header.starts_with(V1_START) { parse_v1(header) } else { parse_v2(header) }
}

fn parse_v1(line: &[u8]) -> Result<Header, ProxyError> {
    // Rust's integer parser, and so `ppp`, takes `+80` for a port.
    if line.contains(&b'+') {
        return Err(ProxyError::Malformed("a sign in a port".to_owned()));
    }
    let header = ppp::v1::Header::try_from(line).map_err(|error| ProxyError::Malformed(error.to_string()))?;
    Ok(match header.addresses {
        ppp::v1::Addresses::Tcp4(ends) => Header::Client {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        },
        ppp::v1::Addresses::Tcp6(ends) => Header::Client {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        },
        ppp::v1::Addresses::Unknown => Header::NoClient,
    })
}

fn parse_v2(bytes: &[u8]) -> Result<Header, ProxyError> {
    let header = ppp::v2::Header::try_from(bytes).map_err(|error| ProxyError::Malformed(error.to_string()))?;
    if header.command == ppp::v2::Command::Local {
        return Ok(Header::NoClient);
    }
    if header.protocol == ppp::v2::Protocol::Datagram {
        return Err(ProxyError::NotTcp("datagrams"));
    }
    match header.addresses {
        ppp::v2::Addresses::IPv4(ends) => Ok(Header::Client {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        }),
        ppp::v2::Addresses::IPv6(ends) => Ok(Header::Client {
            source: (ends.source_address, ends.source_port).into(),
            destination: (ends.destination_address, ends.destination_port).into(),
        }),
        ppp::v2::Addresses::Unspecified => Ok(Header::NoClient),
        ppp::v2::Addresses::Unix(_) => Err(ProxyError::NotTcp("a Unix socket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = ppp::v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        header.extend_from_slice(payload);
        header
    }

    fn judge(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
        whole(bytes)?.map(|length| parse(&bytes[..length])).transpose()
    }

    #[test]
    fn every_cut_of_a_header_is_waited_for() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 443\r\n".to_vec();
        let binary = v2(1, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 1, 187]);
        let expected =
            Header::Client { source: "192.0.2.1:4000".parse().unwrap(), destination: "192.0.2.2:443".parse().unwrap() };
        for header in [line, binary] {
            for cut in 0..header.len() {
                assert!(matches!(judge(&header[..cut]), Ok(None)), "cut at {cut}");
            }
            assert_eq!(judge(&header).unwrap().unwrap(), expected);
        }
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_names_no_client() {
        for header in [v2(0, 0, &[]), v2(0, 0x11, &[1; 12]), v2(1, 0, &[]), b"PROXY UNKNOWN\r\n".to_vec()] {
            assert_eq!(judge(&header).unwrap().unwrap(), Header::NoClient);
        }
    }

    #[test]
    fn refuses_what_is_not_exactly_a_header() {
        for missing in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"proxy TCP4", b"\r\n\r\nX"] {
            assert!(matches!(judge(missing), Err(ProxyError::Missing)), "{missing:?}");
        }
        for malformed in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 +4000 443\r\n"[..],
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 04000 443\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 70000\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 4000 443\r\n",
            b"PROXY  TCP4 192.0.2.1 192.0.2.2 4000 443\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 443 \r\n",
            &v2(1, 0x11, &[1; 11]),
            &v2(2, 0x11, &[1; 12]),
        ] {
            assert!(matches!(judge(malformed), Err(ProxyError::Malformed(_))), "{malformed:?}");
        }
        assert!(matches!(judge(&[&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat()), Err(ProxyError::TooLong)));
        assert!(matches!(judge(&v2(1, 0x11, &[0; V2_MAX])), Err(ProxyError::TooLong)));
        assert!(matches!(judge(&v2(1, 0x12, &[1; 12])), Err(ProxyError::NotTcp(_))));
        assert!(matches!(judge(&v2(1, 0x31, &[1; 216])), Err(ProxyError::NotTcp(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_are_refused_and_it_is_whole_at_one_length(
            start in prop_oneof![
                Just(b"PROXY TCP4 ".to_vec()),
                Just(b"PROXY ".to_vec()),
                Just([ppp::v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0, 12]].concat()),
                Just([ppp::v2::PROTOCOL_PREFIX, &[0x21]].concat()),
                Just(Vec::new()),
            ],
            rest in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(b' '), Just(b'\r'), Just(b'\n'), b'0'..=b'9'],
                0..130,
            ),
        ) {
            let bytes = [start, rest].concat();
            if let Ok(Some(length)) = whole(&bytes) {
                prop_assert!(length <= bytes.len());
                // Whatever it says; it says something.
                let _ = parse(&bytes[..length]);
                prop_assert!(matches!(whole(&bytes[..length]), Ok(Some(same)) if same == length));
                for cut in 0..length {
                    prop_assert!(matches!(whole(&bytes[..cut]), Ok(None)), "{cut} of {length}");
                }
            }
        }
    }
}
