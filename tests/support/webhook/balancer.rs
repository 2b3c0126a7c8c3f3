//! One address before several replicas, as a Service is: a replica that does not accept a connection is passed over.

use std::{
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::super::kube::runtime;

/// Until the test process ends.
pub(super) fn balance(replicas: Vec<SocketAddr>) -> SocketAddr {
    let listener = runtime()
        .block_on(TcpListener::bind(("127.0.0.1", 0)))
        .expect("listening on loopback");
    let address = listener.local_addr().expect("a listener's address");
    let replicas: Arc<[SocketAddr]> = replicas.into();
    runtime().spawn(async move {
        let turn = AtomicUsize::new(0);
        while let Ok((client, _)) = listener.accept().await {
            let first = turn.fetch_add(1, Ordering::Relaxed);
            runtime().spawn(carry(client, Arc::clone(&replicas), first));
        }
    });
    address
}

async fn carry(mut client: TcpStream, replicas: Arc<[SocketAddr]>, first: usize) {
    for number in first..first + replicas.len() {
        if let Ok(mut replica) = TcpStream::connect(replicas[number % replicas.len()]).await {
            // It ends when either side hangs up.
            let _ = copy_bidirectional(&mut client, &mut replica).await;
            return;
        }
    }
}
