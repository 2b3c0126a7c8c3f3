//! Latency that Piecemeal adds: tiny objects through a peer, and the first byte of a blob that a mirror does not have.

use std::time::Duration;

use crate::{
    client::Got,
    meter::quantile,
    stand::{Server, Stand, Stored},
    support::Image,
    table::{Table, at_most},
};

/// H11. Of a node: through its peer and mirror, and straight to the registry, in turn on one connection each.
pub(crate) fn tiny(stand: &mut Stand) {
    let stand = &*stand;
    println!("### Tiny objects through a peer\n");
    println!(
        "{SAMPLES} one at a time, through the peer and from docker-registry itself in turn, over kept connections; milliseconds to \
         the last byte. Cold: each another blob, which neither peer nor mirror has.\n"
    );
    let mut table = Table::new(COLUMNS);
    for kib in [1, 10] {
        eprintln!("tiny objects of {kib} KiB");
        stand.check_time();
        let name = format!("library/tiny-{kib}");
        let image = stand.push(&Image::new(&name, "v1").layer_bytes(&vec![kib << 10; SAMPLES]));
        let peer = stand.peer();
        // Without Piecemeal in between a node reaches the registry, and only that.
        let direct = Server {
            netns: peer.netns.clone(),
            ..stand.registry()
        };
        let row = |what: &str, in_turn: &InTurn| {
            in_turn.row(&format!("{kib} KiB, {what}"), |got| got.whole, [Some(2.0), Some(10.0)])
        };
        let cold = InTurn::take(&direct, &peer, &image, |sample| sample);
        table.row(row("cold", &cold));
        let warm = InTurn::take(&direct, &peer, &image, |_| 0);
        table.row(row("warm", &warm));
    }
    table.print();
}

/// To the first byte of the body, which says more than the first of the head: those of a blob whose size is known come at
/// once.
pub(crate) fn miss(stand: &mut Stand) {
    let stand = &*stand;
    println!("### What the mirror does not have\n");
    println!(
        "{MISSES} blobs of 1 MiB, each from docker-registry itself and then through the mirror, which has none of them; \
         milliseconds to the first byte of the body.\n"
    );
    eprintln!("what the mirror does not have");
    let image = stand.push(&Image::new("library/missed", "v1").layer_bytes(&[1 << 20; MISSES]));
    let mirror = stand.mirror();
    let direct = Server {
        netns: mirror.netns.clone(),
        ..stand.registry()
    };
    let in_turn = InTurn::take(&direct, &mirror, &image, |sample| sample);
    let mut table = Table::new(COLUMNS);
    table.row(in_turn.row("1 MiB, cold", |got| got.first_byte, [Some(5.0), None]));
    table.print();
}

struct InTurn {
    direct: Vec<Got>,
    through: Vec<Got>,
}

impl InTurn {
    /// `layer`: of which sample.
    fn take(direct: &Server, through: &Server, image: &Stored, layer: impl Fn(usize) -> usize) -> Self {
        let [mut from_registry, mut from_us] = [direct, through].map(Server::connect);
        for connection in [&mut from_registry, &mut from_us] {
            connection.get(&image.by_tag());
        }
        let samples = (0..image.layers()).map(|sample| {
            let target = image.layer(layer(sample));
            (from_registry.get(&target), from_us.get(&target))
        });
        let (direct, through) = samples.unzip();
        Self { direct, through }
    }

    fn row(&self, what: &str, time: fn(&Got) -> Duration, aims: [Option<f64>; 2]) -> [String; 9] {
        let at = |samples: &[Got], share| quantile(samples.iter().map(|got| time(got).as_secs_f64() * 1e3), share);
        let [p50, p99] = [0.5, 0.99].map(|share| (at(&self.through, share), at(&self.direct, share)));
        let [aim50, aim99] = aims;
        let judged = |aim: Option<f64>, (ours, theirs): (f64, f64)| {
            aim.map_or_else(String::new, |aim| at_most(aim, ours - theirs, " ms"))
        };
        let added = |(ours, theirs): (f64, f64)| format!("{:.2}", ours - theirs);
        [
            what.to_owned(),
            format!("{:.2}", p50.1),
            format!("{:.2}", p50.0),
            added(p50),
            judged(aim50, p50),
            format!("{:.2}", p99.1),
            format!("{:.2}", p99.0),
            added(p99),
            judged(aim99, p99),
        ]
    }
}

const COLUMNS: [&str; 9] = [
    "object",
    "registry p50",
    "through us p50",
    "added",
    "aim",
    "registry p99",
    "through us p99",
    "added",
    "aim",
];
const SAMPLES: usize = 1000;
const MISSES: usize = 200;
