//! Service manager's store of file descriptors: systemd keeps the listening sockets of a unit while it restarts.
//!
//! Invariant: the store has sockets only from the beginning of a drain until the next process starts, or finds that it cannot
//! start. At any other time a daemon that dies takes its ports with it, so that clients go to their next host at once.
//! (sd_notify(3), `FDSTORE=1`; sd_listen_fds(3).)

use std::{
    env, io,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::Arc,
};

use listenfd::ListenFd;
use tracing::{debug, warn};

use super::descriptors::send;

/// The sockets that the process before left. Must be called before the process has a second thread, since it changes the environment.
pub(crate) fn take() -> Vec<TcpListener> {
    let mut left = ListenFd::from_env();
    if left.len() == 0 {
        return Vec::new();
    }
    forget();
    (0..left.len())
        .filter_map(|at| left.take_tcp_listener(at).ok().flatten())
        .collect()
}

/// Leaves `sockets` to the next process; without a service manager it does nothing.
pub(crate) fn keep(sockets: &[Arc<tokio::net::TcpListener>]) {
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
    match tell(&format!("FDSTORE=1\nFDNAME={NAME}"), &sockets) {
        Ok(()) => debug!(
            "the service manager was told to keep {} sockets over a restart",
            sockets.len()
        ),
        Err(error) => warn!(%error, "the service manager keeps no socket over a restart: {error}"),
    }
}

/// Drops what was left: no process takes it.
pub(crate) fn forget() {
    // Without a service manager there is nothing to drop.
    let _ = tell(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[]);
}

fn tell(text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
        return Ok(());
    };
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    let manager = UnixDatagram::unbound()?;
    manager.connect_addr(&address)?;
    send(&manager, text.as_bytes(), descriptors)
}

/// The name of the sockets in the store.
const NAME: &str = "piecemeal";
