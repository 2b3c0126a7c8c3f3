//!
//! Pool of connections to piece ports, kept between requests.
//!
//! Invariant: only a connection whose last answer was read to its end is kept.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http_body_util::Empty;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Duration, Instant, sleep, timeout},
};
use tracing::trace;

/// An open connection.
pub(super) struct Connection {
    pub(super) address: SocketAddr,
    pub(super) sender: SendRequest<Empty<Bytes>>,
    /// The rate that its buffers were chosen for, in bytes a second.
    rate: Option<u64>,
}

/// Idle connections by address.
#[derive(Clone)]
pub(super) struct Pool {
    idle: Arc<Mutex<HashMap<SocketAddr, Vec<Idle>>>>,
    idle_max: usize,
    idle_timeout: Duration,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// Keeps up to `idle_max` connections to each address, each for up to `idle_timeout`.
    pub(super) fn new(idle_max: usize, idle_timeout: Duration) -> Self {
        Self {
            idle: Arc::default(),
            idle_max,
            idle_timeout,
        }
    }

    /// An idle connection to one of `addresses`.
    pub(super) fn take(
        &self,
        addresses: &[SocketAddr],
        rate_of: impl Fn(SocketAddr) -> Option<u64>,
    ) -> Option<Connection> {
        let mut idle = self.idle.lock();
        addresses.iter().find_map(|&address| {
            let kept = idle.get_mut(&address)?;
            // The newest is the least likely to be closed in this moment.
            while let Some(Idle { connection, since }) = kept.pop() {
                let suits = connection.rate == rate_of(address) && since.elapsed() < self.idle_timeout;
                if suits && !connection.sender.is_closed() {
                    return Some(connection);
                }
            }
            None
        })
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        // Nodes come and go: idle connections to other nodes that are too old are dropped, too.
        idle.retain(|_, kept| {
            kept.retain(|idle| {
                now.duration_since(idle.since) < self.idle_timeout && !idle.connection.sender.is_closed()
            });
            !kept.is_empty()
        });
        let kept = idle.entry(connection.address).or_default();
        if kept.len() < self.idle_max {
            kept.push(Idle { connection, since: now });
        }
    }
}

/// Connects to the first of `addresses` that answers, each tried a little after the one before it. `None`: none has answered
/// within a second.
pub(super) async fn connect(
    addresses: &[SocketAddr],
    rate_of: impl Fn(SocketAddr) -> Option<u64>,
) -> Option<Connection> {
    let delays = (0..).map(|step| STAGGER * step);
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .zip(delays)
        .map(|(&address, delay)| {
            let rate = rate_of(address);
            async move {
                sleep(delay).await;
                connect_to(address, rate)
                    .await
                    .inspect_err(|error| trace!(peer.address = %address, "cannot connect to {address}: {error}"))
            }
        })
        .collect();
    let connected = async {
        while let Some(attempt) = attempts.next().await {
            if let Ok(connection) = attempt {
                return Some(connection);
            }
        }
        None
    };
    timeout(CONNECT_TIMEOUT, connected).await.ok().flatten()
}

async fn connect_to(address: SocketAddr, rate: Option<u64>) -> io::Result<Connection> {
    let stream = dial(address, rate).await?;
    let mut builder = http1::Builder::new();
    match rate {
        // Bytes in the kernel's buffer and in a large read are received before they are paid for: neither may be large.
        Some(_) => builder.read_buf_exact_size(Some(READ_BYTES_LIMITED)),
        None => builder.max_buf_size(READ_BYTES_UNLIMITED),
    };
    let (sender, driver) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            trace!(peer.address = %address, "the connection to {address} broke: {error}");
        }
    });
    Ok(Connection { address, sender, rate })
}

async fn dial(address: SocketAddr, rate: Option<u64>) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(rate) = rate {
        let share = u32::try_from(rate / RECEIVE_SHARE).unwrap_or(u32::MAX);
        socket.set_recv_buffer_size(share.clamp(RECEIVE_BYTES_MIN, RECEIVE_BYTES_MAX))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Longest time to connect to a source, by any of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay between two addresses of one source: a LAN's round trip many times over.
const STAGGER: Duration = Duration::from_millis(100);
const READ_BYTES_LIMITED: usize = 16 * 1024;
/// Largest read: a piece of the smallest size; hyper reaches it step by step, on connections that fill it.
const READ_BYTES_UNLIMITED: usize = 256 * 1024;
/// Part of a second's bytes that the kernel's buffer holds under a rate limit: its bytes were received before the limiter was
/// paid.
const RECEIVE_SHARE: u64 = 100;
/// Smallest receive buffer: below it a TCP connection does not flow any more.
const RECEIVE_BYTES_MIN: u32 = 32 * 1024;
/// Largest receive buffer: Linux gives no more without privileges.
const RECEIVE_BYTES_MAX: u32 = 4 * 1024 * 1024;
