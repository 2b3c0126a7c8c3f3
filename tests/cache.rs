//! `piecemeal cache`: lists, removes, verifies and prefetches content as asked, and only for clients on the same machine.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    Blob, Cluster, ClusterOptions, HOST, INDEX, Image, MIRROR_IP, Netns, PASSWORD, RegistryAuth, Request, Response,
    Site, SiteBuilder, USER, architecture,
};

const MIRROR: &str = "10.88.0.2:65011";
const PEER_ADMIN: &str = "http://127.0.0.1:65003";
const MIB: usize = 1 << 20;

fn site(nodes: usize) -> SiteBuilder {
    Site::builder().nodes(nodes).wan_mbit(200).lan_mbit(1000)
}

fn image() -> Image {
    Image::new("library/app", "v1")
        .layer_bytes(&[700_000, 300_000])
        .in_index()
}

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// Of a command with `--json`: one object.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }

    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        self
    }
}

fn command(netns: &Netns, arguments: &[&str]) -> Command {
    let mut command = netns.command(env!("CARGO_BIN_EXE_piecemeal"));
    command.arg("cache").args(arguments).stdin(Stdio::null());
    command
}

fn run(netns: &Netns, arguments: &[&str]) -> Outcome {
    let output = command(netns, arguments).output().expect("starting the binary");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Outcome {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// On the mirror's machine.
fn at_mirror(cluster: &Cluster, arguments: &[&str]) -> Outcome {
    run(cluster.site.mirror(), arguments)
}

fn at_peer(cluster: &Cluster, node: usize, arguments: &[&str]) -> Outcome {
    let arguments = [arguments, &["--admin", PEER_ADMIN]].concat();
    run(cluster.site.node(node), &arguments)
}

fn pull_everywhere(cluster: &Cluster, image: &Image) {
    for outcome in cluster.fetch_all(&image.reference(HOST)) {
        assert!(outcome.ok, "node {}: {}", outcome.node, outcome.output);
    }
}

fn names(list: &Value) -> Vec<&str> {
    let images = list["images"].as_array().expect("a list of images");
    images
        .iter()
        .map(|image| image["name"].as_str().expect("a name"))
        .collect()
}

fn cached(cluster: &Cluster, blob: &Blob) -> PathBuf {
    let hex = blob.digest.trim_start_matches("sha256:");
    let blobs = cluster.mirror.cache_dir().join("blobs/sha256");
    blobs.join(&hex[..2]).join(hex)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(50));
    }
}

fn blob_request(image: &Image, blob: &Blob) -> Request {
    let target = format!("/v2/{}/blobs/{}?ns={HOST}", image.repository(), blob.digest);
    Request::get(MIRROR.parse().expect("an address"), &target).patience(Duration::from_secs(60))
}

fn get(cluster: &Cluster, image: &Image, blob: &Blob) -> Response {
    blob_request(image, blob)
        .send_from(cluster.site.node(0))
        .expect("an answer")
}

