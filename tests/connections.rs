//! One host of the LAN that holds all the connections it can get harms no other: nodes still pull and join, and health checks still
//! get answers.

mod support;

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, setrlimit};
use support::{Cluster, HOST, Image, MIRROR_IP, Request, Site};

/// The limit of file descriptors for each process, so that a few hundred connections fill a port of the mirror's, and a thousand
/// the scheduler's.
const DESCRIPTORS: u64 = 1200;
/// Longer than a pull and a probe take on a busy machine, shorter than a connection may wait for its first byte.
const SOON: Duration = Duration::from_secs(4);

/// Connections of one host to one port, and the first words of each.
struct Attack {
    port: u16,
    count: usize,
    first: &'static [u8],
}

const HALF_A_HEAD: &[u8] = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n";
const WHOLE: &[u8] = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

const ATTACKS: [Attack; 7] = [
    attack(65011, 400, HALF_A_HEAD),
    attack(65011, 400, WHOLE),
    attack(65002, 400, HALF_A_HEAD),
    attack(65012, 1000, b""),
    attack(65012, 1000, PREFACE),
    attack(65013, 200, HALF_A_HEAD),
    attack(65014, 200, HALF_A_HEAD),
];

const fn attack(port: u16, count: usize, first: &'static [u8]) -> Attack {
    Attack { port, count, first }
}

#[test]
fn a_host_that_holds_a_port_harms_no_pull_no_session_and_no_probe() {
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    setrlimit(Resource::Nofile, limit).expect("fewer descriptors are always granted");
    let mut cluster = Cluster::cold(Site::builder().nodes(2).wan_mbit(200).lan_mbit(400));
    for (number, attack) in ATTACKS.iter().enumerate() {
        let image = Image::new(&format!("library/app{number}"), "v1")
            .seed(number as u64)
            .layer_bytes(&[1 << 20]);
        cluster.registry.push(&image);
        // The last machine of the site, which pulls nothing.
        let held = cluster.site.node(1).enter(|| hold(attack));
        assert!(
            held.len() > attack.count / 2,
            "port {} took only {}",
            attack.port,
            held.len()
        );

        let port = attack.port;
        for admin in [65013, 65014] {
            let probe = Request::get((MIRROR_IP, admin).into(), "/livez").patience(SOON);
            let answer = probe.send_from(cluster.site.node(0));
            let answer = answer.unwrap_or_else(|error| panic!("/livez at {admin} while {port} is held: {error}"));
            assert_eq!(answer.status, 200, "/livez at {admin} while {port} is held");
        }
        let started = Instant::now();
        let outcome = cluster.containerds[0].fetch(&image.reference(HOST));
        assert!(
            outcome.ok && started.elapsed() < SOON,
            "a pull while {port} is held, in {:?}: {}",
            started.elapsed(),
            outcome.output
        );
        cluster.peers[0].restart();
        drop(held);
    }
}

fn hold(attack: &Attack) -> Vec<TcpStream> {
    let address = SocketAddr::from((MIRROR_IP, attack.port));
    let connect = |_| {
        let mut stream = TcpStream::connect_timeout(&address, SOON).ok()?;
        // An error: it is closed already.
        let _ = stream.write_all(attack.first);
        Some(stream)
    };
    (0..attack.count).filter_map(connect).collect()
}
