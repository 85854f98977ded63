//! Feeds the controller while this process leads, each time with a watch of its own.

use std::time::{Duration, Instant};

use common_informer::object::{Batch, Kind};
use common_informer::{CollectError, Informer, Options, Source};
use tokio::sync::{mpsc, watch};

use crate::apply::lease::Leadership;
use crate::controller::Message;

/// What is watched in a term.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The API server.
    pub source: Source,
    /// Services, and namespaces if the selectors of pools need them.
    pub kinds: Vec<Kind>,
    /// How much of each.
    pub options: Options,
    /// How long a leader may take to list them; 0 is no limit.
    pub limit: Duration,
}

/// Tells the controller of each term and of the time between, for as long as it listens. With `once`, not of
/// the time before the first term: the one sync is to be that of a leader.
///
/// # Errors
/// When the objects cannot be had. The process ends then, so that another instance can lead.
pub async fn run(
    watch: &Watch,
    mut leadership: watch::Receiver<Leadership>,
    messages: mpsc::Sender<Message>,
    once: bool,
) -> Result<(), CollectError> {
    let mut stood = false;
    loop {
        let now = leadership.borrow_and_update().clone();
        if now.leads(Instant::now()) {
            let result = lead(watch, &mut leadership, now.term, &messages).await?;
            if result == Heard::No {
                return Ok(());
            }
            stood = false;
        } else {
            if now.decided && !stood && !once {
                stood = true;
                if messages.send(Message::Stand).await.is_err() {
                    return Ok(());
                }
            }
            if leadership.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Whether the controller still listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Yes,
    No,
}

/// One term: ends when the leadership does, or another term has begun.
async fn lead(
    watch: &Watch,
    leadership: &mut watch::Receiver<Leadership>,
    term: u64,
    messages: &mpsc::Sender<Message>,
) -> Result<Heard, CollectError> {
    let mut informer = Informer::start_with(&watch.source, &watch.kinds, watch.options.clone()).await?;
    let status = informer.status();
    let feed = async {
        let mut message = Message::Lead(Some(status.clone()));
        loop {
            if messages.send(message).await.is_err() {
                return Ok(Heard::No);
            }
            let batch: Batch = informer.next().await.ok_or(CollectError::Ended)?;
            message = Message::Objects(batch);
        }
    };
    tokio::select! {
        heard = feed => heard,
        late = status.late(watch.limit) => Err(late.into()),
        () = over(leadership, term) => Ok(Heard::Yes),
    }
}

/// Returns when the term is over.
async fn over(leadership: &mut watch::Receiver<Leadership>, term: u64) {
    loop {
        let (until, same) = {
            let now = leadership.borrow_and_update();
            (now.until, now.term == term)
        };
        let Some(until) = until.filter(|until| same && Instant::now() < *until) else { return };
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            // A renewal is told before, if there is one.
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}
