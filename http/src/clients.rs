//! Port of OCI clients: plain HTTP, and TLS on the same port where the daemon has it.
//!
//! Invariant: a client that speaks TLS to a port without it gets an answer in plain HTTP. containerd tries TLS first at
//! `localhost`, and goes on without it only when the answer begins with `HTTP/`.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use piecemeal_tls::{Acceptor, Opening, SiteStream, opening};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Greet, Limits, Linger, Share, serve_http};

const LIMITS: Limits = Limits {
    port: "registry",
    // One for each of ten thousand nodes, and more for those that ask: a peer asks its mirror over several.
    connections_max: 16_384,
    share: Share::ALL,
    busy_give_way: false,
    // Longer than containerd keeps a connection that it does not use.
    idle_max: Duration::from_secs(90),
    // containerd gives a pull up that has made no progress for five minutes.
    take_max: Duration::from_secs(600),
    linger: Linger {
        quiet: Duration::from_secs(3),
        time_max: Duration::from_secs(30),
    },
    drain_max: Duration::from_secs(30),
};

const NOT_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 44\r\nConnection: close\r\n\r\n\
    this port speaks plain HTTP: use http://...\n";

/// The OCI clients of a daemon. They are drained first when it stops.
#[derive(Default)]
pub struct Clients {
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Clients {
    /// Serves `router` on every listener. `tls`: for clients that begin with a TLS handshake. `share`: of the connections, for
    /// one address.
    pub fn serve(&self, listeners: Vec<Arc<TcpListener>>, router: &Router, tls: Option<&Acceptor>, share: Share) {
        for listener in listeners {
            let reception = Reception { tls: tls.cloned() };
            let limits = Limits { share, ..LIMITS };
            let serving = serve_http(listener, reception, router.clone(), limits, self.stop.clone());
            self.tracker.spawn(serving);
        }
    }

    /// Goes on while pulls are under way, then takes no more connections and lets the open streams end: for a minute at most.
    pub async fn drain(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Tells clients with TLS from clients without.
#[derive(Clone)]
struct Reception {
    tls: Option<Acceptor>,
}

impl Greet for Reception {
    async fn greet(&self, mut stream: TcpStream) -> io::Result<Option<SiteStream>> {
        match (opening(&stream).await?, &self.tls) {
            (Opening::Plain, _) => Ok(Some(SiteStream::Plain(stream))),
            (Opening::Tls, Some(tls)) => tls.shake(stream).await.map(Some),
            (Opening::Tls, None) => {
                stream.write_all(NOT_TLS).await?;
                stream.shutdown().await?;
                Ok(None)
            }
        }
    }
}
