//! Where one delivery is bound for: its source's routes, applied to it.
//!
//! Invariant: an unproven delivery (observe mode) is bound for where it would go if it were proven. A large body is
//! read on a thread of its own, and by as few at a time as may judge one.

use super::journey::{Journey, Judged};
use super::receive::LARGE_BODY;
use super::route::{Target, Traits};
use super::source::{PathRule, Source, UpstreamPath, Way};
use crate::delivery::Delivery;
use crate::refusal::Refusal;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::time::Duration;

pub(super) struct Bound {
    /// Empty: for nobody.
    pub(super) targets: SmallVec<[Target; 1]>,
    pub(super) lane: Option<i64>,
}

impl Judged {
    pub(super) fn delivery(&self) -> &Delivery {
        match self {
            Self::Proven(verified) => verified.delivery(),
            Self::Unproven(delivery, _) => delivery,
        }
    }
}

impl Journey {
    pub(super) async fn bind(&self, judged: Judged) -> Result<(Judged, Bound), Refusal> {
        let (verifier, delivery) = (&self.source.settings.verifier, judged.delivery());
        let reads = !self.source.settings.routes.pointers().is_empty();
        if !reads || delivery.body.len() <= LARGE_BODY && !verifier.inflates(delivery) {
            let bound = bind(&self.source, &judged);
            return Ok((judged, bound));
        }
        let turn = self.door.large_bodies.clone().acquire_owned().await.map_err(|_| Refusal::Internal)?;
        let source = self.source.clone();
        let binding = tokio::task::spawn_blocking(move || {
            let bound = bind(&source, &judged);
            drop(turn);
            (judged, bound)
        });
        binding.await.map_err(|_| Refusal::Internal)
    }
}

fn bind(source: &Source, judged: &Judged) -> Bound {
    let (settings, delivery) = (&source.settings, judged.delivery());
    let routes = &settings.routes;
    let event: Option<Cow<'_, str>> = match judged {
        Judged::Proven(verified) => verified.event_type().map(Cow::Borrowed),
        Judged::Unproven(delivery, _) if routes.has_routes() => {
            settings.verifier.stated_event(delivery).map(Cow::Owned)
        }
        Judged::Unproven(..) => None,
    };
    let json = settings.verifier.look_up(delivery, routes.pointers());
    let traits = Traits { event: event.as_deref(), headers: &delivery.headers, json: &json };
    Bound {
        targets: routes.targets(settings.delivery, &traits).into_iter().cloned().collect(),
        lane: routes.lane(&settings.name, &traits),
    }
}

impl Bound {
    /// Every upstream's name, as the audit line has them.
    pub(super) fn names(&self) -> String {
        self.targets.iter().map(|target| &*target.upstream).collect::<Vec<_>>().join(",")
    }

    /// The longest that forwarding can take; nothing is waited for on the way into the inbox.
    pub(super) fn longest(&self, source: &Source) -> Duration {
        let proxied = self.targets.iter().filter(|_| source.settings.delivery == Way::Proxy);
        let outlets = proxied.filter_map(|target| source.outlet(&target.upstream));
        outlets.map(|outlet| outlet.destination.longest()).max().unwrap_or_default()
    }
}

impl Target {
    /// What the upstream is asked for, without the query, in which a credential may stand.
    pub(super) fn path(&self, source: &Source, delivery: &Delivery) -> String {
        match (&self.path, &source.settings.path) {
            (None, _) => delivery.path.clone(),
            (Some(UpstreamPath::Whole(path)), _) => path.clone(),
            (Some(UpstreamPath::Prefix(new)), PathRule::Prefix(old)) => {
                format!("{new}{}", delivery.path.strip_prefix(old.as_str()).unwrap_or_default())
            }
            (Some(UpstreamPath::Prefix(new)), PathRule::Exact(_)) => new.clone(),
        }
    }

    /// The query is kept.
    pub(super) fn path_and_query(&self, source: &Source, delivery: &Delivery) -> String {
        let mut path = self.path(source, delivery);
        if let Some(query) = &delivery.query {
            path.push('?');
            path.push_str(query);
        }
        path
    }
}
