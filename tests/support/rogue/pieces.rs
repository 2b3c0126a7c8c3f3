//! A rogue's piece port: it answers every request for pieces as it was told to, and asks for no ticket.

use std::{
    io::{self, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{super::http::read_head, rest};

/// The byte that all of its pieces are made of.
pub(super) const FILLER: u8 = 0x41;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    /// Whole pieces of [`FILLER`].
    WrongBytes,
    /// The same, a byte at a time.
    Dribble,
    /// It accepts the connection and says nothing.
    Silence,
    /// It never stops sending.
    Endless,
    /// A head that never ends.
    EndlessHead,
    NotFound,
    Reset,
}

/// How the blob that it is asked for is cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    pub(super) blob_bytes: u64,
    pub(super) piece_bytes: u64,
}

#[derive(Debug)]
pub(super) struct PieceServer {
    listener: TcpListener,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    pub(super) asked: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl PieceServer {
    /// `listener` listens already, in the rogue's namespace.
    pub(super) fn start(listener: TcpListener, serving: Serving, cut: Arc<Mutex<Cut>>) -> Self {
        let server = Self {
            listener: listener.try_clone().expect("sharing the listener"),
            connections: Arc::default(),
            asked: Arc::default(),
            stopped: Arc::default(),
        };
        let (connections, asked, stopped) = (
            Arc::clone(&server.connections),
            Arc::clone(&server.asked),
            Arc::clone(&server.stopped),
        );
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (cut, asked, stopped) = (Arc::clone(&cut), Arc::clone(&asked), Arc::clone(&stopped));
                if let Ok(shared) = stream.try_clone() {
                    connections.lock().expect("no holder panics").push(shared);
                }
                // A receiver that has had enough closes the connection.
                thread::spawn(move || answer(&stream, serving, &cut, &asked, &stopped).unwrap_or_default());
            }
        });
        server
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a listener has an address")
    }
}

impl Drop for PieceServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for connection in self.connections.lock().expect("no holder panics").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn answer(
    stream: &TcpStream,
    serving: Serving,
    cut: &Mutex<Cut>,
    asked: &AtomicUsize,
    stopped: &AtomicBool,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((request_line, _)) = read_head(&mut reader)? {
        asked.fetch_add(1, Ordering::Relaxed);
        let cut = *cut.lock().expect("no holder panics");
        let (fill, length) = body_of(&request_line, cut).ok_or(io::ErrorKind::InvalidInput)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\
             piecemeal-fill: {fill}\r\npiecemeal-piece-bytes: {}\r\n\r\n",
            cut.piece_bytes
        );
        let mut writer = stream;
        let body = vec![FILLER; usize::try_from(length).expect("a piece fits into memory")];
        match serving {
            Serving::WrongBytes => writer.write_all(&[head.as_bytes(), &body].concat())?,
            Serving::Dribble => {
                writer.write_all(head.as_bytes())?;
                while rest(stopped, Duration::from_millis(800)) {
                    writer.write_all(&[FILLER])?;
                }
            }
            Serving::Silence => while rest(stopped, Duration::from_secs(1)) {},
            Serving::Endless => {
                writer.write_all(head.as_bytes())?;
                while !stopped.load(Ordering::Relaxed) {
                    writer.write_all(&[FILLER; 16 * 1024])?;
                }
            }
            Serving::EndlessHead => {
                writer.write_all(b"HTTP/1.1 200 OK\r\n")?;
                while !stopped.load(Ordering::Relaxed) {
                    writer.write_all(format!("X-A: {}\r\n", "b".repeat(4000)).as_bytes())?;
                }
            }
            Serving::NotFound => writer.write_all(b"HTTP/1.1 404 Told\r\nContent-Length: 0\r\n\r\n")?,
            Serving::Reset => return stream.shutdown(Shutdown::Both),
        }
    }
    Ok(())
}

/// The fill that is asked for, and how many bytes its pieces have: `GET /piece/v1/{digest}/{fill}/{first}-{last}`.
fn body_of(request_line: &str, cut: Cut) -> Option<(&str, u64)> {
    let mut path = request_line.split(' ').nth(1)?.split('/').skip(4);
    let fill = path.next()?;
    let (first, last) = path.next()?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let end = cut.blob_bytes.min((last + 1) * cut.piece_bytes);
    Some((fill, end.saturating_sub(first * cut.piece_bytes)))
}
