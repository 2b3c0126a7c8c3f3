//! Cached manifests: how many a second one core answers.

use crate::{
    meter::{Pinned, cores, cpu_seconds, median},
    stand::{Server, Stand},
    support::Image,
    table::{Table, at_least},
};

struct Sample {
    per_second: f64,
    /// Of the server's own processor time, so that a client that is slower than the server does not hide it.
    per_cpu_second: f64,
}

/// As many as a registry has to answer when a whole site looks for an update of everything.
pub(crate) fn cached(stand: &mut Stand) {
    let stand = &*stand;
    let image = stand.keep_everywhere(&Image::new("library/small", "v1").layer_bytes(&[700; 5]));
    println!("### Cached manifests\n");
    println!(
        "`wrk -t1 -c16` for {SECONDS} s, {RUNS} runs in turn, medians; a manifest of {} bytes. The server may use one core, wrk \
         another.\n",
        image.manifest_bytes
    );
    assert!(cores() > 1, "server and client need a core each");
    let mut table = Table::new(["asked by", "server", "requests/s", "per CPU second", "÷ nginx's", "aim"]);
    for (name, target) in [("digest", image.by_digest()), ("tag", image.by_tag())] {
        eprintln!("cached manifests by {name}");
        let servers = stand.servers();
        let samples: Vec<[Sample; 4]> = (0..RUNS)
            .map(|_| {
                stand.check_time();
                servers.each_ref().map(|server| load(server, &target))
            })
            .collect();
        for (place, server) in servers.iter().enumerate() {
            let of = |value: fn(&Sample) -> f64| median(samples.iter().map(|run| value(&run[place])));
            let per_second = of(|sample| sample.per_second);
            let ratio = samples.iter().map(|run| run[place].per_second / run[NGINX].per_second);
            table.row([
                name.to_owned(),
                server.name.to_owned(),
                format!("{per_second:.0}"),
                format!("{:.0}", of(|sample| sample.per_cpu_second)),
                format!("{:.2}", median(ratio)),
                if place < NGINX {
                    at_least(20_000.0, per_second, "")
                } else {
                    String::new()
                },
            ]);
        }
    }
    table.print();
}

fn load(server: &Server, target: &str) -> Sample {
    // One answer first: the mirror may have to look at the tag again.
    server.connect().get(target);
    let _pinned = Pinned::new(&server.pids, 0);
    let before = cpu_seconds(&server.pids);
    let mut wrk = server.netns.command("taskset");
    wrk.args(["-c", "1", "wrk", "-t1", "-c16", &format!("-d{SECONDS}s")])
        .args(["-H", &format!("Accept: {}", crate::support::MANIFEST)])
        .arg(format!("http://{}{target}", server.address));
    let output = wrk.output().expect("wrk runs");
    let cpu = cpu_seconds(&server.pids) - before;
    let report = String::from_utf8_lossy(&output.stdout);
    let failed = !output.status.success() || report.contains("Non-2xx") || report.contains("Socket errors");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!failed, "wrk against {}: {report}{complaint}", server.name);
    let value = |key: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(key));
        line.and_then(|value| value.trim().parse::<f64>().ok())
    };
    let per_second = value("Requests/sec:").unwrap_or_else(|| panic!("wrk says no rate: {report}"));
    let requests = report.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests = requests.and_then(|(count, _)| count.parse::<f64>().ok());
    Sample {
        per_second,
        per_cpu_second: requests.unwrap_or_else(|| panic!("wrk says no count: {report}")) / cpu,
    }
}

/// The place of nginx among the servers.
const NGINX: usize = 2;
const RUNS: usize = 3;
const SECONDS: u64 = 5;
