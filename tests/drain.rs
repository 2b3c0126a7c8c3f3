//! A daemon that is told to stop lets its clients end first, and the next one takes its ports over: no client is refused.

mod support;

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Signal, kill_process},
};
use support::{
    Cluster, CommandOutcome, Daemon, HOST, Home, Image, Netns, Process, Request, Response, Site, sha256, skopeo,
};

const MIB: usize = 1 << 20;
const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";

/// Tells a daemon to stop while it sends a blob that takes seconds to come over the WAN: that client and another one get what they
/// ask for, and then the port closes.
fn stop_while_sending(port: &str, daemon: impl Fn(&mut Cluster) -> &mut Process) {
    let mut cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(20).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(&[6 * MIB]);
    cluster.registry.push(&image);
    let layer = &image.layers()[0];
    let address: SocketAddr = port.parse().expect("an address");
    let node = cluster.site.node(0).clone();
    let manifest = Request::get(address, &format!("/v2/library/app/manifests/v1?ns={HOST}"));
    assert_eq!(manifest.send_from(&node).expect("an answer").status, 200);
    let target = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
    let get = Request::get(address, &target).patience(Duration::from_secs(60));
    let wan_before = cluster.site.wan_bytes_received();
    let client = {
        let (get, node) = (get.clone(), node.clone());
        thread::spawn(move || -> Response { get.send_from(&node).expect("an answer") })
    };
    until("the blob is on its way", || {
        cluster.site.wan_bytes_received() - wan_before > layer.size / 10
    });
    let stopping = daemon(&mut cluster);
    stopping.signal(Signal::TERM);
    until("it drains", || stopping.log_text().contains("draining"));
    assert_eq!(
        manifest.send_from(&node).expect("an answer while it drains").status,
        200
    );
    assert!(
        !client.is_finished(),
        "the blob was there before anything could be shown"
    );
    let got = client.join().expect("a client");
    assert!(
        got.complete && sha256(&got.body) == layer.digest,
        "{} bytes",
        got.body.len()
    );
    until("its port is closed", || {
        node.enter(|| TcpStream::connect(address)).is_err()
    });
    until("it ends", || !stopping.is_running());
    assert!(stopping.log_text().contains("stopped"), "{}", stopping.log_tail());
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mirror_that_is_told_to_stop_sends_what_it_has_begun_to_send() {
    stop_while_sending(MIRROR, |cluster| &mut cluster.mirror);
}

#[test]
fn a_peer_that_is_told_to_stop_still_gets_the_pieces_that_its_client_waits_for() {
    stop_while_sending(PEER, |cluster| &mut cluster.peers[0]);
}

/// A client that asks for small blobs over connections of their own, four at a time, for as long as it is let.
struct Asking {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Asking {
    fn begin(node: &Netns, address: SocketAddr, image: &Image) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let targets: Vec<(String, String)> = image
            .blobs()
            .map(|blob| {
                (
                    format!("/v2/library/app/blobs/{}?ns={HOST}", blob.digest),
                    blob.digest.clone(),
                )
            })
            .collect();
        let clients = (0..4).map(|_| {
            let (node, stop, targets) = (node.clone(), Arc::clone(&stop), targets.clone());
            thread::spawn(move || {
                let (mut good, mut bad) = (0, Vec::new());
                for (target, digest) in targets.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    match Request::get(address, target).send_from(&node) {
                        Ok(answer) if answer.status == 200 && answer.complete && sha256(&answer.body) == *digest => {
                            good += 1;
                        }
                        Ok(answer) => bad.push(format!("{} {}", answer.status, answer.text())),
                        Err(error) => bad.push(error.to_string()),
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                (good, bad)
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// No request was refused or cut.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        for client in self.clients {
            let (good, bad) = client.join().expect("a client");
            assert!(
                bad.is_empty(),
                "{} of {}: {:?}",
                bad.len(),
                good + bad.len(),
                &bad[..bad.len().min(5)]
            );
            all += good;
        }
        all
    }
}

/// One node with an image that its peer has.
fn pulled(sizes: &[usize]) -> (Cluster, Image) {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(200).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(sizes);
    cluster.registry.push(&image);
    let node = cluster.site.node(0);
    for (port, path) in [PEER, MIRROR].iter().flat_map(|port| {
        let blobs = image.blobs().map(|blob| format!("blobs/{}", blob.digest));
        ["manifests/v1".to_owned()]
            .into_iter()
            .chain(blobs)
            .map(move |path| (port, path))
    }) {
        let target = format!("/v2/library/app/{path}?ns={HOST}");
        let answer = Request::get(port.parse().expect("an address"), &target).send_from(node);
        assert_eq!(answer.expect("an answer").status, 200, "{port} {path}");
    }
    (cluster, image)
}

/// Tells a daemon to stop while clients ask it all the time, and starts the next one at once, beside it.
fn restart_beside(port: &str, daemon: impl Fn(&mut Cluster) -> &mut Daemon) {
    let (mut cluster, image) = pulled(&[2_000, 3_000, 40_000]);
    let node = cluster.site.node(0).clone();
    let asking = Asking::begin(&node, port.parse().expect("an address"), &image);
    thread::sleep(Duration::from_millis(500));
    let stopped = Instant::now();
    let mut old = daemon(&mut cluster).hand_over("draining");
    until("the old one ends", || !old.is_running());
    assert!(
        stopped.elapsed() < Duration::from_secs(50),
        "it drained for {:?}",
        stopped.elapsed()
    );
    daemon(&mut cluster).wait_until_ready();
    thread::sleep(Duration::from_millis(500));
    assert!(asking.end() > 100);
    let log = daemon(&mut cluster).log_text();
    assert!(log.contains("sockets over to the next process"), "{log}");
}

#[test]
fn no_client_is_refused_while_a_peer_hands_its_port_over_to_the_next() {
    restart_beside(PEER, |cluster| &mut cluster.peers[0]);
}

#[test]
fn no_client_is_refused_while_a_mirror_hands_its_port_over_to_the_next() {
    restart_beside(MIRROR, |cluster| &mut cluster.mirror);
}

/// Tells a peer to stop in the middle of a client's pull, which has blobs left to ask for, and ends as if nothing had happened: no
/// byte comes from the registry but through the mirror.
fn stop_in_the_middle(pull: impl FnOnce(&Cluster, &Image) -> JoinHandle<CommandOutcome>) {
    let mut cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(80).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(&[3 * MIB; 12]);
    cluster.registry.push(&image);
    let pulling = pull(&cluster, &image);
    until("the pull is under way", || {
        cluster.site.wan_bytes_received() > 2 * MIB as u64
    });
    cluster.peers[0].signal(Signal::TERM);
    let pulled = pulling.join().expect("a client");
    assert!(pulled.ok, "{}", pulled.output);
    until("it ends", || !cluster.peers[0].is_running());
    for blob in image.blobs() {
        assert_eq!(
            cluster.registry.blob_bytes_served(&blob.digest),
            blob.size,
            "{}",
            blob.digest
        );
    }
}

#[test]
fn skopeo_ends_its_pull_through_a_peer_that_is_told_to_stop() {
    stop_in_the_middle(|cluster, image| {
        let (node, out) = (cluster.site.node(0).clone(), cluster.site.dir().join("copied"));
        let name = format!("{PEER}/{}", image.reference(HOST));
        thread::spawn(move || skopeo::copy_to_dir(&node, &name, &out))
    });
}

#[test]
fn crane_ends_its_pull_through_a_peer_that_is_told_to_stop() {
    stop_in_the_middle(|cluster, image| {
        let home = Home::new(cluster.site.node(0), &cluster.site.dir().join("home"));
        let name = format!("{PEER}/{}", image.reference(HOST));
        thread::spawn(move || home.crane(&["pull", &name, "image.tar"]))
    });
}

#[test]
fn containerd_ends_its_pull_through_a_peer_that_is_told_to_stop() {
    stop_in_the_middle(|cluster, image| cluster.containerds[0].spawn_fetch(&image.reference(HOST), Instant::now()));
}

#[test]
fn a_daemon_that_is_not_asked_for_anything_ends_at_once() {
    let (mut cluster, _) = pulled(&[2_000]);
    thread::sleep(Duration::from_millis(3500));
    let told = Instant::now();
    cluster.peers[0].terminate();
    assert!(told.elapsed() < Duration::from_secs(3), "{:?}", told.elapsed());
}

/// systemd, as far as it keeps file descriptors for a unit that restarts.
struct ServiceManager {
    dir: support::ScratchDir,
    notify: UnixDatagram,
    ports: [u16; 3],
}

impl ServiceManager {
    fn new() -> Self {
        let dir = support::ScratchDir::new();
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        notify
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        let ports = [(); 3].map(|()| {
            let free = TcpListener::bind("127.0.0.1:0").expect("a port");
            free.local_addr().expect("an address").port()
        });
        Self { dir, notify, ports }
    }

    /// Starts a mirror without a key, which has the socket that was kept, if there is one, as its fourth descriptor.
    fn start(&self, kept: Option<OwnedFd>, flags: &str) -> Child {
        let [listen, pieces, admin] = self.ports;
        let script = format!(
            "{} exec \"$0\" mirror --upstream a.test=http://127.0.0.1:9 --listen 127.0.0.1:{listen} --piece-listen 127.0.0.1:{pieces} \
             --admin-listen 127.0.0.1:{admin} --cache-dir {}/cache {flags} 2>>{}/log",
            if kept.is_some() {
                "LISTEN_FDS=1 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; exec 3<&0 </dev/null;"
            } else {
                ""
            },
            self.dir.path().display(),
            self.dir.path().display(),
        );
        Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_piecemeal")])
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .stdin(kept.map_or_else(Stdio::null, Stdio::from))
            .spawn()
            .expect("a mirror")
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[0]).into()
    }

    fn until_it_answers(&self) {
        until("it answers", || self.ask().is_ok_and(|answer| answer.status == 200));
    }

    fn ask(&self) -> std::io::Result<Response> {
        Request::get(self.address(), "/v2/").send()
    }

    /// The next message, and the socket in it that listens at the registry port.
    fn told(&self) -> (String, Option<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(32))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 256];
        let read = recvmsg(
            &self.notify,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let read = read.expect("a message").bytes;
        let mut kept = None;
        for message in control.drain() {
            let RecvAncillaryMessage::ScmRights(descriptors) = message else {
                continue;
            };
            kept = descriptors
                .map(TcpListener::from)
                .find(|socket| socket.local_addr().is_ok_and(|address| address == self.address()))
                .map(OwnedFd::from)
                .or(kept);
        }
        (String::from_utf8_lossy(&text[..read]).into_owned(), kept)
    }
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::TERM).expect("a signal");
}

#[test]
fn a_client_that_connects_between_two_processes_of_a_unit_waits_for_the_second() {
    let manager = ServiceManager::new();
    let mut first = manager.start(None, "");
    manager.until_it_answers();
    terminate(&first);
    let (told, kept) = manager.told();
    assert!(told.starts_with("FDSTORE=1\nFDNAME="), "{told}");
    assert!(first.wait().expect("its end").success());

    let between = TcpStream::connect(manager.address()).expect("systemd has the port");
    let asking = thread::spawn({
        let address = manager.address();
        move || Request::get(address, "/v2/").send()
    });
    let mut second = manager.start(Some(kept.expect("the port")), "");
    let answer = asking.join().expect("a client").expect("an answer");
    assert_eq!(answer.status, 200);
    // From now on a mirror that dies takes its port with it, so that clients go to their next host.
    assert!(manager.told().0.starts_with("FDSTOREREMOVE=1\n"));
    drop(between);
    second.kill().expect("its end");
    second.wait().expect("its end");
    assert!(manager.ask().is_err());
}

#[test]
fn a_unit_whose_next_process_cannot_start_leaves_no_port_open() {
    let manager = ServiceManager::new();
    let mut wrong = manager.start(None, "--upstream nonsense --check-config");
    assert!(!wrong.wait().expect("its end").success());
    assert!(manager.told().0.starts_with("FDSTOREREMOVE=1\n"));
}

#[test]
fn a_socket_that_the_settings_no_longer_name_is_closed() {
    let manager = ServiceManager::new();
    let left = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = left.local_addr().expect("an address");
    let mut mirror = manager.start(Some(left.into()), "");
    manager.until_it_answers();
    assert!(TcpStream::connect(address).is_err());
    terminate(&mirror);
    assert!(mirror.wait().expect("its end").success());
}
