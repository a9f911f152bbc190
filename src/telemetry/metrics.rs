//! Every metric's name, help and labels, in one table, and the handles that the request path adds to.
//!
//! Invariant: what happens per request is an atomic add on a handle that was looked up when the configuration was
//! loaded. Series appear at zero with their source, so that `rate()` sees the first event. One file, since a name is
//! looked for in one place.

use super::outcome::Outcome;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::sync::Arc;

/// From 100 µs (a refusal) to 60 s (the longest that senders wait).
const WHOLE_REQUEST_BUCKETS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// From 1 µs (an HMAC over 1 KiB) to 50 ms (25 MiB).
const VERIFY_BUCKETS: [f64; 9] = [0.000_001, 0.000_002_5, 0.000_005, 0.000_01, 0.000_05, 0.000_25, 0.001, 0.01, 0.05];

/// From 50 µs (a sync of a fast disk) to 10 s (one that is about to fail).
const DISK_BUCKETS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0];

/// From 1 ms to the days that an upstream may be away.
const PATIENT_BUCKETS: [f64; 14] =
    [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 21_600.0, 86_400.0];

const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 1024.0];

pub(crate) struct Metrics {
    registry: Registry,
    deliveries: IntCounterVec,
    would_refuse: IntCounterVec,
    delivery_seconds: HistogramVec,
    verify_seconds: HistogramVec,
    secret_last_used: GaugeVec,
    last_accepted: GaugeVec,
    silent: IntGaugeVec,
    claims: IntGaugeVec,
    claims_limit: IntGaugeVec,
    upstream_requests: IntCounterVec,
    upstream_seconds: HistogramVec,
    upstream_healthy: IntGaugeVec,
    upstream_addresses: IntGaugeVec,
    upstream_healthy_addresses: IntGaugeVec,
    upstream_resolve_failures: IntCounterVec,
    upstream_in_flight: IntGaugeVec,
    upstream_idle_connections: IntGaugeVec,
    upstream_repeats: IntCounterVec,
    handshakes: IntCounterVec,
    pub(crate) certificate_expiry: IntGaugeVec,
    connections: IntGaugeVec,
    connections_refused: IntCounterVec,
    accept_errors: IntCounterVec,
    reloads: IntCounterVec,
    pub(crate) fetches: IntCounterVec,
    pub(crate) fetch_seconds: Histogram,
    pub(crate) fetched_documents: IntGauge,
    pub(crate) unrouted: IntCounterVec,
    pub(crate) buffered_bytes: IntGauge,
    pub(crate) state_errors: IntCounter,
    pub(crate) state_fallbacks: IntCounterVec,
    pub(crate) state_lost: IntCounter,
    pub(crate) state_skew: Gauge,
    pub(crate) state_seconds: HistogramVec,
    pub(crate) inbox_append_seconds: Histogram,
    pub(crate) inbox_commit_seconds: Histogram,
    pub(crate) inbox_batch_size: Histogram,
    pub(crate) inbox_errors: IntCounter,
    inbox_depth: IntGaugeVec,
    inbox_oldest: GaugeVec,
    pub(crate) inbox_size: IntGauge,
    inbox_attempts: IntCounterVec,
    inbox_delivery_seconds: HistogramVec,
    inbox_dead: IntCounterVec,
    inbox_breaker_state: IntGaugeVec,
    pub(crate) quarantined: IntGaugeVec,
    pub(crate) quarantine_dropped: IntCounterVec,
    pub(crate) reverified: IntCounterVec,
    pub(crate) commit_failures: IntCounter,
    pub(crate) audit_dropped: IntCounter,
    pub(crate) clock_behind: Gauge,
    pub(crate) config_last_success: Gauge,
}

/// One source's handles.
pub(crate) struct SourceMeters {
    outcomes: [IntCounter; Outcome::COUNT],
    /// Only where the source observes instead of enforcing.
    would_refuse: Option<[IntCounter; Outcome::COUNT]>,
    pub(crate) duration: Histogram,
    pub(crate) verify: Histogram,
    pub(crate) claims: IntGauge,
    pub(crate) claims_limit: IntGauge,
    pub(crate) last_accepted: Gauge,
    /// Only where the source says how often it expects a delivery.
    pub(crate) silent: Option<IntGauge>,
    /// By position of the secret in the source's list.
    pub(crate) secrets_last_used: Vec<Gauge>,
}

