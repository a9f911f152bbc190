//! The process's moving parts: listeners, the operator's port, the door; and putting another configuration in force.
//!
//! Invariant: a reload binds every new port before it changes anything, so that a configuration that cannot be put in
//! force leaves the old one as it was. A listener whose address stays keeps its socket: nobody is turned away.

use crate::admin::{AdminPort, OpenWorkshop};
use crate::clock::Clock;
use crate::config::{Admin, Config, ListenerPlan, Log};
use crate::gateway::Door;
use crate::inbox::{self, Inbox};
use crate::server::{self, Listener, Permits, Stop};
use crate::state::{self, State};
use crate::telemetry::{Audit, Metrics};
use crate::threads::{self, Threads};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Writing out the log of the state file takes a moment, even of a large one.
const STATE_CLOSES_WITHIN: Duration = Duration::from_secs(10);

/// Connections of the operator's port.
const ADMIN_CONNECTIONS: usize = 256;

pub(super) struct Running {
    pub(super) door: Arc<Door>,
    listeners: BTreeMap<Arc<str>, Serving>,
    /// Listeners that a reload took away, finishing what they have.
    leaving: Vec<Serving>,
    admin: Option<(Serving, Arc<AdminPort>)>,
    /// How a drain goes; a reload may change it.
    pub(super) drain_delay: Duration,
    pub(super) drain_timeout: Duration,
    permits: Arc<Permits>,
    threads: Arc<Threads>,
    /// As configured: 0 is one for each processor.
    wanted_threads: usize,
    log: Log,
    state: state::Settings,
}

struct Serving {
    listener: Arc<Listener>,
    /// As configured; with port 0 the bound one differs.
    configured: SocketAddr,
    stop: watch::Sender<Stop>,
    task: JoinHandle<()>,
}

type Inherited = Vec<(Option<String>, TcpListener)>;

impl Running {
    pub(super) async fn start(
        config: Config,
        mut inherited: Inherited,
        workshop: OpenWorkshop,
    ) -> Result<Self, String> {
        let metrics = Arc::new(Metrics::new());
        let clock = Arc::new(Clock::default());
        let audit = Audit::start(&config.log.audit, config.log.format, metrics.clone())
            .map_err(|error| format!("the audit log cannot be written: {:?}: {error}", config.log.audit))?;
        let permits = Permits::new(config.max_connections);
        let count = if config.threads == 0 { threads::processors() } else { config.threads };
        let threads = Threads::start(count).map_err(|error| format!("{count} threads cannot be started: {error}"))?;
        let mut bound = Vec::new();
        for plan in config.listeners {
            let socket = take_inherited(&mut inherited, &plan.settings)?;
            bound.push(bind(plan, socket, &metrics, &permits, &threads)?);
        }
        let admin = match config.admin {
            Some(Admin { settings, token, .. }) => {
                let socket = take_inherited(&mut inherited, &settings)?;
                let permits = Permits::new(ADMIN_CONNECTIONS);
                Some((bind(ListenerPlan { settings }, socket, &metrics, &permits, &Threads::none())?, token))
            }
            None => None,
        };
        for (name, _) in inherited {
            tracing::warn!(name, "an inherited socket belongs to no listener (by name or address) and is closed");
        }

        let opening = config.state.clone();
        let now = clock.now();
        let meters = state::Meters {
            errors: metrics.state_errors.clone(),
            fallbacks: metrics.state_fallbacks.clone(),
            lost: metrics.state_lost.clone(),
            skew: metrics.state_skew.clone(),
            durations: metrics.state_seconds.clone(),
        };
        let opened = tokio::task::spawn_blocking(move || State::open(&opening, now, meters)).await;
        let state = match opened {
            Ok(Ok(state)) => Arc::new(state),
            Ok(Err(error)) => return Err(format!("[state]: {error}")),
            Err(_) => return Err("[state]: opening it failed".to_owned()),
        };
        state.read_captures().await;
        let inbox = match config.inbox {
            Some(settings) => Some(open_inbox(&settings, &clock, &metrics)?),
            None => None,
        };
        let door =
            Door::open(config.plan, clock, metrics.clone(), audit, state, inbox).map_err(|error| error.to_string())?;
        metrics.config_last_success.set(door.clock.now().as_secs() as f64);

        door.start_dispatching();

        let listeners = bound.into_iter().map(|(listener, configured)| {
            let serving = serve(listener, configured, &door, &threads);
            (serving.listener.settings().name.clone(), serving)
        });
        let listeners = listeners.collect();
        let admin = admin.map(|((listener, configured), token)| {
            let port = Arc::new(AdminPort::new(door.clone(), token, workshop));
            (serve_admin(listener, configured, port.clone()), port)
        });
        Ok(Self {
            door,
            listeners,
            leaving: Vec::new(),
            admin,
            drain_delay: config.drain_delay,
            drain_timeout: config.drain_timeout,
            permits,
            threads,
            wanted_threads: config.threads,
            log: config.log,
            state: config.state,
        })
    }

