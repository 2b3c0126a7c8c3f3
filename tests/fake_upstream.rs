//! The hostile registry of the end-to-end tests: a test that it is meant to fail must fail for the reason given.

mod support;

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Instant,
};

use support::{Behaviour, FakeUpstream, Image, Request, Response};

#[test]
fn it_tells_the_truth_until_told_otherwise() {
    let story = Story::new();
    let bytes = story.layer();

    assert_eq!(story.get(None).body, bytes);
    for (range, expected) in [
        ("bytes=10-19", &bytes[10..20]),
        ("bytes=99000-", &bytes[99_000..]),
        ("bytes=-5", &bytes[99_995..]),
    ] {
        let part = story.get(Some(range));
        assert_eq!((part.status, part.body.as_slice()), (206, expected), "{range}");
    }
    assert_eq!(story.get(Some("bytes=100000-")).status, 416);
    assert_eq!(story.requests(), 5);
    assert_eq!(story.upstream.body_bytes(story.digest()), 100_000 + 10 + 1000 + 5);

    let manifest = Request::head(story.upstream.address(), "/v2/library/app/manifests/v1");
    let manifest = manifest.header("Authorization", "Bearer secret").send().unwrap();
    assert_eq!(
        manifest.headers.get("docker-content-digest"),
        Some(story.image.digest())
    );
    assert_eq!(
        story.upstream.recorded().last().unwrap().headers.get("authorization"),
        Some("Bearer secret")
    );
    assert_eq!(
        Request::get(story.upstream.address(), "/v2/library/app/manifests/v2")
            .send()
            .unwrap()
            .status,
        404
    );
}

#[test]
fn it_misframes_bodies() {
    let story = Story::new();
    let bytes = story.layer();

    story.behave(Behaviour::NoContentLength);
    let unframed = story.get(None);
    assert!(unframed.headers.get("content-length").is_none() && unframed.body == bytes);

    story.behave(Behaviour::WrongContentLength(10));
    let short = story.get(None);
    assert!(!short.complete && short.body == bytes);

    story.behave(Behaviour::WrongContentLength(-10));
    let truncated = story.get(None);
    assert!(truncated.complete && truncated.body == bytes[..99_990]);

    story.behave(Behaviour::ShortBody { at: 40_000, times: 2 });
    for _ in 0..2 {
        let cut = story.get(None);
        assert!(!cut.complete && cut.body == bytes[..40_000]);
    }
    assert!(story.get(None).complete);

    story.behave(Behaviour::IgnoreRange);
    let whole = story.get(Some("bytes=5-"));
    assert_eq!((whole.status, whole.body.len()), (200, 100_000));
}

#[test]
fn it_sends_other_things_than_the_blob() {
    let story = Story::new();
    let bytes = story.layer();

    story.behave(Behaviour::Html200);
    assert_eq!(
        (story.get(None).status, story.get(None).headers.get("content-type")),
        (200, Some("text/html"))
    );

    story.behave(Behaviour::Empty200);
    assert_eq!((story.get(None).status, story.get(None).body.len()), (200, 0));

    story.behave(Behaviour::Status(429));
    assert_eq!(story.get(None).status, 429);

    story.behave(Behaviour::Redirect("http://elsewhere.test/blob".to_owned()));
    let redirect = story.get(None);
    assert_eq!(
        (redirect.status, redirect.headers.get("location")),
        (307, Some("http://elsewhere.test/blob"))
    );

    story.behave(Behaviour::LieFrom {
        fraction: 0.9,
        times: 2,
    });
    assert_eq!(story.get(Some("bytes=0-89999")).body, bytes[..90_000], "below the lie");
    let lie = story.get(None);
    assert_eq!(lie.body[..90_000], bytes[..90_000]);
    assert!(
        lie.complete
            && lie.body[90_000..]
                .iter()
                .zip(&bytes[90_000..])
                .all(|(sent, true_byte)| sent != true_byte)
    );
    assert_ne!(story.get(Some("bytes=95000-")).body, bytes[95_000..]);
    assert_eq!(story.get(None).body, bytes);
}

#[test]
fn it_stalls_and_goes_on() {
    let story = Story::new();
    story.behave(Behaviour::Stall { at: 50_000, seconds: 1 });
    let asked = Instant::now();

    assert_eq!(story.get(None).body, story.layer());

    assert!(
        (1.0..1.5).contains(&asked.elapsed().as_secs_f64()),
        "it took {:?}",
        asked.elapsed()
    );
}

#[test]
fn it_challenges_those_without_its_token() {
    let story = Story::new();
    story.upstream.require_token("t0k3n", "http://elsewhere.test/token");
    let blob = format!("/v2/library/app/blobs/{}", story.digest());
    let get = |target: &str| Request::get(story.upstream.address(), target);

    let challenged = get(&blob).header("Authorization", "Bearer other").send().unwrap();
    assert_eq!(challenged.status, 401);
    assert_eq!(
        challenged.headers.get("www-authenticate"),
        Some(r#"Bearer realm="http://elsewhere.test/token",service="fake",scope="repository:library/app:pull""#)
    );
    assert_eq!(get("/token").send().unwrap().text(), r#"{"token":"t0k3n"}"#);
    assert_eq!(
        get(&blob).header("Authorization", "Bearer t0k3n").send().unwrap().body,
        story.layer()
    );
}

/// A fake upstream on loopback, with one blob to tell stories about.
struct Story {
    image: Image,
    upstream: FakeUpstream,
}

impl Story {
    fn new() -> Self {
        let image = Image::new("library/app", "v1").layer_bytes(&[100_000]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening on loopback");
        Self {
            upstream: FakeUpstream::serve(listener, &image),
            image,
        }
    }

    fn digest(&self) -> &str {
        &self.image.layers()[0].digest
    }

    fn layer(&self) -> &[u8] {
        &self.image.layers()[0].bytes
    }

    fn behave(&self, behaviour: Behaviour) {
        self.upstream.behave(self.digest(), behaviour);
    }

    fn requests(&self) -> usize {
        self.upstream.requests(self.digest())
    }

    fn get(&self, range: Option<&str>) -> Response {
        let request = Request::get(
            self.upstream.address(),
            &format!("/v2/library/app/blobs/{}", self.digest()),
        );
        let request = range
            .into_iter()
            .fold(request, |request, range| request.header("Range", range));
        request.send().expect("the fake upstream answers")
    }
}