impl SourceMeters {
    pub(crate) fn count(&self, outcome: Outcome) {
        if let Some(counter) = self.outcomes.get(outcome.index()) {
            counter.inc();
        }
    }

    pub(crate) fn count_would_refuse(&self, outcome: Outcome) {
        if let Some(counter) = self.would_refuse.as_ref().and_then(|counters| counters.get(outcome.index())) {
            counter.inc();
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            deliveries: counters(
                &registry,
                "deliveries_total",
                "Requests by source and how they ended.",
                &["source", "outcome"],
            ),
            would_refuse: counters(
                &registry,
                "would_refuse_total",
                "Requests to sources in observe mode that enforcing would have refused.",
                &["source", "reason"],
            ),
            unrouted: counters(
                &registry,
                "unmatched_requests_total",
                "Requests that no source matched, by reason.",
                &["reason"],
            ),
            delivery_seconds: histograms(
                &registry,
                "delivery_duration_seconds",
                "From the request's head to its answer's head.",
                &["source"],
                &WHOLE_REQUEST_BUCKETS,
            ),
            verify_seconds: histograms(
                &registry,
                "verify_duration_seconds",
                "Judging the credentials of a whole request.",
                &["source"],
                &VERIFY_BUCKETS,
            ),
            secret_last_used: register(
                &registry,
                GaugeVec::new(
                    opts(
                        "secret_last_used_timestamp_seconds",
                        "When a secret last was the first listed one to match; 0: not since the start.",
                    ),
                    &["source", "secret"],
                ),
            ),
            last_accepted: register(
                &registry,
                GaugeVec::new(
                    opts(
                        "source_last_accepted_timestamp_seconds",
                        "When a delivery was accepted last; 0: not since the start.",
                    ),
                    &["source"],
                ),
            ),
            silent: gauges(
                &registry,
                "source_silent",
                "1: nothing was accepted for longer than the source's expect_every; 0: something was.",
                &["source"],
            ),
            claims: gauges(
                &registry,
                "claims",
                "Claims held or remembered, by source: one for each live secret of a delivery.",
                &["source"],
            ),
            claims_limit: gauges(
                &registry,
                "claims_limit",
                "The most claims a source holds; full means 503.",
                &["source"],
            ),
            upstream_requests: counters(
                &registry,
                "upstream_requests_total",
                "Parcels sent, by upstream and result.",
                &["upstream", "result"],
            ),
            upstream_seconds: histograms(
                &registry,
                "upstream_duration_seconds",
                "From taking a parcel to the end of the upstream's answer, waiting for a place included.",
                &["upstream"],
                &WHOLE_REQUEST_BUCKETS,
            ),
            upstream_healthy: gauges(
                &registry,
                "upstream_healthy",
                "1: the url is in use; 0: all its addresses are ejected or fail their health check, or it has none.",
                &["upstream", "url"],
            ),
            upstream_addresses: gauges(
                &registry,
                "upstream_addresses",
                "Addresses that are known of a url's host.",
                &["upstream", "url"],
            ),
            upstream_healthy_addresses: gauges(
                &registry,
                "upstream_healthy_addresses",
                "Those of them that are neither ejected nor fail their health check.",
                &["upstream", "url"],
            ),
            upstream_resolve_failures: counters(
                &registry,
                "upstream_resolve_failures_total",
                "Lookups of a url's host that failed, were empty or took too long.",
                &["upstream", "url"],
            ),
            upstream_in_flight: gauges(
                &registry,
                "upstream_in_flight",
                "Requests under way to an upstream.",
                &["upstream"],
            ),
            upstream_idle_connections: gauges(
                &registry,
                "upstream_idle_connections",
                "Kept-alive connections to an upstream without a request.",
                &["upstream"],
            ),
            upstream_repeats: counters(
                &registry,
                "upstream_repeats_total",
                "Requests repeated at once on another connection or url.",
                &["upstream"],
            ),
            handshakes: counters(
                &registry,
                "tls_handshakes_total",
                "TLS handshakes by listener and result.",
                &["listener", "result"],
            ),
            certificate_expiry: gauges(
                &registry,
                "tls_certificate_expiry_timestamp_seconds",
                "When the listener's first certificate to expire does so.",
                &["listener"],
            ),
            connections: gauges(&registry, "connections", "Open connections by listener.", &["listener"]),
            connections_refused: counters(
                &registry,
                "connections_refused_total",
                "Connections closed at once: over a limit, or not from a proxy.",
                &["listener"],
            ),
            accept_errors: counters(
                &registry,
                "accept_errors_total",
                "Failed accepts (out of file descriptors, say).",
                &["listener"],
            ),
            fetches: counters(
                &registry,
                "fetches_total",
                "Keys and certificates fetched, or refused to be, by host and result.",
                &["host", "result"],
            ),
            fetch_seconds: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::from(opts("fetch_duration_seconds", "Fetching a key or certificate."))
                        .buckets(WHOLE_REQUEST_BUCKETS.to_vec()),
                ),
            ),
            fetched_documents: register(
                &registry,
                IntGauge::with_opts(opts("fetched_documents", "Fetched keys and certificates that are kept.")),
            ),
            reloads: counters(&registry, "config_reloads_total", "Reloads by result.", &["result"]),
            buffered_bytes: register(
                &registry,
                IntGauge::with_opts(opts("buffered_bytes", "Bytes of request bodies held.")),
            ),
            state_errors: register(
                &registry,
                IntCounter::with_opts(opts("state_errors_total", "Failed reads or writes of the state store.")),
            ),
            state_fallbacks: counters(
                &registry,
                "state_fallback_total",
                "Deliveries that this gateway judged by its own memory, as Redis did not answer.",
                &["source"],
            ),
            state_lost: register(
                &registry,
                IntCounter::with_opts(opts(
                    "state_lost_total",
                    "Times that a source's claims in Redis were found gone.",
                )),
            ),
            state_skew: register(
                &registry,
                Gauge::with_opts(opts(
                    "state_clock_skew_seconds",
                    "This machine's clock less that of Redis, the way of the answer included.",
                )),
            ),
            state_seconds: histograms(
                &registry,
                "state_duration_seconds",
                "Round trips to Redis by operation.",
                &["operation"],
                &DISK_BUCKETS,
            ),
            inbox_append_seconds: histogram(
                &registry,
                "inbox_append_duration_seconds",
                "From handing a delivery to the inbox to its commit.",
                &DISK_BUCKETS,
            ),
            inbox_commit_seconds: histogram(
                &registry,
                "inbox_commit_duration_seconds",
                "Commits of the inbox, their syncs included.",
                &DISK_BUCKETS,
            ),
            inbox_batch_size: histogram(
                &registry,
                "inbox_batch_size",
                "Deliveries that shared one commit of the inbox.",
                &BATCH_BUCKETS,
            ),
            inbox_depth: gauges(
                &registry,
                "inbox_depth",
                "Deliveries in the inbox, one for each upstream they go to, by state.",
                &["source", "upstream", "state"],
            ),
            inbox_oldest: register(
                &registry,
                GaugeVec::new(
                    opts("inbox_oldest_age_seconds", "Age of the oldest delivery that still waits; 0: none does."),
                    &["source", "upstream"],
                ),
            ),
            inbox_size: register(
                &registry,
                IntGauge::with_opts(opts("inbox_size_bytes", "The inbox's file and its log on the disk.")),
            ),
            inbox_attempts: counters(
                &registry,
                "inbox_attempts_total",
                "Attempts at delivering from the inbox, by upstream and what became of them.",
                &["upstream", "result"],
            ),
            inbox_delivery_seconds: histograms(
                &registry,
                "inbox_delivery_duration_seconds",
                "From the acceptance of a delivery to its delivery by the inbox.",
                &["upstream"],
                &PATIENT_BUCKETS,
            ),
            inbox_dead: counters(
                &registry,
                "inbox_dead_total",
                "Deliveries that the inbox gave up: dead letters.",
                &["source", "upstream"],
            ),
            inbox_breaker_state: gauges(
                &registry,
                "inbox_breaker_state",
                "0: the inbox delivers to the upstream; 1: one delivery asks whether it works again; 2: it is left alone.",
                &["upstream"],
            ),
            inbox_errors: register(
                &registry,
                IntCounter::with_opts(opts("inbox_errors_total", "Failed reads or writes of the inbox.")),
            ),
            quarantined: gauges(
                &registry,
                "inbox_quarantined",
                "Requests kept because their signature alone did not match, by source.",
                &["source"],
            ),
            quarantine_dropped: counters(
                &registry,
                "inbox_quarantine_dropped_total",
                "Requests that the quarantine did not take, by source and reason.",
                &["source", "reason"],
            ),
            reverified: counters(
                &registry,
                "inbox_reverified_total",
                "Requests of the quarantine that were judged again, by source and what came of it.",
                &["source", "result"],
            ),
            commit_failures: register(
                &registry,
                IntCounter::with_opts(opts(
                    "claim_commit_failures_total",
                    "Claims that could not be made lasting after the upstream's 2xx, until their lease ended.",
                )),
            ),
            audit_dropped: register(
                &registry,
                IntCounter::with_opts(opts(
                    "audit_dropped_total",
                    "Audit lines lost because the log's reader or disk was too slow.",
                )),
            ),
            clock_behind: register(
                &registry,
                Gauge::with_opts(opts(
                    "clock_behind_seconds",
                    "How far the machine's clock was set back behind a time already used.",
                )),
            ),
            config_last_success: register(
                &registry,
                Gauge::with_opts(opts(
                    "config_last_reload_success_timestamp_seconds",
                    "When the configuration in force was loaded.",
                )),
            ),
            registry,
        };
        metrics.fetches.with_label_values(&["other", "ok"]);
        for operation in ["claim", "commit", "release"] {
            metrics.state_seconds.with_label_values(&[operation]);
        }
        for result in ["success", "failure"] {
            metrics.reloads.with_label_values(&[result]);
        }
        let info = Opts::new("hookward_build_info", "Always 1; the version is the label.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        register(&metrics.registry, IntGauge::with_opts(info)).set(1);
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            metrics.registry.register(Box::new(process)).expect("process metrics are registered once");
        }
        metrics
    }

    /// `secrets`: the references (or positions) of the source's secrets, never their values.
    pub(crate) fn source(&self, name: &str, secrets: &[String], observes: bool, expects: bool) -> Arc<SourceMeters> {
        let by_outcome = |family: &IntCounterVec| {
            let mut all = Outcome::all();
            std::array::from_fn(|_| {
                let outcome = all.next().map_or("", Outcome::label);
                family.with_label_values(&[name, outcome])
            })
        };
        self.state_fallbacks.with_label_values(&[name]);
        Arc::new(SourceMeters {
            outcomes: by_outcome(&self.deliveries),
            would_refuse: observes.then(|| by_outcome(&self.would_refuse)),
            duration: self.delivery_seconds.with_label_values(&[name]),
            verify: self.verify_seconds.with_label_values(&[name]),
            claims: self.claims.with_label_values(&[name]),
            claims_limit: self.claims_limit.with_label_values(&[name]),
            last_accepted: self.last_accepted.with_label_values(&[name]),
            silent: expects.then(|| self.silent.with_label_values(&[name])),
            secrets_last_used: secrets
                .iter()
                .map(|secret| self.secret_last_used.with_label_values(&[name, secret.as_str()]))
                .collect(),
        })
    }

    /// Takes away the series of sources that a reload removed, so that they do not stand still for ever.
    pub(crate) fn forget_source(&self, name: &str, secrets: &[String]) {
        // A series that is not there is what we want.
        for outcome in Outcome::all() {
            let _ = self.deliveries.remove_label_values(&[name, outcome.label()]);
            let _ = self.would_refuse.remove_label_values(&[name, outcome.label()]);
        }
        let _ = self.delivery_seconds.remove_label_values(&[name]);
        let _ = self.verify_seconds.remove_label_values(&[name]);
        let _ = self.claims.remove_label_values(&[name]);
        let _ = self.claims_limit.remove_label_values(&[name]);
        let _ = self.last_accepted.remove_label_values(&[name]);
        let _ = self.state_fallbacks.remove_label_values(&[name]);
        self.forget_silence(name);
        for secret in secrets {
            self.forget_secret(name, secret);
        }
    }

    /// Series that are there from the loading of a source with a quarantine on.
    pub(crate) fn expect_quarantine(&self, source: &str, reasons: &[&str]) {
        self.quarantined.with_label_values(&[source]);
        self.reverified.with_label_values(&[source, "accepted"]);
        for reason in reasons {
            self.quarantine_dropped.with_label_values(&[source, reason]);
        }
    }

    /// Of a source that stays, and is expected no longer.
    pub(crate) fn forget_silence(&self, source: &str) {
        let _ = self.silent.remove_label_values(&[source]);
    }

    /// One of a source that stays: its time would look idle for ever.
    pub(crate) fn forget_secret(&self, source: &str, secret: &str) {
        let _ = self.secret_last_used.remove_label_values(&[source, secret]);
    }

    pub(crate) fn forget_upstream(&self, name: &str, results: &[&str]) {
        for result in results {
            let _ = self.upstream_requests.remove_label_values(&[name, result]);
        }
        let _ = self.upstream_seconds.remove_label_values(&[name]);
        let _ = self.upstream_in_flight.remove_label_values(&[name]);
        let _ = self.upstream_idle_connections.remove_label_values(&[name]);
        let _ = self.upstream_repeats.remove_label_values(&[name]);
    }

    pub(crate) fn forget_deliveries_to<'a>(
        &self,
        upstream: &str,
        results: &[&str],
        sources: impl Iterator<Item = &'a str>,
    ) {
        for result in results {
            let _ = self.inbox_attempts.remove_label_values(&[upstream, result]);
        }
        for source in sources {
            let _ = self.inbox_dead.remove_label_values(&[source, upstream]);
        }
        let _ = self.inbox_delivery_seconds.remove_label_values(&[upstream]);
        let _ = self.inbox_breaker_state.remove_label_values(&[upstream]);
    }

    pub(crate) fn forget_url(&self, upstream: &str, url: &str) {
        let _ = self.upstream_healthy.remove_label_values(&[upstream, url]);
        let _ = self.upstream_addresses.remove_label_values(&[upstream, url]);
        let _ = self.upstream_healthy_addresses.remove_label_values(&[upstream, url]);
        let _ = self.upstream_resolve_failures.remove_label_values(&[upstream, url]);
    }

    pub(crate) fn forget_listener(&self, name: &str) {
        for result in ["ok", "failed", "timeout"] {
            let _ = self.handshakes.remove_label_values(&[name, result]);
        }
        let _ = self.certificate_expiry.remove_label_values(&[name]);
        let _ = self.connections.remove_label_values(&[name]);
        let _ = self.connections_refused.remove_label_values(&[name]);
        let _ = self.accept_errors.remove_label_values(&[name]);
    }

    pub(crate) fn upstream_requests(&self, upstream: &str, result: &str) -> IntCounter {
        self.upstream_requests.with_label_values(&[upstream, result])
    }

    pub(crate) fn upstream_seconds(&self, upstream: &str) -> Histogram {
        self.upstream_seconds.with_label_values(&[upstream])
    }

    pub(crate) fn upstream_healthy(&self, upstream: &str, url: &str) -> IntGauge {
        self.upstream_healthy.with_label_values(&[upstream, url])
    }

    pub(crate) fn upstream_addresses(&self, upstream: &str, url: &str) -> IntGauge {
        self.upstream_addresses.with_label_values(&[upstream, url])
    }

    pub(crate) fn upstream_healthy_addresses(&self, upstream: &str, url: &str) -> IntGauge {
        self.upstream_healthy_addresses.with_label_values(&[upstream, url])
    }

    pub(crate) fn upstream_resolve_failures(&self, upstream: &str, url: &str) -> IntCounter {
        self.upstream_resolve_failures.with_label_values(&[upstream, url])
    }

    pub(crate) fn upstream_in_flight(&self, upstream: &str) -> IntGauge {
        self.upstream_in_flight.with_label_values(&[upstream])
    }

    pub(crate) fn upstream_idle_connections(&self, upstream: &str) -> IntGauge {
        self.upstream_idle_connections.with_label_values(&[upstream])
    }

    pub(crate) fn upstream_repeats(&self, upstream: &str) -> IntCounter {
        self.upstream_repeats.with_label_values(&[upstream])
    }

    pub(crate) fn inbox_depth(&self, source: &str, upstream: &str, state: &str) -> IntGauge {
        self.inbox_depth.with_label_values(&[source, upstream, state])
    }

    pub(crate) fn inbox_oldest_age(&self, source: &str, upstream: &str) -> Gauge {
        self.inbox_oldest.with_label_values(&[source, upstream])
    }

    pub(crate) fn inbox_attempts(&self, upstream: &str, result: &str) -> IntCounter {
        self.inbox_attempts.with_label_values(&[upstream, result])
    }

    pub(crate) fn inbox_delivery_seconds(&self, upstream: &str) -> Histogram {
        self.inbox_delivery_seconds.with_label_values(&[upstream])
    }

    pub(crate) fn inbox_dead(&self, source: &str, upstream: &str) -> IntCounter {
        self.inbox_dead.with_label_values(&[source, upstream])
    }

    pub(crate) fn inbox_breaker_state(&self, upstream: &str) -> IntGauge {
        self.inbox_breaker_state.with_label_values(&[upstream])
    }

    pub(crate) fn handshakes(&self, listener: &str, result: &str) -> IntCounter {
        self.handshakes.with_label_values(&[listener, result])
    }

    pub(crate) fn connections(&self, listener: &str) -> IntGauge {
        self.connections.with_label_values(&[listener])
    }

    pub(crate) fn connections_refused(&self, listener: &str) -> IntCounter {
        self.connections_refused.with_label_values(&[listener])
    }

    pub(crate) fn accept_errors(&self, listener: &str) -> IntCounter {
        self.accept_errors.with_label_values(&[listener])
    }

    pub(crate) fn reloads(&self, succeeded: bool) -> IntCounter {
        self.reloads.with_label_values(&[if succeeded { "success" } else { "failure" }])
    }

    /// The text exposition format, version 0.0.4.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        out
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("hookward_{name}"), help)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(name, help), labels))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(opts, labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())))
}

/// The names are constants of this file: a name that is invalid or there twice fails every test, not a user.
fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("a metric of this table has a valid name and labels");
    registry.register(Box::new(collector.clone())).expect("a metric of this table is there once");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;

    #[test]
    fn a_source_is_counted_by_outcome_and_its_secrets_by_reference() {
        let metrics = Metrics::new();
        let source = metrics.source("github", &["env:GITHUB_SECRET".to_owned()], false, true);
        source.count(Outcome::Accepted);
        source.count(Outcome::Refused(Refusal::Stale));
        let text = String::from_utf8(metrics.text()).expect("text");
        assert!(text.contains(r#"hookward_deliveries_total{outcome="accepted",source="github"} 1"#));
        assert!(text.contains(r#"hookward_deliveries_total{outcome="stale",source="github"} 1"#));
        assert!(text.contains(r#"hookward_deliveries_total{outcome="replay",source="github"} 0"#));
        assert!(text.contains(r#"secret="env:GITHUB_SECRET",source="github"} 0"#));
        metrics.forget_source("github", &["env:GITHUB_SECRET".to_owned()]);
        assert!(!String::from_utf8(metrics.text()).expect("text").contains("github"));
    }
}
