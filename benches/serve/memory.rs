//! Memory of a mirror with many slow clients, and of idle daemons.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use piecemeal_proto::JoinKey;
use piecemeal_tls::{ServerRole, client_config};
use rustls::{ClientConnection, StreamOwned};

use crate::{
    client::{PATIENCE, read_head, request},
    meter::{cpu_seconds, forget_peak_memory, memory_mib},
    stand::{Server, Stand, peer_server},
    table::{Table, at_most},
};

/// Clients that read slower than the mirror could send, each from its own place in time.
pub(crate) fn slow_clients(stand: &mut Stand) {
    println!("### Slow clients\n");
    println!(
        "{CLIENTS} clients of the same cached blob of 1 GiB, each reading 1 MB a second for {SECONDS} s; a mirror that has just \
         started.\n"
    );
    let mut table = Table::new([
        "port",
        "peak VmRSS, MiB",
        "aim",
        "peak of what is no file, MiB",
        "CPU s/GB",
    ]);
    for (name, tls) in [("plain", false), ("TLS", true)] {
        eprintln!("slow clients: {name}");
        stand.check_time();
        let target = stand.big().layer(0);
        stand.restart_mirror();
        let mirror = stand.mirror();
        let pid = mirror.pids[0];
        let config = tls.then(|| Arc::new(site_config(stand)));
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| Client::connect(&mirror, config.as_ref(), &target))
            .collect();
        let (cpu, started) = (cpu_seconds(&mirror.pids), Instant::now());
        let (mut anonymous, mut bytes) = (0.0, 0.0);
        for tick in 1..=SECONDS * TICKS {
            for client in &mut clients {
                client.read(TICK_BYTES);
                bytes += TICK_BYTES as f64;
            }
            anonymous = memory_mib(pid, "RssAnon").max(anonymous);
            let due = started + Duration::from_millis(1000 * tick / TICKS);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let late = started.elapsed().as_secs_f64() / SECONDS as f64;
        assert!(
            late < 1.2,
            "the clients were no slow ones: they could not read 1 MB a second"
        );
        let peak = memory_mib(pid, "VmHWM");
        table.row([
            name.to_owned(),
            format!("{peak:.1}"),
            at_most(64.0, peak, " MiB"),
            format!("{anonymous:.1}"),
            format!("{:.3}", (cpu_seconds(&mirror.pids) - cpu) / (bytes / 1e9)),
        ]);
    }
    table.print();
}

/// Trusts the site's mirror, as its peers do.
fn site_config(stand: &Stand) -> rustls::ClientConfig {
    let key = fs::read_to_string(stand.keys().join()).expect("reading join.key");
    let key: JoinKey = key.parse().expect("keygen writes keys");
    client_config(key.authority(), ServerRole::Mirror)
}

/// A client that reads when it is told to.
struct Client {
    stream: Box<dyn Read>,
}

impl Client {
    fn connect(mirror: &Server, tls: Option<&Arc<rustls::ClientConfig>>, target: &str) -> Self {
        let stream = mirror.netns.enter(|| TcpStream::connect(mirror.address));
        let mut stream = stream.expect("connecting to the mirror");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("setting up a connection");
        let request = request(target, mirror.address);
        let mut stream: Box<dyn Read> = match tls {
            None => {
                stream.write_all(request.as_bytes()).expect("asking the mirror");
                Box::new(stream)
            }
            Some(config) => {
                let name = MIRROR_NAME.try_into().expect("a DNS name");
                let session = ClientConnection::new(Arc::clone(config), name).expect("beginning a handshake");
                let mut stream = StreamOwned::new(session, stream);
                stream.write_all(request.as_bytes()).expect("asking the mirror");
                Box::new(stream)
            }
        };
        read_head(&mut stream, &mut [0; 4096]).expect("an answer of the mirror");
        Self { stream }
    }

    fn read(&mut self, bytes: usize) {
        let mut buffer = [0; TICK_BYTES];
        self.stream.read_exact(&mut buffer[..bytes]).expect("the blob goes on");
    }
}

/// What runs on every node whether or not anything is pulled.
pub(crate) fn at_rest(stand: &mut Stand) {
    println!("### At rest\n");
    println!(
        "The first {REST_SECONDS} s after the start of a peer without content, of the mirror and the scheduler.\n"
    );
    eprintln!("at rest");
    stand.check_time();
    stand.restart_scheduler();
    stand.restart_mirror();
    let cache_dir = stand.site().dir().join("resting-cache");
    let peer = stand.start_peer(1, cache_dir);
    let daemons = [
        ("peer", peer_server(stand.site(), 1, &peer).pids[0], true),
        ("mirror", stand.mirror().pids[0], false),
        ("scheduler", stand.scheduler_pid(), false),
    ];
    daemons.iter().for_each(|(_, pid, _)| forget_peak_memory(*pid));
    let before = daemons.map(|(_, pid, _)| cpu_seconds(&[pid]));
    thread::sleep(Duration::from_secs(REST_SECONDS));
    let mut table = Table::new([
        "daemon",
        "VmRSS, MiB",
        "aim",
        "of it no file's, MiB",
        "peak, MiB",
        "threads",
        "CPU s",
        "aim",
    ]);
    for ((name, pid, is_aimed), before) in daemons.into_iter().zip(before) {
        let (resident, cpu) = (memory_mib(pid, "VmRSS"), cpu_seconds(&[pid]) - before);
        let [memory_aim, cpu_aim] = if is_aimed {
            [at_most(20.0, resident, " MiB"), at_most(0.1, cpu, " s")]
        } else {
            [String::new(), String::new()]
        };
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        table.row([
            name.to_owned(),
            format!("{resident:.1}"),
            memory_aim,
            format!("{:.1}", memory_mib(pid, "RssAnon")),
            format!("{:.1}", memory_mib(pid, "VmHWM")),
            threads.to_string(),
            format!("{cpu:.2}"),
            cpu_aim,
        ]);
    }
    table.print();
}

const CLIENTS: usize = 200;
const SECONDS: u64 = 20;
const TICKS: u64 = 10;
const TICK_BYTES: usize = 100_000;
const REST_SECONDS: u64 = 30;
/// In the certificate of every site's mirror; it is no address.
const MIRROR_NAME: &str = "mirror.piecemeal.internal";
