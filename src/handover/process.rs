//! Handover between two processes that share a cache folder: the one that drains offers its listening sockets in it.
//!
//! Invariant: only a process that was told to stop offers sockets, and only to a process of its own user.

use std::{
    fs, io,
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use piecemeal_http::Sockets;
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::descriptors::{receive, send};

/// The sockets of a process that drains and has `dir`; none where there is no such process.
pub(crate) fn ask(dir: &Path) -> Vec<TcpListener> {
    match try_ask(&dir.join(NAME)) {
        Ok(sockets) => sockets,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Vec::new(),
        Err(error) => {
            warn!(%error, "the sockets that a process offers in {} cannot be taken: {error}", dir.display());
            Vec::new()
        }
    }
}

fn try_ask(path: &Path) -> io::Result<Vec<TcpListener>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    check_user(&stream)?;
    let sockets = receive(&stream)?.into_iter().map(TcpListener::from).collect();
    Ok(sockets)
}

/// Offer of a process that drains. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Offer {
    path: PathBuf,
    offering: JoinHandle<()>,
}

impl Offer {
    /// Offers the open ones of `sockets` in `dir`. `None`: the system refuses; a process that starts meanwhile finds the ports in use.
    pub(crate) fn start(dir: &Path, sockets: Sockets) -> Option<Self> {
        let path = dir.join(NAME);
        // A process that was killed leaves its own.
        let _ = fs::remove_file(&path);
        let opened = UnixListener::bind(&path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        });
        let listener = opened
            .inspect_err(|error| debug!(%error, "no socket is offered in {}: {error}", dir.display()))
            .ok()?;
        let offering = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match stream.into_std().and_then(|stream| hand_over(&stream, &sockets)) {
                    Ok(count) => info!("handed {count} sockets over to the next process"),
                    Err(error) => warn!(%error, "no socket was handed over: {error}"),
                }
            }
        });
        Some(Self { path, offering })
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.offering.abort();
        let _ = fs::remove_file(&self.path);
    }
}

fn hand_over(to: &UnixStream, sockets: &Sockets) -> io::Result<usize> {
    check_user(to)?;
    let open = sockets.open();
    let descriptors: Vec<_> = open.iter().map(|socket| socket.as_fd()).collect();
    send(to, b"sockets", &descriptors)?;
    Ok(descriptors.len())
}

/// A socket in the hands of two users would give each the other's clients.
fn check_user(stream: &UnixStream) -> io::Result<()> {
    let other = socket_peercred(stream)?.uid;
    if other == geteuid() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the process at the other end is of user {}, and this one of user {}",
        other.as_raw(),
        geteuid().as_raw()
    )))
}

/// The socket's name in the cache folder.
const NAME: &str = "handover";
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::net;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_drains_hands_its_open_sockets_over() {
        let dir = tempfile::tempdir().unwrap();
        let before = Sockets::default();
        let port = before.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let closed = before.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        drop(closed);
        let address = port.local_addr().unwrap();
        let asked = |dir: PathBuf| tokio::task::spawn_blocking(move || ask(&dir));
        assert!(
            asked(dir.path().to_owned()).await.unwrap().is_empty(),
            "nothing is offered yet"
        );

        let offer = Offer::start(dir.path(), before.clone()).unwrap();
        let taken = asked(dir.path().to_owned()).await.unwrap();
        assert_eq!(taken.len(), 1);
        drop(port);
        drop(offer);
        // The first process has closed it, and the second does not accept yet.
        let client = net::TcpStream::connect(address).unwrap();
        let after = Sockets::new(taken).bind(address).await.unwrap();
        assert_eq!(after.accept().await.unwrap().1, client.local_addr().unwrap());
        assert!(
            asked(dir.path().to_owned()).await.unwrap().is_empty(),
            "the offer has ended"
        );
    }

    #[test]
    fn what_a_killed_process_left_in_the_folder_is_no_offer() {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join(NAME)).unwrap());
        assert!(ask(dir.path()).is_empty());
        assert!(ask(Path::new("/nonexistent")).is_empty());
    }
}