#[test]
fn what_is_kept_is_listed_and_shown_as_it_is() {
    let cluster = Cluster::cold(site(1));
    let image = image();
    cluster.registry.push(&image);
    let list = at_mirror(&cluster, &["ls", "--json"]).expect(0).json();
    assert_eq!(list, json!({ "images": [], "unlisted": [], "total_bytes": 0 }));
    pull_everywhere(&cluster, &image);
    let name = image.reference(HOST);
    let on_both = |arguments: &[&str]| [at_mirror(&cluster, arguments), at_peer(&cluster, 0, arguments)];
    for outcome in on_both(&["ls", "--json"]) {
        let list = outcome.expect(0).json();
        assert_eq!(names(&list), [&*name]);
        assert_eq!(list["unlisted"], json!([]));
        assert_eq!(list["total_bytes"], json!(image.total_bytes()));
        let listed = &list["images"][0];
        assert_eq!(
            (&listed["digest"], &listed["here_bytes"], &listed["is_complete"]),
            (&json!(image.digest()), &json!(image.total_bytes()), &json!(true))
        );
        assert_eq!(listed["platforms"], json!([format!("linux/{}", architecture())]));
        assert!(listed["checked_seconds_ago"].as_u64() < Some(30), "{listed}");
    }
    for outcome in on_both(&["show", &name, "--json"]) {
        let item = outcome.expect(0).json();
        let shown: Vec<&Value> = item["image"]["blobs"].as_array().expect("blobs").iter().collect();
        assert_eq!(shown.len(), image.blobs().count());
        for blob in image.blobs() {
            let found = shown.iter().find(|shown| shown["digest"] == json!(blob.digest));
            let found = found.expect("every blob is shown");
            assert_eq!(
                (&found["state"], &found["blob_bytes"]),
                (&json!("here"), &json!(blob.size))
            );
            assert_eq!(found["repositories"], json!([format!("{HOST}/library/app")]));
        }
        let manifests = item["image"]["manifests"].as_array().expect("manifests");
        assert!(manifests.len() == 2 && manifests.iter().all(|manifest| manifest["is_here"] == json!(true)));
    }
    // For people, with the name as a node writes it.
    let text = at_mirror(&cluster, &["ls", "--sort", "size"]).expect(0).stdout;
    assert!(
        text.starts_with("NAME ") && text.contains(&name) && text.contains("1.0 MB"),
        "{text}"
    );
    let text = at_mirror(&cluster, &["show", &format!("localhost:65001/{name}")])
        .expect(0)
        .stdout;
    assert!(
        text.contains("complete") && text.contains(&image.layers()[0].digest),
        "{text}"
    );
    let digest = at_mirror(&cluster, &["show", &image.layers()[1].digest])
        .expect(0)
        .stdout;
    assert!(digest.contains("300.0 kB, here"), "{digest}");
    let unknown = at_mirror(&cluster, &["show", "origin.test/library/other:v1"]).expect(1);
    assert!(
        unknown.stderr.contains("origin.test/library/other:v1 is not here"),
        "{}",
        unknown.stderr
    );
    fs::remove_file(cached(&cluster, &image.layers()[0])).expect("removing a file");
    assert_eq!(
        get(&cluster, &image, &image.layers()[0]).status,
        200,
        "it is fetched again"
    );
}

#[test]
fn an_image_goes_with_what_no_other_needs() {
    let cluster = Cluster::cold(site(1));
    let of_base = |repository: &str, own: usize| Image::new(repository, "v1").seed(77).layer_bytes(&[300_000, own]);
    let (one, two) = (of_base("library/one", 200_000), of_base("library/two", 250_000));
    assert_eq!(one.layers()[0].digest, two.layers()[0].digest);
    for image in [&one, &two] {
        cluster.registry.push(image);
        pull_everywhere(&cluster, image);
        // Otherwise the runtime would not ask for the shared layer under the other image's name.
        cluster.containerds[0].remove_all_content();
    }
    let name = one.reference(HOST);
    let unasked = at_mirror(&cluster, &["rm", &name]).expect(64);
    assert!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    assert!(cached(&cluster, &one.layers()[1]).is_file());
    let gone = at_mirror(&cluster, &["rm", "--yes", &name, "library/nothing:1"]).expect(1);
    assert!(
        gone.stdout
            .contains(&format!("removed {name}: 1 manifests, 2 blobs, 200.")),
        "{}",
        gone.stdout
    );
    assert!(
        gone.stderr.contains("not removed: library/nothing:1"),
        "{}",
        gone.stderr
    );
    assert!(!cached(&cluster, &one.layers()[1]).exists());
    assert!(cached(&cluster, &one.layers()[0]).is_file(), "the other needs it");
    let list = at_mirror(&cluster, &["ls", "--json"]).expect(0).json();
    assert_eq!(
        (names(&list), &list["unlisted"]),
        (vec![&*two.reference(HOST)], &json!([]))
    );
    assert_eq!(list["images"][0]["is_complete"], json!(true));
    // The images that are left are served without the WAN, and the removed one comes again over it.
    at_peer(&cluster, 0, &["rm", "--yes", &two.reference(HOST), &name]).expect(0);
    cluster.containerds[0].remove_all_content();
    cluster.site.block_wan();
    pull_everywhere(&cluster, &two);
    cluster.site.unblock_wan();
    pull_everywhere(&cluster, &one);
    assert_eq!(
        cluster.registry.blob_bytes_served(&one.layers()[0].digest),
        one.layers()[0].size
    );
    assert_eq!(
        cluster.registry.blob_bytes_served(&one.layers()[1].digest),
        2 * one.layers()[1].size
    );
    // A blob alone, too.
    at_mirror(&cluster, &["rm", "--yes", &two.layers()[1].digest]).expect(0);
    let list = at_mirror(&cluster, &["ls", "--json"]).expect(0).json();
    let completes: Vec<&Value> = list["images"]
        .as_array()
        .expect("images")
        .iter()
        .map(|i| &i["is_complete"])
        .collect();
    assert_eq!(completes, [&json!(true), &json!(false)]);
}

