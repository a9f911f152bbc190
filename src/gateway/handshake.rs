//! Answering a provider's question that comes without a proof (step 5).
//!
//! Invariant: such a request ends here: it never claims, is never forwarded, and spends nothing of the source's rate. A
//! guard that can be guessed is judged for nobody who failed too often, and a secret is kept before it is acknowledged.

use super::Door;
use super::respond::{self, Reply};
use super::source::Source;
use super::visit::Visit;
use crate::client::ClientKey;
use crate::refusal::Refusal;
use crate::secret::Secret;
use crate::telemetry::Outcome;
use crate::verify::{Asked, Declined, Granted};

impl Door {
    pub(super) async fn answer_question(
        &self,
        source: &Source,
        asked: Asked,
        key: ClientKey,
        mut visit: Visit,
    ) -> Reply {
        let budgets = &source.budgets;
        if asked.is_guarded && budgets.failed_auth.is_spent(key) {
            return visit.refuse(Refusal::AuthThrottled);
        }
        let granted = match asked.answer {
            Ok(granted) => granted,
            Err(Declined { refusal, note, status }) => {
                visit.note = note;
                if budgets.failed_auth.take(key).is_err() {
                    return visit.refuse(Refusal::AuthThrottled);
                }
                return visit.refuse_as(refusal, status);
            }
        };
        let is_one_too_many = !asked.is_guarded && budgets.strangers.take(key).is_err();
        if is_one_too_many || budgets.handshakes.take().is_err() {
            return visit.refuse(Refusal::ChallengeLimited);
        }
        let Granted { reply, captured } = granted;
        if let Some(secret) = captured
            && let Err(refusal) = self.keep(source, &secret).await
        {
            return visit.refuse(refusal);
        }
        let reply = respond::challenge(&reply, &visit.request_id);
        visit.record(Outcome::Challenge, reply.status);
        reply
    }

    /// A secret that was brought to another gateway.
    pub(super) fn take_what_others_captured(&self, source: &Source) {
        let (verifier, name) = (&source.settings.verifier, &source.settings.name);
        let Some(awaited) =
            source.settings.awaits.as_ref().filter(|_| self.state.is_shared() && verifier.is_awaiting())
        else {
            return;
        };
        if let Ok(Some(secret)) = self.state.captured(name, awaited)
            && verifier.install(&secret).is_ok()
        {
            tracing::info!(source = &**name, awaited, "the secret that was awaited has come to another gateway");
        }
    }

    /// Of several that come at once the store lets one be first.
    async fn keep(&self, source: &Source, secret: &Secret) -> Result<(), Refusal> {
        let name: &str = &source.settings.name;
        let Some(awaited) = &source.settings.awaits else { return Err(Refusal::NotAwaited) };
        match self.state.capture(name, awaited, secret).await {
            Ok(true) => {}
            Ok(false) => return Err(Refusal::NotAwaited),
            Err(error) => {
                tracing::error!(source = name, %error, "a secret that the sender brought could not be kept");
                return Err(Refusal::StateError);
            }
        }
        source.settings.verifier.install(secret).map_err(|_| Refusal::Internal)?;
        // A reload may have made another verifier while the store was asked.
        for current in self.snapshot().sources.all().iter().filter(|other| *other.settings.name == *name) {
            current.settings.verifier.install(secret).map_err(|_| Refusal::Internal)?;
        }
        let shown = source.settings.shows_captured;
        tracing::info!(
            source = name,
            awaited,
            "the secret that was awaited has come and is kept{}",
            if shown { "; see it at the admin port's /captured" } else { "" }
        );
        Ok(())
    }
}
