//! An edge site in network namespaces: an origin behind a slow WAN, a mirror, and nodes on one LAN.
//!
//! ```text
//!  origin                mirror                    lan (bridge)            node K
//!  wan 10.99.0.2 ─ WAN ─ wan 10.99.0.1
//!                        eth0 10.88.0.2 ─────────── mirror
//!                                                   nodeK ────────────── eth0 10.88.1.K
//! ```
//!
//! Every LAN link and the WAN are shaped by `tbf` at both ends. The WAN is a veth, or two TUN devices and a [`Relay`] when
//! delay or loss is asked for, which not every kernel can do by itself. Nodes cannot reach the origin unless asked: a
//! runtime that falls back to it silently would hide the failure of what is tested.
//!
//! One site exists at a time in a process, since sites share addresses and the machine's two or so cores.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    netns::Netns,
    relay::{Relay, Weather},
    scratch::ScratchDir,
    tools::require_tools,
};

/// The namespaces of a running site. Fields are dropped in order: links before the namespaces that they join.
#[derive(Debug)]
pub struct Site {
    _relay: Option<Relay>,
    origin: Netns,
    mirror: Netns,
    nodes: Vec<Netns>,
    _lan: Netns,
    wan_mbit: u32,
    lan_mbit: u32,
    scratch: ScratchDir,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    pub fn builder() -> SiteBuilder {
        SiteBuilder {
            nodes: 2,
            wan_mbit: 100,
            lan_mbit: 400,
            weather: Weather::CLEAR,
            nodes_reach_upstream: false,
        }
    }

    /// Where the upstream registry runs.
    pub fn origin(&self) -> &Netns {
        &self.origin
    }

    /// Where mirror and scheduler run.
    pub fn mirror(&self) -> &Netns {
        &self.mirror
    }

    /// Indexed from 0; node 0 has the address 10.88.1.1.
    pub fn node(&self, index: usize) -> &Netns {
        &self.nodes[index]
    }

    pub fn nodes(&self) -> &[Netns] {
        &self.nodes
    }

    /// A folder of the site's own, for caches, logs and keys.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Bytes that came into the site over the WAN, headers included.
    pub fn wan_bytes_received(&self) -> u64 {
        self.mirror.bytes_received("wan")
    }

    /// Drops every packet of the WAN, both ways. Established connections stay, and starve.
    pub fn block_wan(&self) {
        self.origin.nft(
            "table inet outage {
                chain input { type filter hook input priority 0; iifname wan drop; }
                chain output { type filter hook output priority 0; oifname wan drop; }
            }",
        );
    }

    /// Ends [`Self::block_wan`].
    pub fn unblock_wan(&self) {
        self.origin.nft("delete table inet outage");
    }

    /// What one TCP connection carries from the origin to the mirror, in bytes of payload per second.
    pub fn measure_goodput_wan(&self) -> f64 {
        goodput(&self.origin, (&self.mirror, MIRROR_WAN_IP), self.wan_mbit)
    }

    /// What one TCP connection carries between two nodes, in bytes of payload per second.
    pub fn measure_goodput_lan(&self, from: usize, to: usize) -> f64 {
        goodput(self.node(from), (self.node(to), node_ip(to)), self.lan_mbit)
    }
}

/// The shape of a site. Rates are in Mbit/s, per direction and, on the LAN, per node.
#[derive(Clone, Debug)]
pub struct SiteBuilder {
    nodes: usize,
    wan_mbit: u32,
    lan_mbit: u32,
    weather: Weather,
    nodes_reach_upstream: bool,
}

impl SiteBuilder {
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    pub fn wan_mbit(mut self, rate: u32) -> Self {
        self.wan_mbit = rate;
        self
    }

    pub fn lan_mbit(mut self, rate: u32) -> Self {
        self.lan_mbit = rate;
        self
    }

    /// One way: the round trip over the WAN takes twice as long.
    pub fn wan_delay_ms(mut self, delay: u64) -> Self {
        self.weather.delay = Duration::from_millis(delay);
        self
    }

    /// Of the packets of each direction.
    pub fn wan_loss_percent(mut self, percent: f64) -> Self {
        self.weather.loss = percent / 100.0;
        self
    }

    /// Which packets are lost.
    pub fn seed(mut self, seed: u64) -> Self {
        self.weather.seed = seed;
        self
    }

    /// Whether nodes may go through the mirror's machine to the origin, as a container runtime does when it falls back.
    pub fn nodes_reach_upstream(mut self, allowed: bool) -> Self {
        self.nodes_reach_upstream = allowed;
        self
    }

    /// Builds the site, once every other site of this process is gone.
    pub fn build(self) -> Site {
        static TURN: Mutex<()> = Mutex::new(());
        require_tools();
        // A failed test poisons the lock after its site was taken down: nothing is broken by it.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

        let (origin, mirror, lan) = (Netns::create("origin"), Netns::create("mirror"), Netns::create("lan"));
        let nodes: Vec<Netns> = (1..=self.nodes)
            .map(|number| Netns::create(&format!("node{number}")))
            .collect();
        self.join_lan(&lan, &mirror, &nodes);
        let relay = self.join_wan(&origin, &mirror);
        for node in &nodes {
            node.ip(&format!("route add default via {MIRROR_IP}"));
        }
        origin.ip(&format!("route add {LAN_NETWORK} via {MIRROR_WAN_IP}"));
        mirror.sysctl("ipv4/ip_forward", "1");
        if !self.nodes_reach_upstream {
            // A reset, so that what should not have been tried fails at once.
            mirror.nft(
                "table inet site {
                    chain forward { type filter hook forward priority 0; meta l4proto tcp reject with tcp reset; reject; }
                }",
            );
        }