#[test]
fn what_is_read_or_on_its_way_does_not_go() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(40).lan_mbit(200));
    let image = Image::new("library/app", "v1").layer_bytes(&[16 * MIB]);
    cluster.registry.push(&image);
    let layer = &image.layers()[0];
    let refused = |name: &str| {
        let refused = at_mirror(&cluster, &["rm", "--yes", name]).expect(1);
        let why = &refused.stderr;
        assert!(why.contains("is in use") && why.contains(&layer.digest), "{why}");
    };
    let (reads, node) = (blob_request(&image, layer), cluster.site.node(0).clone());
    let reading = thread::spawn(move || reads.send_from(&node).expect("an answer"));
    until("it is on its way", || {
        let show = at_mirror(&cluster, &["show", &layer.digest, "--json"]);
        show.code == Some(0) && show.json()["blob"]["state"] == json!("partial")
    });
    refused(&layer.digest);
    assert!(reading.join().expect("the reader ends").body == layer.bytes);
    // Again, from the disk, by a slow reader.
    pull_everywhere(&cluster, &image);
    cluster.site.node(0).enter(|| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(MIRROR).expect("connecting");
        let target = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {MIRROR}\r\n\r\n").expect("asking");
        stream.read_exact(&mut [0; 1000]).expect("its beginning");
        refused(&image.reference(HOST));
        assert_eq!(
            admin(&cluster, "DELETE", &format!("/cache/item?name={}", layer.digest)).status,
            409
        );
    });
    assert!(cached(&cluster, layer).is_file());
    assert_eq!(
        names(&at_mirror(&cluster, &["ls", "--json"]).json()).len(),
        1,
        "nothing of it went"
    );
    until("it is removed once no client reads it", || {
        at_mirror(&cluster, &["rm", "--yes", &image.reference(HOST)]).code == Some(0)
    });
    assert!(!cached(&cluster, layer).exists());
}

