//! The Lease: takes part in the election for as long as it is run, and tells who leads.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;

use super::WriteError;
use crate::plan::election::{Attempt, Election, Record, Timing};

/// Whether this process leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The Lease has been read once.
    pub decided: bool,
    /// Until when it leads, unless it renews before.
    pub until: Option<Instant>,
    /// Counts the times that it began to lead.
    pub term: u64,
    /// Who held the Lease when it was last seen.
    pub holder: Option<String>,
    /// Why the Lease could not be read or written last time.
    pub error: Option<String>,
}

impl Leadership {
    /// Whether it leads at `now`.
    pub fn leads(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    election: Election,
    told: watch::Sender<Leadership>,
}

impl Elector {
    /// A candidate for the Lease `name` in `namespace`.
    pub fn new(client: kube::Client, namespace: &str, name: &str, identity: String, timing: Timing) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            election: Election::new(identity, timing),
            told: watch::Sender::default(),
        }
    }

    /// Where it tells who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.told.subscribe()
    }

    /// Takes and renews the Lease, and goes on after it was lost. Ends when `stop` does; a Lease that is held
    /// then is given back, so that the next one leads at once.
    ///
    /// ORDER: `stop` must end after the last write.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = self.round() => {}
            }
        }
        if self.election.leads_until(Instant::now()).is_some() {
            let timeout = self.election.timing().write_timeout();
            match tokio::time::timeout(timeout, self.release()).await {
                Ok(Ok(())) => tracing::info!("the lease was given back"),
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back"),
                Err(_) => tracing::warn!("the lease was not given back in time"),
            }
        }
    }

    /// One attempt, and the time until the next.
    async fn round(&mut self) {
        let timing = self.election.timing();
        // Two attempts must fit into the deadline.
        let limit = timing.renew_deadline / 2;
        let result = match tokio::time::timeout(limit, self.attempt()).await {
            Ok(result) => result,
            Err(_) => Err(WriteError::Unavailable(format!("no answer within {limit:?}"))),
        };
        self.tell(result.err());
        // The end of the deadline is told in time, not at the next attempt.
        let next = Instant::now() + jittered(timing.retry_period);
        if let Some(until) = self.election.leads_until(Instant::now()).filter(|until| *until < next) {
            tokio::time::sleep_until(until.into()).await;
            self.tell(None);
        }
        tokio::time::sleep_until(next.into()).await;
    }

    async fn attempt(&mut self) -> Result<(), WriteError> {
        let found = self.api.get_opt(&self.name).await?;
        let asked_at = Instant::now();
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let attempt = self.election.look(found.as_ref().map(|_| record(spec)), asked_at);
        if self.election.leads_until(asked_at).is_none() {
            // Told before the Lease is taken anew: another may have led meanwhile, so this is a new term.
            self.tell(None);
        }
        let post = PostParams::default();
        match attempt {
            Attempt::Wait => return Ok(()),
            Attempt::Create => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None, true)) };
                self.api.create(&post, &lease).await.map_err(|error| match WriteError::from(error) {
                    WriteError::Gone => WriteError::Refused("there is no such namespace".to_owned()),
                    error => error,
                })?;
            }
            Attempt::Renew | Attempt::Take => {
                // With the version that was read: another candidate's write in between is a conflict.
                let spec = self.spec(spec, attempt == Attempt::Take);
                let lease = Lease { spec: Some(spec), ..found.unwrap_or_default() };
                self.api.replace(&self.name, &post, &lease).await?;
            }
        }
        self.election.renewed(asked_at);
        Ok(())
    }

    async fn release(&mut self) -> Result<(), WriteError> {
        let Some(lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(self.election.identity()) {
            return Ok(());
        }
        let now = MicroTime(Timestamp::now());
        // As client-go's ReleaseOnCancel writes it.
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(now.clone()),
            acquire_time: Some(now),
            ..spec
        };
        let lease = Lease { spec: Some(spec), ..lease };
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        self.election.released();
        self.tell(None);
        Ok(())
    }

    /// The Lease in our name.
    fn spec(&self, found: Option<&LeaseSpec>, taken: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let found = found.cloned().unwrap_or_default();
        let seconds = self.election.timing().lease_duration.as_secs();
        let transitions = found.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.election.identity().to_owned()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: if taken { Some(now.clone()) } else { found.acquire_time },
            lease_transitions: Some(if taken { transitions.saturating_add(1) } else { transitions }),
            renew_time: Some(now),
            ..found
        }
    }

    fn tell(&self, error: Option<WriteError>) {
        let now = Instant::now();
        let until = self.election.leads_until(now);
        let before = self.told.borrow().clone();
        let began = until.is_some() && before.until.is_none();
        if began {
            tracing::info!(identity = self.election.identity(), "this process leads");
        } else if until.is_none() && before.until.is_some() {
            tracing::warn!(holder = self.election.holder(), "this process no longer leads");
        }
        if let Some(error) = error.as_ref().filter(|error| !matches!(error, WriteError::Conflict(_))) {
            tracing::warn!(lease = self.name, %error, "the lease cannot be read or written");
        }
        let holder = if until.is_some() { Some(self.election.identity()) } else { self.election.holder() };
        self.told.send_replace(Leadership {
            decided: before.decided || error.is_none() || until.is_some(),
            until,
            term: before.term + u64::from(began),
            holder: holder.map(str::to_owned),
            error: error.map(|error| error.to_string()),
        });
    }
}

fn record(spec: Option<&LeaseSpec>) -> Record {
    let spec = spec.cloned().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(
            spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
        ),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

/// The period and up to a fifth more, so that candidates do not keep meeting.
fn jittered(period: Duration) -> Duration {
    period.mul_f64(1.0 + random_fraction() / 5.0)
}

/// From 0 to 1. The keys of a new hasher are random.
fn random_fraction() -> f64 {
    f64::from(u32::try_from(random() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// A random number, good enough to tell processes apart.
pub fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}
