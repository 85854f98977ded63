//! Notices that the API server answers.
//!
//! A watch that was interrupted and works again may have nothing to tell for hours, and the watcher keeps
//! bookmarks to itself. The status of the HTTP response is what says that the error is over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use kube::client::Body;
use kube::core::Resource as _;
use tower::{Layer, Service};

use super::trimmed::Trimmed;
use crate::hub::Hub;
use crate::object::Kind;

/// Tells the hub of each successful response.
#[derive(Clone)]
pub(super) struct Answered(pub(super) Arc<Hub>);

/// See [`Answered`].
#[derive(Clone)]
pub(super) struct AnsweredService<S> {
    inner: S,
    hub: Arc<Hub>,
}

impl<S> Layer<S> for Answered {
    type Service = AnsweredService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AnsweredService { inner, hub: self.0.clone() }
    }
}

impl<S, B> Service<http::Request<Body>> for AnsweredService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let kind = Kind::ALL.into_iter().find(|kind| Trimmed::url_path(kind, None) == path);
        let hub = self.hub.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            if let Some(kind) = kind
                && response.status().is_success()
            {
                hub.update(|update| update.watch_works(kind));
            }
            Ok(response)
        })
    }
}