#[test]
fn a_flipped_byte_is_found_named_and_healed_by_the_next_pull() {
    let cluster = Cluster::cold(site(1));
    let image = Image::new("library/app", "v1").layer_bytes(&[3 * MIB, 300_000]);
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    let layer = &image.layers()[0];
    let good = at_mirror(&cluster, &["verify"]).expect(0).stdout;
    assert!(good.contains("3 blobs are good; 3.4 MB read"), "{good}");
    let mut bytes = fs::read(cached(&cluster, layer)).expect("reading the cached blob");
    bytes[MIB + 7] ^= 1;
    fs::write(cached(&cluster, layer), bytes).expect("damaging it");
    at_mirror(&cluster, &["verify", &image.layers()[1].digest]).expect(0);
    let damaged = at_mirror(&cluster, &["verify", &image.reference(HOST), "--rate", "50M"]).expect(1);
    let said = format!("damaged: {} (of {})\n", layer.digest, image.reference(HOST));
    assert!(damaged.stdout.contains(&said), "{}", damaged.stdout);
    assert!(
        damaged.stderr.contains("1 blobs were damaged and dropped"),
        "{}",
        damaged.stderr
    );
    let list = at_mirror(&cluster, &["ls", "--json"]).json();
    assert_eq!(list["images"][0]["is_complete"], json!(false));
    assert!(get(&cluster, &image, layer).body == layer.bytes);
    until("it is here again", || cached(&cluster, layer).is_file());
    let healed = at_mirror(&cluster, &["verify", "--json"]).expect(0).stdout;
    let last: Value = serde_json::from_str(healed.lines().last().expect("lines")).expect("an object");
    assert_eq!(
        (&last["event"], &last["good"], &last["damaged"]),
        (&json!("end"), &json!(3), &json!(0))
    );
    at_mirror(&cluster, &["verify", "library/nothing:1"]).expect(1);
    at_mirror(&cluster, &["verify", "--rate", "0"]).expect(64);
}

#[test]
fn what_was_warmed_is_pulled_by_tag_without_the_wan() {
    let cluster = Cluster::cold(site(2));
    let image = image();
    cluster.registry.push(&image);
    let file = cluster.site.dir().join("images");
    fs::write(&file, "# of the shop\norigin.test/library/app:v1 # the till\n").expect("writing a file");
    let file = file.to_str().expect("a path in UTF-8");
    let warmed = at_mirror(&cluster, &["warm", "--file", file, "origin.test/library/nothing:1"]).expect(1);
    for part in [
        "origin.test/library/nothing:1: failed: ",
        "origin.test/library/app:v1: is here, 1.0 MB fetched",
    ] {
        assert!(warmed.stdout.contains(part), "{part}: {}", warmed.stdout);
    }
    assert!(
        warmed.stderr.contains("1 of 2 images are not all here"),
        "{}",
        warmed.stderr
    );
    let again = at_mirror(&cluster, &["warm", &image.reference(HOST)]).expect(0).stdout;
    assert!(
        again.contains("origin.test/library/app:v1: was here already"),
        "{again}"
    );
    let lines = at_mirror(&cluster, &["warm", &image.reference(HOST), "--json"])
        .expect(0)
        .stdout;
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect();
    assert_eq!(
        events.last().expect("an end"),
        &json!({ "event": "end", "images": 1, "failed": 0 })
    );
    cluster.site.block_wan();
    pull_everywhere(&cluster, &image);
    for blob in image.blobs() {
        assert_eq!(cluster.registry.blob_bytes_served(&blob.digest), blob.size);
    }
}

#[test]
fn only_the_platforms_that_are_asked_for_are_warmed() {
    let cluster = Cluster::cold(site(1));
    let of = |tag: &str| Image::new("library/app", tag).layer_bytes(&[200_000]);
    let (near, far) = (of("near"), of("far"));
    let entry = |image: &Image, architecture: &str| {
        let manifest = image.manifests().next().expect("a manifest");
        json!({ "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
            "platform": { "os": "linux", "architecture": architecture } })
    };
    let entries = [entry(&near, architecture()), entry(&far, "mips64le")];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let index = Blob::new(INDEX, index.to_string().into_bytes());
    cluster.registry.push(&near);
    cluster.registry.push(&far);
    cluster.registry.put_manifest("library/app", "both", &index);
    let name = format!("{HOST}/library/app:both");
    let served = |image: &Image| cluster.registry.blob_bytes_served(&image.layers()[0].digest);
    at_mirror(&cluster, &["warm", &name]).expect(0);
    assert_eq!((served(&near), served(&far)), (200_000, 0));
    let list = at_mirror(&cluster, &["ls", "--json"]).json();
    assert_eq!(
        (names(&list), &list["images"][0]["is_complete"]),
        (vec![&*name], &json!(true))
    );
    let missing = at_mirror(&cluster, &["warm", &name, "--platform", "linux/s390x"]).expect(1);
    assert!(
        missing
            .stdout
            .contains("it does not exist for linux/s390x, only for linux/"),
        "{}",
        missing.stdout
    );
    at_mirror(&cluster, &["warm", &name, "--platform", "linux"]).expect(64);
    at_mirror(&cluster, &["warm", &name, "--all-platforms"]).expect(0);
    assert_eq!((served(&near), served(&far)), (200_000, 200_000));
}