    /// Puts another configuration in force, or changes nothing.
    pub(super) fn replace(&mut self, config: Config) -> Result<(), String> {
        let mut fresh = Vec::new();
        let mut kept = Vec::new();
        for plan in config.listeners {
            match self.listeners.get(&plan.settings.name) {
                Some(serving) if serving.configured == plan.settings.address => kept.push(plan),
                _ => fresh.push(bind(plan, None, &self.door.metrics, &self.permits, &self.threads)?),
            }
        }
        if let (None, Some(settings)) = (&*self.door.inbox.load(), &config.inbox) {
            let inbox = open_inbox(settings, &self.door.clock, &self.door.metrics)?;
            self.door.inbox.store(Some(inbox));
        }
        self.door.swap(config.plan).map_err(|error| error.to_string())?;
        if let (Some(inbox), Some(settings)) = (&*self.door.inbox.load(), config.inbox) {
            if !inbox.is_in(&settings.folder) {
                tracing::warn!("[inbox] path takes effect at the next start");
            }
            inbox.adjust(settings);
        }
        self.door.metrics.config_last_success.set(self.door.clock.now().as_secs() as f64);
        self.permits.resize(config.max_connections);

        let mut listeners = BTreeMap::new();
        for plan in kept {
            if let Some(serving) = self.listeners.remove(&plan.settings.name) {
                let name = plan.settings.name.clone();
                // The socket's own address stays: with port 0 the configured one says less.
                let settings = server::Settings { address: serving.listener.local_addr(), ..plan.settings };
                serving.listener.update(settings);
                listeners.insert(name, serving);
            }
        }
        for (listener, configured) in fresh {
            let serving = serve(listener, configured, &self.door, &self.threads);
            listeners.insert(serving.listener.settings().name.clone(), serving);
        }
        for (name, gone) in std::mem::replace(&mut self.listeners, listeners) {
            tracing::info!(listener = &*name, "no longer listening");
            gone.stop.send_replace(Stop::StopAccepting);
            // One that moved has its name, and so its series, still.
            if !self.listeners.contains_key(&name) {
                self.door.metrics.forget_listener(&name);
            }
            self.leaving.push(gone);
        }
        self.leaving.retain(|serving| !serving.task.is_finished());

        if config.log.level != self.log.level || config.log.format != self.log.format {
            tracing::warn!("[log] format and level take effect at the next start");
        }
        self.log.audit = config.log.audit;
        if config.threads != self.wanted_threads {
            tracing::warn!("[limits] threads takes effect at the next start");
        }
        if !config.state.is_same(&self.state) {
            tracing::warn!("[state] takes effect at the next start (max_claims did at once)");
        }
        (self.drain_delay, self.drain_timeout) = (config.drain_delay, config.drain_timeout);
        match (&self.admin, config.admin) {
            (None, None) => {}
            (Some((serving, port)), Some(admin)) if serving.configured == admin.settings.address => {
                port.change_token(admin.token);
            }
            _ => tracing::warn!("[admin] takes effect at the next start"),
        }
        Ok(())
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = (Arc<str>, SocketAddr)> {
        let all = self.listeners.values().chain(self.admin.as_ref().map(|(serving, _)| serving));
        all.map(|serving| (serving.listener.settings().name.clone(), serving.listener.local_addr()))
    }

    /// Log rotation asks for it with the same signal, whatever became of the configuration.
    pub(super) fn reopen_audit(&self) {
        self.door.audit.reopen(&self.log.audit);
    }

    /// Listeners take what is in their backlog, close, and tell their connections to finish. No attempt at a delivery
    /// from the inbox begins any more.
    pub(super) fn stop_accepting(&self) {
        self.door.stop_dispatching();
        for serving in self.listeners.values() {
            serving.stop.send_replace(Stop::StopAccepting);
        }
    }

    /// All connections have ended, and all work that outlived its connection.
    pub(super) async fn finished(&mut self) {
        for serving in self.listeners.values_mut().chain(&mut self.leaving) {
            // A listener's task ends by returning; were it to panic, there would be nothing left to wait for.
            let _ = (&mut serving.task).await;
        }
        self.door.quiet().await;
    }

    pub(super) async fn close(&mut self) {
        for serving in
            self.listeners.values().chain(&self.leaving).chain(self.admin.as_ref().map(|(serving, _)| serving))
        {
            serving.stop.send_replace(Stop::Abort);
        }
        // A disk that hangs must not keep the process.
        if let Some(inbox) = self.door.inbox.load_full()
            && tokio::time::timeout(STATE_CLOSES_WITHIN, inbox.close()).await.is_err()
        {
            tracing::error!("the inbox did not close in time; what was acknowledged is written");
        }
        if tokio::time::timeout(STATE_CLOSES_WITHIN, self.door.state.close()).await.is_err() {
            tracing::error!("the state store did not close in time; what was committed is written");
        }
        // What is cut is dropped there: those who wait for an answer must see that they get none.
        let threads = self.threads.clone();
        drop(tokio::task::spawn_blocking(move || threads.end()).await);
        self.door.audit.flush();
    }
}

/// The whole file may have to be read first: not a thing to do on a thread that others wait for.
fn open_inbox(settings: &inbox::Settings, clock: &Clock, metrics: &Metrics) -> Result<Arc<Inbox>, String> {
    let meters = inbox::Meters {
        append: metrics.inbox_append_seconds.clone(),
        commit: metrics.inbox_commit_seconds.clone(),
        batch: metrics.inbox_batch_size.clone(),
        errors: metrics.inbox_errors.clone(),
    };
    let opened = tokio::task::block_in_place(|| Inbox::open(settings, clock.now(), meters));
    opened.map_err(|error| format!("[inbox]: {error}"))
}

/// An inherited socket belongs to the listener of its name (FileDescriptorName=), or to the one with its address.
///
/// What the configuration allows was judged by its address (passwords in the clear on loopback, say), so a socket of
/// another one is refused, by whatever name it comes. Port 0 takes any port.
fn take_inherited(inherited: &mut Inherited, settings: &server::Settings) -> Result<Option<TcpListener>, String> {
    let (name, wanted) = (&settings.name, settings.address);
    let by_name = |named: &Option<String>| named.as_deref().is_some_and(|named| named == &**name);
    let by_address = |socket: &TcpListener| socket.local_addr().is_ok_and(|address| address == wanted);
    let position = inherited
        .iter()
        .position(|(named, _)| by_name(named))
        .or_else(|| inherited.iter().position(|(_, socket)| by_address(socket)));
    let Some(position) = position else { return Ok(None) };
    let socket = inherited.remove(position).1;
    let found = socket.local_addr().map_err(|error| format!("listeners.{name}: the inherited socket: {error}"))?;
    let mut expected = wanted;
    if expected.port() == 0 {
        expected.set_port(found.port());
    }
    if found != expected {
        return Err(format!(
            "listeners.{name}: the inherited socket of this name listens on {found}, and `address` says {wanted}; make \
             ListenStream= of the socket unit and `address` the same"
        ));
    }
    Ok(Some(socket))
}

fn bind(
    plan: ListenerPlan,
    inherited: Option<TcpListener>,
    metrics: &Metrics,
    permits: &Arc<Permits>,
    threads: &Arc<Threads>,
) -> Result<(Arc<Listener>, SocketAddr), String> {
    let configured = plan.settings.address;
    let name = plan.settings.name.clone();
    let meters = server::Meters {
        connections: metrics.connections(&name),
        handshakes_ok: metrics.handshakes(&name, "ok"),
        handshakes_failed: metrics.handshakes(&name, "failed"),
        handshakes_timed_out: metrics.handshakes(&name, "timeout"),
        refused_connections: metrics.connections_refused(&name),
        accept_errors: metrics.accept_errors(&name),
        certificate_expiry: metrics.certificate_expiry.clone(),
    };
    let listener = Listener::bind(plan.settings, inherited, meters, permits.clone(), threads.clone())
        .map_err(|error| format!("listeners.{name}: {error}"))?;
    tracing::info!(listener = &*name, address = %listener.local_addr(), "listening");
    Ok((listener, configured))
}

fn serve(listener: Arc<Listener>, configured: SocketAddr, door: &Arc<Door>, threads: &Threads) -> Serving {
    let (stop, stopped) = watch::channel(Stop::Serve);
    let door = door.clone();
    let handler = move |request, peer| door.clone().receive(request, peer);
    let task = threads.spawn(listener.clone().serve(handler, stopped));
    Serving { listener, configured, stop, task }
}

fn serve_admin(listener: Arc<Listener>, configured: SocketAddr, port: Arc<AdminPort>) -> Serving {
    let (stop, stopped) = watch::channel(Stop::Serve);
    let handler = move |request, _peer| {
        let port = port.clone();
        async move { port.answer(request).await }
    };
    let task = tokio::spawn(listener.clone().serve(handler, stopped));
    Serving { listener, configured, stop, task }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: SocketAddr) -> server::Settings {
        server::Settings {
            name: "public".into(),
            address,
            tls: None,
            proxy_protocol: false,
            trusted_proxies: Vec::new().into(),
            limits: server::Limits {
                max_connections_per_client: 1,
                max_header_bytes: 8192,
                header_timeout: Duration::from_secs(1),
                handshake_timeout: Duration::from_secs(1),
                idle_timeout: Duration::from_secs(1),
                max_concurrent_streams: 1,
            },
        }
    }

