//! The two ways in which programs take what an informer gives: all of it for as long as they run, or once.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;

use crate::informer::{Informer, Options, Source, StartError};
use crate::object::{Batch, Kind};
use crate::status::SyncTimeout;

/// Why there are not all objects.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The informer cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Not all was there in time.
    #[error(transparent)]
    Late(#[from] SyncTimeout),
    /// The source ended.
    #[error("the source of objects ended")]
    Ended,
}

impl Informer {
    /// The changes as a stream.
    pub fn into_stream(self) -> Pin<Box<dyn Stream<Item = Batch> + Send>> {
        Box::pin(futures::stream::unfold(self, async |mut informer| {
            informer.next().await.map(|batch| (batch, informer))
        }))
    }

    /// All objects that there are now, for programs that only look. `limit` 0 is no limit.
    ///
    /// # Errors
    /// [`CollectError`]
    pub async fn collect(
        source: &Source,
        kinds: &[Kind],
        options: Options,
        limit: Duration,
    ) -> Result<Vec<Batch>, CollectError> {
        let mut informer = Self::start_with(source, kinds, options).await?;
        let status = informer.status();
        let all = async {
            let mut batches = Vec::new();
            while !batches.last().is_some_and(|batch: &Batch| batch.synced) {
                batches.push(informer.next().await.ok_or(CollectError::Ended)?);
            }
            Ok(batches)
        };
        tokio::select! {
            batches = all => batches,
            late = status.late(limit) => Err(late.into()),
        }
    }
}