#[test]
fn a_private_image_is_reported_with_what_to_do() {
    let cluster = Cluster::guarded(site(1), |_| RegistryAuth::Htpasswd, |_| {});
    let image = image();
    cluster.registry.push(&image);
    let refused = at_mirror(&cluster, &["warm", &image.reference(HOST)]).expect(1);
    assert!(
        refused.stdout.contains("answered 401") && refused.stdout.contains("--credentials"),
        "{}",
        refused.stdout
    );
}

#[test]
fn the_sites_own_credentials_warm_what_is_private() {
    let guarded = |options: &mut ClusterOptions| {
        let file = options.mirror.authority_key.with_file_name("upstream-password");
        fs::write(&file, format!("{USER}:{PASSWORD}\n")).expect("writing the credentials");
        let credentials = format!("{HOST}=file:{}", file.display());
        let flags = ["--credentials", &credentials, "--allow-plain-credentials", "true"];
        options.mirror.extra_args.extend(flags.map(str::to_owned));
    };
    let cluster = Cluster::guarded(site(2), |_| RegistryAuth::Htpasswd, guarded);
    let image = image();
    cluster.registry.push(&image);
    at_mirror(&cluster, &["warm", "--peers", &image.reference(HOST)]).expect(0);
    pull_everywhere(&cluster, &image);
    for blob in image.blobs() {
        assert_eq!(cluster.registry.blob_bytes_served(&blob.digest), blob.size);
    }
}

#[test]
fn a_peer_without_room_leaves_what_it_was_to_have_ahead() {
    let cluster = Cluster::cold_with(site(1), |options| {
        let quota = ["--cache-quota", "2Mi"].map(str::to_owned);
        options.peer.extra_args.extend(quota);
    });
    let (large, small) = (
        Image::new("library/large", "v1").layer_bytes(&[6 * MIB]),
        Image::new("library/small", "v1").layer_bytes(&[MIB]),
    );
    cluster.registry.push(&large);
    cluster.registry.push(&small);
    let names_of = [large.reference(HOST), small.reference(HOST)];
    at_mirror(&cluster, &["warm", "--peers", &names_of[0], &names_of[1]]).expect(0);
    until("the small one is there", || {
        let list = at_peer(&cluster, 0, &["ls", "--json"]).expect(0).json();
        let images = list["images"].as_array().expect("images");
        images
            .iter()
            .any(|image| image["name"] == json!(names_of[1]) && image["is_complete"] == json!(true))
    });
    let log = cluster.peers[0].log_text();
    assert!(
        log.contains(&format!("{} is not fetched ahead: there is no room", names_of[0])),
        "{log}"
    );
}

#[test]
fn what_peers_were_warmed_with_they_pull_from_themselves() {
    let mut cluster = Cluster::cold(site(2));
    let image = image();
    cluster.registry.push(&image);
    let name = image.reference(HOST);
    let warmed = at_mirror(&cluster, &["warm", "--peers", &name]).expect(0);
    assert!(
        warmed.stdout.contains("the scheduler was told") && warmed.stdout.contains("piecemeal status"),
        "{}",
        warmed.stdout
    );
    for node in 0..2 {
        until("the peer has it", || {
            let list = at_peer(&cluster, node, &["ls", "--json"]).expect(0).json();
            names(&list) == [&*name] && list["images"][0]["is_complete"] == json!(true)
        });
    }
    for blob in image.blobs() {
        assert_eq!(
            cluster.registry.blob_bytes_served(&blob.digest),
            blob.size,
            "once over the WAN"
        );
    }
    cluster.mirror.kill();
    cluster.site.block_wan();
    pull_everywhere(&cluster, &image);
    let alone = at_peer(&cluster, 0, &["warm", "--peers", &name]).expect(1);
    assert!(
        alone.stderr.contains("this mirror has no scheduler"),
        "{}",
        alone.stderr
    );
}