        Site {
            _relay: relay,
            origin,
            mirror,
            nodes,
            _lan: lan,
            wan_mbit: self.wan_mbit,
            lan_mbit: self.lan_mbit,
            scratch: ScratchDir::new(),
            _turn: turn,
        }
    }

    fn join_lan(&self, lan: &Netns, mirror: &Netns, nodes: &[Netns]) {
        if Path::new("/proc/sys/net/bridge").exists() {
            // Bridged frames need not pass the firewall, which costs CPU.
            lan.sysctl("bridge/bridge-nf-call-iptables", "0");
        }
        lan.ip("link add bridge type bridge forward_delay 0 stp_state 0\nlink set bridge addrgenmode none up");
        let mut members = vec![(mirror, MIRROR_IP, "mirror".to_owned())];
        members.extend(
            nodes
                .iter()
                .enumerate()
                .map(|(index, node)| (node, node_ip(index), format!("node{}", index + 1))),
        );

        // The kernel's neighbour table has one size limit (1024) for all namespaces together, which 32 nodes that all know
        // each other exceed. Permanent entries do not count.
        let neighbours: String = members
            .iter()
            .map(|(_, ip, _)| format!("neigh replace {ip} lladdr {} dev eth0 nud permanent\n", mac(*ip)))
            .collect();
        let shape = tbf(self.lan_mbit);
        for (netns, ip, port) in &members {
            netns.ip(&format!(
                "link add eth0 address {} type veth peer name {port} netns {}\n\
                 link set eth0 addrgenmode none up\naddr add {ip}/16 dev eth0\n{neighbours}",
                mac(*ip),
                lan.name()
            ));
            netns.tc(&format!("qdisc add dev eth0 root {shape}"));
            lan.ip(&format!("link set {port} addrgenmode none master bridge up"));
            lan.tc(&format!("qdisc add dev {port} root {shape}"));
        }
    }

    fn join_wan(&self, origin: &Netns, mirror: &Netns) -> Option<Relay> {
        let relay = (!self.weather.is_clear()).then(|| Relay::join([origin, mirror], self.weather));
        if relay.is_none() {
            origin.ip(&format!("link add wan type veth peer name wan netns {}", mirror.name()));
        }
        for (end, ip) in [(origin, ORIGIN_IP), (mirror, MIRROR_WAN_IP)] {
            end.ip(&format!("link set wan addrgenmode none up\naddr add {ip}/24 dev wan"));
            end.tc(&format!("qdisc add dev wan root {}", tbf(self.wan_mbit)));
        }
        relay
    }
}

/// The LAN address of a node; `index` counts from 0.
pub fn node_ip(index: usize) -> Ipv4Addr {
    let [rack, host] = [1 + index / 250, 1 + index % 250].map(|octet| u8::try_from(octet).expect("a site is a /16"));
    Ipv4Addr::new(10, 88, rack, host)
}

fn mac(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// A burst holds one full-size offloaded packet: a smaller one makes `tbf` cut each into its segments.
fn tbf(mbit: u32) -> String {
    format!("tbf rate {mbit}mbit burst 96kb latency 50ms")
}

/// Sends zeros over one connection for about two seconds; the first quarter, where TCP finds its rate, is not timed.
fn goodput(from: &Netns, to: (&Netns, Ipv4Addr), mbit: u32) -> f64 {
    let total = (u64::from(mbit) * 125_000 * 2).clamp(1 << 20, 32 << 20);
    let (to, ip) = to;
    let listener = to
        .enter(|| TcpListener::bind((ip, 0)))
        .expect("listening for the transfer");
    let target = listener.local_addr().expect("a listener has an address");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = from
                .enter(|| TcpStream::connect(target))
                .expect("connecting for the transfer");
            let buffer = vec![0; 1 << 16];
            for _ in 0..total / (1 << 16) {
                stream.write_all(&buffer).expect("sending");
            }
        });
        let (mut stream, _) = listener.accept().expect("accepting the transfer");
        let mut buffer = vec![0; 1 << 18];
        let (mut received, mut timed_from) = (0_u64, None);
        loop {
            let count = stream.read(&mut buffer).expect("receiving");
            if count == 0 {
                break;
            }
            received += u64::try_from(count).expect("usize fits");
            if timed_from.is_none() && received >= total / 4 {
                timed_from = Some((Instant::now(), received));
            }
        }
        let (start, skipped) = timed_from.expect("the transfer was cut short");
        (received - skipped) as f64 / start.elapsed().as_secs_f64()
    })
}

pub const ORIGIN_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub const MIRROR_WAN_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const MIRROR_IP: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const LAN_NETWORK: &str = "10.88.0.0/16";