    fn socket(address: &str) -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind(address).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[test]
    fn an_inherited_socket_is_taken_by_name_only_where_its_address_is_the_configured_one() {
        let take = |bound: &str, configured: &dyn Fn(SocketAddr) -> SocketAddr| {
            let (socket, address) = socket(bound);
            let configured = configured(address);
            let taken = take_inherited(&mut vec![(Some("public".to_owned()), socket)], &settings(configured));
            taken.map(|taken| taken.is_some()).map_err(|error| (error, address, configured))
        };
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(take("127.0.0.1:0", &|bound| bound), Ok(true));
        assert_eq!(take("127.0.0.1:0", &|_| loopback(0)), Ok(true));
        // A listener in the clear that was judged by its being loopback, open to everybody.
        for configured in [&(|bound: SocketAddr| loopback(bound.port())) as &dyn Fn(_) -> _, &|_| loopback(0)] {
            let (error, found, wanted) = take("0.0.0.0:0", configured).unwrap_err();
            assert!(error.starts_with("listeners.public: "), "{error}");
            assert!(error.contains(&format!("listens on {found}, and `address` says {wanted}")), "{error}");
            assert!(error.contains("ListenStream="), "{error}");
        }
        assert!(take("127.0.0.1:0", &|bound| loopback(bound.port() ^ 1)).is_err());
    }

    #[test]
    fn an_inherited_socket_of_another_name_is_taken_by_its_address() {
        let (one, address) = socket("127.0.0.1:0");
        let (other, _) = socket("127.0.0.1:0");
        let mut inherited = vec![(Some("else".to_owned()), other), (None, one)];
        let taken = take_inherited(&mut inherited, &settings(address)).unwrap().unwrap();
        assert_eq!(taken.local_addr().unwrap(), address);
        assert_eq!(inherited.len(), 1);
        assert!(take_inherited(&mut inherited, &settings(address)).unwrap().is_none());
    }
}