#[test]
fn one_warms_at_a_time_and_who_leaves_makes_room() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(20).lan_mbit(400));
    let image = Image::new("library/app", "v1").layer_bytes(&[12 * MIB]);
    cluster.registry.push(&image);
    let name = image.reference(HOST);
    let mut first = command(cluster.site.mirror(), &["warm", &name])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting the binary");
    let mut said = String::new();
    let mut stdout = BufReader::new(first.stdout.take().expect("it is piped"));
    stdout.read_line(&mut said).expect("its first line");
    assert!(said.starts_with(&format!("{name}: sha256:")), "{said}");
    let second = at_mirror(&cluster, &["warm", &name]).expect(1);
    assert!(
        second.stderr.contains("another warming is under way"),
        "{}",
        second.stderr
    );
    first.kill().expect("killing it");
    first.wait().expect("waiting for it");
    until("there is room", || {
        at_mirror(&cluster, &["warm", &name]).code == Some(0)
    });
    assert_eq!(
        cluster.registry.blob_bytes_served(&image.layers()[0].digest),
        image.layers()[0].size
    );
}

/// On the mirror's machine, with all that it takes.
fn admin(cluster: &Cluster, method: &'static str, target: &str) -> Response {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 65013));
    let request = Request::new(method, address, target).header("Piecemeal-Admin", "1");
    request.send_from(cluster.site.mirror()).expect("an answer")
}

#[test]
fn only_who_is_on_the_machine_and_means_it_is_answered() {
    let cluster = Cluster::cold(site(1));
    let (near, far) = (
        SocketAddr::from((Ipv4Addr::LOCALHOST, 65013)),
        SocketAddr::from((MIRROR_IP, 65013)),
    );
    assert_eq!(admin(&cluster, "GET", "/cache").status, 200);
    let targets = [
        ("GET", "/cache"),
        ("GET", "/cache/item?name=alpine"),
        ("DELETE", "/cache/item?name=alpine"),
        ("POST", "/cache/verify"),
        ("POST", "/cache/warm"),
    ];
    for (method, target) in targets {
        let meant = |address| Request::new(method, address, target).header("Piecemeal-Admin", "1");
        let elsewhere = meant(far).send_from(cluster.site.node(0)).expect("an answer");
        assert_eq!(elsewhere.status, 403, "{target}");
        assert!(
            elsewhere.text().contains("run `piecemeal cache` there"),
            "{}",
            elsewhere.text()
        );
        let by_address = meant(far).send_from(cluster.site.mirror()).expect("an answer");
        assert_eq!(by_address.status, 403, "{target}");
        let unmeant = Request::new(method, near, target).send_from(cluster.site.mirror());
        assert_eq!(unmeant.expect("an answer").status, 403, "{target}");
        let rebound = meant(near).header("Host", "rebound.example:65013");
        assert_eq!(
            rebound.send_from(cluster.site.mirror()).expect("an answer").status,
            403,
            "{target}"
        );
    }
    assert_eq!(
        cluster.mirror.admin("/readyz").status,
        200,
        "the rest of the port is as before"
    );
    let large = Request::new("POST", near, "/cache/warm").header("Piecemeal-Admin", "1");
    let large = large.body(&vec![b' '; 2 * MIB]).send_from(cluster.site.mirror());
    assert_eq!(large.expect("an answer").status, 413);
    let remote = run(cluster.site.node(0), &["ls", "--admin", "http://10.88.0.2:65013"]).expect(1);
    assert!(
        remote.stderr.contains("only clients on this machine"),
        "{}",
        remote.stderr
    );
}
