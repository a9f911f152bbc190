//! An upstream that records what it is sent, and answers, dawdles, resets or hangs up as the test says.

use super::{PATIENCE, eventually};
use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }
}

/// What the upstream does with one request.
#[derive(Clone)]
pub(crate) enum Reply {
    Status(u16),
    Full {
        status: u16,
        headers: Vec<(&'static str, &'static str)>,
        body: Vec<u8>,
    },
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// These bytes, and then as said.
    Begun(Vec<u8>, Box<Reply>),
    /// Closed without a byte of an answer.
    Close,
    /// A TCP reset without a byte of an answer.
    Reset,
    /// Nothing, until the gate is opened; then as said.
    Held(Gate, Box<Reply>),
}

/// Opened once, by the test.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().expect("the gate") = true;
        self.0.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        let open = self.0.0.lock().expect("the gate");
        let waited = self.0.1.wait_timeout_while(open, 2 * PATIENCE, |open| !*open).expect("the gate");
        drop(waited);
    }
}

type Script = dyn Fn(&Received, usize) -> Reply + Send + Sync;

pub(crate) struct Upstream {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    open: Arc<OpenConnections>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

/// By number, so that whoever serves one can let go of all of it: a reset is only sent when the last handle closes.
type OpenConnections = Mutex<BTreeMap<usize, TcpStream>>;

/// A port of our own where nobody listens yet: connecting to it is refused, and nobody else can take it.
pub(crate) struct ClosedPort(TcpListener);

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        Self(socket.into())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }

    pub(crate) fn open(self, script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Upstream {
        listen(&self.0, 128).expect("a listener");
        Upstream::on(self.0, script)
    }
}

impl Upstream {
    /// Says 200 `ok` to everything.
    pub(crate) fn start() -> Self {
        Self::with(|_, _| Reply::Full { status: 200, headers: Vec::new(), body: b"ok".to_vec() })
    }

    /// `script`: the request and how many came before it.
    pub(crate) fn with(script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a port"), script)
    }

    pub(crate) fn on(
        listener: TcpListener,
        script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let mut upstream = Self {
            address: listener.local_addr().expect("an address"),
            received: Arc::default(),
            connections: Arc::default(),
            stopped: Arc::default(),
            open: Arc::default(),
            accepting: None,
        };
        let (received, connections) = (upstream.received.clone(), upstream.connections.clone());
        let (stopped, open) = (upstream.stopped.clone(), upstream.open.clone());
        let script: Arc<Script> = Arc::new(script);
        upstream.accepting = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let number = connections.fetch_add(1, Ordering::SeqCst);
                open.lock().expect("the connections").extend(stream.try_clone().map(|stream| (number, stream)));
                let (received, script, open) = (received.clone(), script.clone(), open.clone());
                std::thread::spawn(move || serve(stream, number, &received, &open, &*script));
            }
        }));
        upstream
    }

    /// The `[upstreams.app]` table for it.
    pub(crate) fn table(&self) -> String {
        format!("\n[upstreams.app]\nurls = [\"{}\"]\n", self.url())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("the record").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.received.lock().expect("the record").len()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually(&format!("the upstream has {count} requests"), || (self.count() >= count).then(|| self.received()))
    }

    /// Waits until every connection that was made before this call is closed, and all that came on it is on record.
    pub(crate) fn wait_until_left(&self) {
        let ours = TcpStream::connect(self.address).expect("the upstream listens");
        let name = ours.local_addr().expect("an address");
        // Connections are accepted in the order in which they were made: those before ours are known when ours is.
        let open = || self.open.lock().expect("the connections");
        let is_ours = |stream: &TcpStream| stream.peer_addr().is_ok_and(|peer| peer == name);
        eventually("the upstream accepts", || open().values().any(is_ours).then_some(()));
        drop(ours);
        eventually("the upstream is left by all", || open().is_empty().then_some(()));
    }

    /// Closes every connection that is open now.
    pub(crate) fn hang_up(&self) {
        for stream in self.open.lock().expect("the connections").values() {
            // The other side may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Nobody listens any more, and what was open is closed.
    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            // Wakes the accept loop, which then ends and closes the listener with it; it says nothing at its end.
            let _ = TcpStream::connect(self.address);
            let _ = accepting.join();
        }
        self.hang_up();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(
    stream: TcpStream,
    connection: usize,
    received: &Mutex<Vec<Received>>,
    open: &OpenConnections,
    script: &Script,
) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reading = BufReader::new(reading);
    let mut stream = stream;
    while let Some(mut request) = read_request(&mut reading) {
        request.connection = connection;
        let number = {
            let mut all = received.lock().expect("the record");
            all.push(request.clone());
            all.len() - 1
        };
        if !answer(&mut stream, script(&request, number)) {
            break;
        }
    }
    open.lock().expect("the connections").remove(&connection);
}

fn read_request(from: &mut impl BufRead) -> Option<Received> {
    let mut line = || {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line).ok().filter(|read| *read > 0)?;
        while line.last().is_some_and(|b| matches!(b, b'\r' | b'\n')) {
            line.pop();
        }
        Some(line)
    };
    let start = String::from_utf8_lossy(&line()?).into_owned();
    let mut parts = start.split(' ');
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        let colon = header.iter().position(|b| *b == b':')?;
        headers
            .push((String::from_utf8_lossy(&header[..colon]).into_owned(), header[colon + 1..].trim_ascii().to_vec()));
    }
    let mut received = Received { method, target, headers, body: Vec::new(), connection: 0 };
    let length = received.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    received.body = vec![0; length];
    from.read_exact(&mut received.body).ok()?;
    Some(received)
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, reply: Reply) -> bool {
    match reply {
        Reply::Status(status) => answer(stream, Reply::Full { status, headers: Vec::new(), body: Vec::new() }),
        Reply::Full { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
            if status != 204 {
                head.push_str(&format!("Content-Length: {}\r\n", body.len()));
            }
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            let bytes = [head.as_bytes(), &body].concat();
            stream.write_all(&bytes).is_ok()
        }
        Reply::Raw(bytes) => {
            // The gateway may have gone; the test sees that elsewhere.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Both);
            false
        }
        Reply::Begun(bytes, then) => {
            // As above.
            let _ = stream.write_all(&bytes);
            answer(stream, *then)
        }
        Reply::Close => {
            let _ = stream.shutdown(Shutdown::Both);
            false
        }
        Reply::Reset => {
            // Closing with a linger of zero sends RST (RFC 9293 §3.10.7, SO_LINGER); `serve` closes.
            let _ = rustix::net::sockopt::set_socket_linger(&*stream, Some(std::time::Duration::ZERO));
            false
        }
        Reply::Held(gate, then) => {
            gate.pass();
            answer(stream, *then)
        }
    }
}
