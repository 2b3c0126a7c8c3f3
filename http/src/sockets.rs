//! Listening sockets of a process: those that it was handed, and those that it binds.
//!
//! Invariant: a socket that was handed over listens at an address that is asked for, or is closed. A socket closes with its port.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as Handed},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::net::TcpListener;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Table>);

#[derive(Default)]
struct Table {
    was_handed: bool,
    handed: Mutex<Vec<Handed>>,
    bound: Mutex<Vec<Weak<TcpListener>>>,
}

impl Sockets {
    /// `handed`: the sockets of the process before this one. A client that has connected to one of them waits in it.
    pub fn new(handed: Vec<Handed>) -> Self {
        Self(Arc::new(Table {
            was_handed: !handed.is_empty(),
            handed: Mutex::new(handed),
            bound: Mutex::default(),
        }))
    }

    /// Whether another process has handed sockets over: it may still be closing its store.
    pub fn were_handed(&self) -> bool {
        self.0.was_handed
    }

    /// A socket that listens at `address`.
    ///
    /// # Errors
    /// It cannot be bound.
    pub async fn bind(&self, address: SocketAddr) -> io::Result<Arc<TcpListener>> {
        let listener = match self.take(address) {
            Some(handed) => {
                handed.set_nonblocking(true)?;
                TcpListener::from_std(handed)?
            }
            None => TcpListener::bind(address).await?,
        };
        let listener = Arc::new(listener);
        self.0.bound.lock().push(Arc::downgrade(&listener));
        Ok(listener)
    }

    /// Binds all of `addresses`.
    ///
    /// # Errors
    /// The first address that cannot be bound, and why.
    pub async fn bind_all(&self, addresses: &[SocketAddr]) -> Result<Vec<Arc<TcpListener>>, (SocketAddr, io::Error)> {
        let mut listeners = Vec::new();
        for &address in addresses {
            listeners.push(self.bind(address).await.map_err(|error| (address, error))?);
        }
        Ok(listeners)
    }

    /// Closes the sockets that were handed over and that no setting names any more: a client would wait in them for ever.
    pub fn close_unused(&self) {
        self.0.handed.lock().clear();
    }

    /// The sockets whose ports are open.
    pub fn open(&self) -> Vec<Arc<TcpListener>> {
        self.0.bound.lock().iter().filter_map(Weak::upgrade).collect()
    }

    fn take(&self, address: SocketAddr) -> Option<Handed> {
        let mut handed = self.0.handed.lock();
        let at = handed
            .iter()
            .position(|socket| socket.local_addr().is_ok_and(|local| local == address))?;
        Some(handed.swap_remove(at))
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sockets").field(&self.0.was_handed).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> Handed {
        Handed::bind("127.0.0.1:0").unwrap()
    }

    #[tokio::test]
    async fn a_client_of_a_socket_that_was_handed_over_is_answered_by_the_next_process() {
        let socket = listen();
        let address = socket.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let bound = Sockets::new(vec![listen(), socket]).bind(address).await.unwrap();
        let (_, remote) = bound.accept().await.unwrap();
        assert_eq!(remote, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_socket_that_no_setting_names_is_closed() {
        let (named, unnamed) = (listen(), listen());
        let addresses = [named.local_addr().unwrap(), unnamed.local_addr().unwrap()];
        let sockets = Sockets::new(vec![named, unnamed]);
        let _port = sockets.bind(addresses[0]).await.unwrap();
        sockets.close_unused();
        assert!(std::net::TcpStream::connect(addresses[0]).is_ok());
        assert!(std::net::TcpStream::connect(addresses[1]).is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_closed_is_handed_to_no_process() {
        let sockets = Sockets::default();
        let ports = sockets
            .bind_all(&["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()])
            .await;
        let mut ports = ports.unwrap();
        assert_eq!(sockets.open().len(), 2);
        ports.pop();
        assert_eq!(sockets.open().len(), 1);
        let taken = ports[0].local_addr().unwrap();
        assert_eq!(sockets.bind_all(&[taken]).await.unwrap_err().0, taken);
    }
}
