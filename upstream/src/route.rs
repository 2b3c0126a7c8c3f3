//! Route: the HTTP clients for one kind of host, of which one keeps its connections and the other makes a new one for each request.
//!
//! Invariant: a request goes out a second time at most, over a new connection, and only while the first, over a connection that had been
//! idle, has brought no status line. NATs and load balancers forget idle connections: what fails on one says nothing about the host.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response};
use tower::{Layer, Service};

/// The wait for a status line on a connection that had been idle, after which the request goes out on a new one beside it. A client
/// waits twice as long for its own.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// The longest such wait while bodies bring bytes: they fill the link, and answers come late.
pub(crate) const PATIENCE_BUSY: Duration = Duration::from_secs(4);
/// The same for a probe, which has to tell a lost host from a lost connection.
pub const PATIENCE_PROBE: Duration = Duration::from_millis(500);

/// The interval at which a wait checks whether downloads still bring bytes.
const LOOK_AROUND: Duration = Duration::from_millis(250);

/// Ends after `usual`, when an answer is too late. While downloads fill the link it may be late, for up to `busy`: the link is not gone.
pub(crate) async fn patience(usual: Duration, busy: Duration, is_receiving: impl Fn() -> bool) {
    let sent = tokio::time::Instant::now();
    tokio::time::sleep(usual).await;
    while sent.elapsed() < busy && is_receiving() {
        tokio::time::sleep(LOOK_AROUND).await;
    }
}

/// The clients. Cheap to clone.
#[derive(Clone)]
pub struct Route {
    keeping: Client,
    fresh: Client,
}

impl Route {
    /// `builder`: of both clients.
    ///
    /// # Errors
    /// As reqwest's.
    pub(crate) fn new(builder: impl Fn() -> ClientBuilder) -> reqwest::Result<Self> {
        Ok(Self {
            keeping: builder().connector_layer(NoteConnections).build()?,
            fresh: builder()
                .connector_layer(NoteConnections)
                .pool_max_idle_per_host(0)
                .build()?,
        })
    }

    /// The same route for requests that may not be repeated: each has a new connection at once.
    pub(crate) fn fresh_alone(&self) -> Self {
        Self {
            keeping: self.fresh.clone(),
            fresh: self.fresh.clone(),
        }
    }

    /// Sends what `request` makes and waits for the status line. `patience`: ends when the silence of a connection that had been idle has
    /// lasted for too long.
    ///
    /// The request has to be one that may be repeated. It is made again for the second time: a signature counts once.
    ///
    /// # Errors
    /// As reqwest's, of the last connection that was tried.
    pub async fn send(
        &self,
        patience: impl Future<Output = ()>,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> reqwest::Result<Response> {
        let connection = Arc::new(Connection::default());
        let mut first = pin!(CONNECTION.scope(Arc::clone(&connection), request(&self.keeping).send()));
        let answer = tokio::select! {
            biased;
            answer = &mut first => Some(answer),
            () = patience => None,
        };
        match answer {
            Some(Err(error)) if connection.was_used() && is_lost(&error) => request(&self.fresh).send().await,
            Some(answer) => answer,
            None if !connection.was_idle() => first.await,
            None => {
                let mut second = pin!(request(&self.fresh).send());
                tokio::select! {
                    answer = &mut first => if answer.is_ok() { answer } else { second.await },
                    answer = &mut second => if answer.is_ok() { answer } else { first.await },
                }
            }
        }
    }
}

/// Whether a request failed after it went out, and not for a reason that it would fail for again.
fn is_lost(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

tokio::task_local! {
    /// The connection of the request that this task sends.
    static CONNECTION: Arc<Connection>;
}

/// Origin of a request's connection.
#[derive(Debug, Default)]
struct Connection {
    /// The pool had no idle one, so that a new one was begun.
    begun: AtomicBool,
    /// That one was made, and is the request's. Otherwise another request has given its own back in the meantime.
    made: AtomicBool,
}

impl Connection {
    fn was_idle(&self) -> bool {
        !self.begun.load(Ordering::Relaxed)
    }

    fn was_used(&self) -> bool {
        !self.made.load(Ordering::Relaxed)
    }
}

/// Makes a client note the connections that it begins for the request of the same task. A connection that is no longer waited for ends in
/// a task of its own, where there is no request.
#[derive(Clone)]
struct NoteConnections;

#[derive(Clone)]
struct Noting<S>(S);

impl<S> Layer<S> for NoteConnections {
    type Service = Noting<S>;

    fn layer(&self, connector: S) -> Noting<S> {
        Noting(connector)
    }
}

impl<S, R> Service<R> for Noting<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        note(|connection| &connection.begun);
        let made = self.0.call(target);
        Box::pin(async move {
            let made = made.await;
            if made.is_ok() {
                note(|connection| &connection.made);
            }
            made
        })
    }
}

/// Outside of [`Route::send`] there is nothing to note.
fn note(what: fn(&Connection) -> &AtomicBool) {
    let _ = CONNECTION.try_with(|connection| what(connection).store(true, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ANSWER_TIMEOUT, SOURCE_TIMEOUT};

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_late_only_while_downloads_bring_bytes() {
        let took = async |bytes_until: Duration| {
            let sent = tokio::time::Instant::now();
            patience(ANSWER_TIMEOUT, SOURCE_TIMEOUT, || sent.elapsed() < bytes_until).await;
            sent.elapsed()
        };
        assert_eq!(took(Duration::ZERO).await, ANSWER_TIMEOUT);
        let until = ANSWER_TIMEOUT + LOOK_AROUND * 2;
        assert_eq!(took(until).await, until);
        assert_eq!(took(SOURCE_TIMEOUT * 9).await, SOURCE_TIMEOUT, "not for ever");
    }

    #[tokio::test]
    async fn a_connection_that_was_made_for_a_request_is_told_from_one_that_was_idle_or_another_requests() {
        let connect = async |fails: bool| {
            let connector = tower::service_fn(move |()| async move { if fails { Err(()) } else { Ok(()) } });
            let _ = NoteConnections.layer(connector).call(()).await;
        };
        let noted = async |what: BoxFuture<'static, ()>| {
            let connection = Arc::new(Connection::default());
            CONNECTION.scope(Arc::clone(&connection), what).await;
            (connection.was_idle(), connection.was_used())
        };
        assert_eq!(noted(Box::pin(async {})).await, (true, true), "an idle one");
        assert_eq!(noted(Box::pin(connect(false))).await, (false, false), "its own");
        assert_eq!(noted(Box::pin(connect(true))).await, (false, true), "none came about");
        let elsewhere = async move { tokio::spawn(connect(false)).await.unwrap() };
        assert_eq!(noted(Box::pin(elsewhere)).await, (true, true), "another task's");
    }
}
