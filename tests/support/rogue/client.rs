//! A rogue client: a machine on the LAN without any key, that asks every port of the site for what is not its own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    super::{http::Request, netns::Netns},
    Crew, Dice, rest,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientHarm {
    /// It holds hundreds of connections on every port, and says nothing on them.
    HoldsConnections,
    /// It shows a credential of 9 KB for the blobs and tags of others.
    ShowsHugeCredentials,
    /// It shows a password that is wrong for the blobs and tags of others.
    ShowsWrongPasswords,
    /// It asks for blobs and leaves after the first bytes.
    Leaves,
    /// It asks for what the rogue registry has.
    EnticesToRogue,
    /// It shows tickets and grants of its own making.
    Forges,
    /// It sends requests that are none.
    Babbles,
}

impl ClientHarm {
    pub const ALL: [Self; 7] = [
        Self::HoldsConnections,
        Self::ShowsHugeCredentials,
        Self::ShowsWrongPasswords,
        Self::Leaves,
        Self::EnticesToRogue,
        Self::Forges,
        Self::Babbles,
    ];
}

/// The ports that it can reach, and the content that it wants.
#[derive(Clone, Debug)]
pub struct Haunt {
    /// Registry ports.
    pub registries: Vec<SocketAddr>,
    /// Every other port: pieces, scheduler, admin.
    pub ports: Vec<SocketAddr>,
    /// Paths of the images that honest nodes pull meanwhile.
    pub shared: Vec<String>,
    /// Paths of what is private, and not its own.
    pub private: Vec<String>,
    /// Paths at the rogue registry.
    pub rogue: Vec<String>,
    /// Digests that piece ports have.
    pub digests: Vec<String>,
}

/// A running rogue client.
#[derive(Debug)]
pub struct RogueClient {
    _crew: Crew,
    loot: Arc<Mutex<Vec<Vec<u8>>>>,
    requests: Arc<AtomicUsize>,
}

impl RogueClient {
    pub fn start(netns: &Netns, harm: ClientHarm, seed: u64, haunt: &Haunt) -> Self {
        let mut crew = Crew::default();
        let (loot, requests) = (Arc::default(), Arc::default());
        for thread in 0..THREADS {
            let mut visit = Visit {
                harm,
                dice: Dice::new(seed ^ (thread << 32)),
                haunt: haunt.clone(),
                loot: Arc::clone(&loot),
                requests: Arc::clone(&requests),
                held: Vec::new(),
            };
            let netns = netns.clone();
            crew.hire(move |stopped| {
                netns.enter(|| {
                    while rest(&stopped, PAUSE) {
                        visit.harm(&stopped);
                        visit.seek();
                    }
                });
            });
        }
        Self {
            _crew: crew,
            loot,
            requests,
        }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Every body that it was answered with when it asked for what is private.
    pub fn loot(&self) -> Vec<Vec<u8>> {
        self.loot.lock().expect("no holder panics").clone()
    }
}

struct Visit {
    harm: ClientHarm,
    dice: Dice,
    haunt: Haunt,
    loot: Arc<Mutex<Vec<Vec<u8>>>>,
    requests: Arc<AtomicUsize>,
    held: Vec<TcpStream>,
}

impl Visit {
    fn harm(&mut self, stopped: &AtomicBool) {
        match self.harm {
            ClientHarm::HoldsConnections => self.hold(),
            ClientHarm::ShowsHugeCredentials => self.show(&format!("Bearer {}", "a".repeat(9 * 1024))),
            ClientHarm::ShowsWrongPasswords => self.show("Basic bWFsbG9yeTpndWVzcw=="),
            ClientHarm::Leaves => self.leave(),
            ClientHarm::EnticesToRogue => {
                let path = self.dice.pick(&self.haunt.rogue).clone();
                self.ask(&path, &[], Duration::from_secs(2));
            }
            ClientHarm::Forges => self.forge(),
            ClientHarm::Babbles => self.babble(stopped),
        }
    }

    /// Asks for what is private, without a right to it.
    fn seek(&mut self) {
        if self.haunt.private.is_empty() {
            return;
        }
        let path = self.dice.pick(&self.haunt.private).clone();
        let credentials: [&[(&str, &str)]; 3] = [
            &[],
            &[("Authorization", "Bearer guess")],
            &[
                ("piecemeal-node", "00000000000000000000000000000001"),
                ("piecemeal-proof", "AAAA"),
            ],
        ];
        let headers = *self.dice.pick(&credentials);
        if let Some(body) = self.ask(&path, headers, Duration::from_secs(3)) {
            self.loot.lock().expect("no holder panics").push(body);
        }
    }

    fn ask(&mut self, path: &str, headers: &[(&str, &str)], patience: Duration) -> Option<Vec<u8>> {
        let registry = *self.dice.pick(&self.haunt.registries);
        let request = Request::get(registry, path).patience(patience);
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, value));
        self.requests.fetch_add(1, Ordering::Relaxed);
        request.send().ok().map(|answer| answer.body)
    }

    fn hold(&mut self) {
        let ports: Vec<SocketAddr> = self.haunt.registries.iter().chain(&self.haunt.ports).copied().collect();
        for _ in 0..20 {
            let port = *self.dice.pick(&ports);
            if self.held.len() < HELD_MAX
                && let Ok(connection) = TcpStream::connect_timeout(&port, Duration::from_millis(500))
            {
                self.held.push(connection);
            }
        }
    }

    fn show(&mut self, credential: &str) {
        let path = self.dice.pick(&self.haunt.shared).clone();
        self.ask(&path, &[("Authorization", credential)], Duration::from_secs(3));
    }

    fn leave(&mut self) {
        let path = self.dice.pick(&self.haunt.shared).clone();
        let registry = *self.dice.pick(&self.haunt.registries);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let Ok(mut stream) = TcpStream::connect_timeout(&registry, Duration::from_secs(1)) else {
            return;
        };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let _ = stream.read(&mut [0; 100]);
    }

    fn forge(&mut self) {
        let digest = self.dice.pick(&self.haunt.digests).clone();
        let port = *self.dice.pick(&self.haunt.ports);
        let token: String = (0..200)
            .map(|_| char::from(*self.dice.pick(b"ABCDEFabcdef0123")))
            .collect();
        let request = Request::get(port, &format!("/piece/v1/{digest}/{:016x}/0-0", self.dice.next()))
            .header("Authorization", &format!("Piecemeal {token}"))
            .patience(Duration::from_secs(1));
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Ok(answer) = request.send() {
            self.loot.lock().expect("no holder panics").push(answer.body);
        }
    }

    fn babble(&mut self, stopped: &AtomicBool) {
        let ports: Vec<SocketAddr> = self.haunt.registries.iter().chain(&self.haunt.ports).copied().collect();
        let port = *self.dice.pick(&ports);
        let odd: [&[u8]; 7] = [
            b"GET /v2/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v2/a/blobs/sha256:%2e%2e%2f?ns=..%2f HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            b"GET /v2/ HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"DELETE /cache/blobs HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ];
        let bytes = *self.dice.pick(&odd);
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut stream) = TcpStream::connect_timeout(&port, Duration::from_secs(1)) {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.write_all(bytes);
            let _ = stream.read(&mut [0; 1000]);
        }
        rest(stopped, PAUSE);
    }
}

/// A pause between its acts: the test's own machine has two cores.
const PAUSE: Duration = Duration::from_millis(100);
const THREADS: u64 = 3;
/// A thread's.
const HELD_MAX: usize = 400;
