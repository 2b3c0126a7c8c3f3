//! Connector to the scheduler: a gRPC channel, over TLS where the URL is `https`.
//!
//! Invariant: over TLS it connects to a scheduler of this site and to no other server.

use std::io;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use piecemeal_proto::{
    AuthorityPublic,
    wire::{self, MESSAGE_BYTES_MAX, scheduler_client::SchedulerClient},
};
use piecemeal_tls::{ClientStream, Connector, ServerRole, refusal};
use tokio::{sync::mpsc, time::Duration};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tower::service_fn;

use super::{
    SessionConfig,
    end::EndConnectionError::{self, Lost, Untrusted},
    stream::Orders,
};

/// Opens a session stream at the scheduler: the sender of reports, and the orders.
pub(super) async fn connect(
    config: &SessionConfig,
) -> Result<(mpsc::Sender<wire::Reports>, Orders), EndConnectionError> {
    let lost = |error: tonic::transport::Error| {
        let refused = refusal(&error, ServerRole::Scheduler);
        refused.map_or_else(|| Lost(causes(&error)), Untrusted)
    };
    let endpoint = Endpoint::from_shared(config.scheduler.clone())
        .map_err(lost)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let channel = match endpoint.uri().scheme_str() {
        Some("https") => endpoint.connect_with_connector(service_fn(tls(config.authority))).await,
        _ => endpoint.connect().await,
    };
    let channel = channel.map_err(lost)?;
    // Reports in this channel have left the queue and can no longer be merged, so it is short.
    let (reports, outgoing) = mpsc::channel(1);
    let stream = SchedulerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .session(ReceiverStream::new(outgoing))
        .await
        .map_err(|status| Lost(status.message().to_owned()))?
        .into_inner();
    Ok((reports, Orders::new(stream)))
}

/// Connects to a scheduler of this site alone. It does not use tonic's own TLS, which cannot tell a server of another site from
/// any other failure.
fn tls(authority: AuthorityPublic) -> impl Fn(Uri) -> BoxFuture<'static, io::Result<TokioIo<ClientStream>>> + use<> {
    let connector = Connector::new(authority, ServerRole::Scheduler);
    move |uri| {
        let connector = connector.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let port = uri.port_u16().unwrap_or(HTTPS_PORT);
            connector.connect(host, port).await.map(TokioIo::new)
        })
    }
}

/// An error with its causes: tonic's own text is only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Port of an `https` URL without a port.
const HTTPS_PORT: u16 = 443;
/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of pings: below the TCP timeouts of the site's firewalls. A silence ends the session long before.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
