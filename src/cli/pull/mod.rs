//! `piecemeal pull`: pulls an image as a container runtime does, checks every byte, and keeps none.

mod plan;
mod registry;
mod sources;
mod transfer;

use std::time::{Duration, Instant};

use clap::Args;
use piecemeal_proto::{Digest, ImageReference, ParsePlatformError, Platform};
use serde_json::{Value, json};
use url::Url;

use self::{
    plan::resolve,
    registry::Registry,
    sources::BytesBySource,
    transfer::{Transferred, transfer},
};
use super::{error::WrongArgumentError, http::runtime, status};

#[derive(Args, Debug)]
pub(super) struct PullArgs {
    /// The image, such as localhost:65001/docker.io/library/alpine:3.20
    image: String,
    /// The platform of a multi-platform image [linux and this machine's architecture]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// The number of pulls, one after the other
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Bypass Piecemeal: pull from the registry that the image's path names
    #[arg(long)]
    direct: bool,
    /// Like --direct, from the registry at this URL
    #[arg(long, value_name = "URL")]
    direct_url: Option<Url>,
    /// Use plain HTTP with a registry that is not on this machine
    #[arg(long)]
    plain_http: bool,
    /// The peer's admin port, queried for the sources of the bytes [http://127.0.0.1:65003, for an image on localhost]
    #[arg(long, value_name = "URL")]
    admin: Option<Url>,
    /// Print one JSON object for each pull
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: PullArgs) -> anyhow::Result<()> {
    let target = PullTarget::new(&args)?;
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let registry = Registry::new(target.base.clone(), &target.image, target.host.clone())?;
        for _ in 0..args.repeat {
            let pulled = pull(&target, &registry, !args.json).await;
            if args.json {
                println!("{}", target.to_json(&pulled));
            }
            let pulled = pulled?;
            if !args.json {
                print!("{}", target.to_text(&pulled));
            }
        }
        Ok(())
    });
    runtime.shutdown_background();
    done
}

/// Target of a pull: the image, and the registry that it is pulled from.
struct PullTarget {
    /// As the caller wrote it.
    name: String,
    image: ImageReference,
    platform: Platform,
    base: Url,
    /// The registry, for messages.
    host: String,
    admin: Option<Url>,
}

impl PullTarget {
    fn new(args: &PullArgs) -> Result<Self, WrongArgumentError> {
        let wrong = WrongArgumentError;
        let mut image: ImageReference = args
            .image
            .parse()
            .map_err(|error| wrong(format!("{:?} names no image: {error}", args.image)))?;
        let is_direct = args.direct || args.direct_url.is_some();
        let is_endpoint = is_loopback(&image.registry)
            || image
                .registry
                .starts_with(|first: char| first.is_ascii_digit() || first == '[');
        let is_here = is_loopback(&image.registry) && !is_direct;
        if is_direct && is_endpoint {
            match without_endpoint(&image) {
                Some(named) => image = named,
                // The URL says where to go.
                None if args.direct_url.is_some() => {}
                None => {
                    return Err(wrong(format!(
                        "{:?} names no registry after {}",
                        args.image, image.registry
                    )));
                }
            }
        }
        let scheme = if args.plain_http || is_loopback(&image.registry) {
            "http"
        } else {
            "https"
        };
        let host = if image.registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            &image.registry
        };
        let base: Url = match &args.direct_url {
            Some(url) if matches!(url.scheme(), "http" | "https") && url.path() == "/" => url.clone(),
            Some(url) => return Err(wrong(format!("{url} is not http://HOST or https://HOST"))),
            None => format!("{scheme}://{host}")
                .parse()
                .map_err(|error| wrong(format!("{host}: {error}")))?,
        };
        let default_admin = || is_here.then(|| status::PEER_ADMIN.parse().expect("the default URLs are URLs"));
        Ok(Self {
            name: args.image.clone(),
            host: base.host_str().map_or_else(String::new, |host| match base.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            }),
            platform: match &args.platform {
                Some(text) => text
                    .parse()
                    .map_err(|error: ParsePlatformError| wrong(error.to_string()))?,
                None => Platform::this_machine(),
            },
            image,
            base,
            admin: args.admin.clone().or_else(default_admin),
        })
    }

    fn to_json(&self, pulled: &anyhow::Result<Pulled>) -> Value {
        match pulled {
            Ok(pulled) => json!({
                "image": self.name,
                "digest": pulled.digest,
                "bytes": pulled.transferred.bytes,
                "blobs": pulled.transferred.blobs,
                "first_byte_seconds": pulled.first_byte.map(|time| time.as_secs_f64()),
                "total_seconds": pulled.total.as_secs_f64(),
                "bytes_by_source": pulled.sources.as_ref().map(BytesBySource::to_json),
            }),
            Err(error) => json!({ "image": self.name, "error": crate::cli::error::describe(error) }),
        }
    }

    fn to_text(&self, pulled: &Pulled) -> String {
        let Transferred { bytes, blobs, .. } = pulled.transferred;
        let seconds = pulled.total.as_secs_f64();
        let first = pulled.first_byte.unwrap_or(pulled.total).as_secs_f64();
        let mut text = format!("{}\n  {}\n", self.name, pulled.digest);
        text += &format!(
            "  {} in {blobs} blobs, every digest right\n",
            status::format_bytes(bytes)
        );
        text += &format!("  first byte after {first:.2} s, everything after {seconds:.2} s\n");
        if let Some(sources) = &pulled.sources {
            text += &format!("  from: {sources}\n");
        }
        text
    }
}

struct Pulled {
    digest: Digest,
    transferred: Transferred,
    /// From the beginning to the first byte of a blob.
    first_byte: Option<Duration>,
    total: Duration,
    sources: Option<BytesBySource>,
}

async fn pull(target: &PullTarget, registry: &Registry, show_progress: bool) -> anyhow::Result<Pulled> {
    let before = sources::read(target.admin.as_ref()).await;
    let started = Instant::now();
    let resolved = resolve(registry, &target.image, &target.platform).await?;
    let transferred = transfer(registry, &resolved.blobs, show_progress).await?;
    let total = started.elapsed();
    let after = sources::read(target.admin.as_ref()).await;
    Ok(Pulled {
        digest: resolved.digest,
        first_byte: transferred.first_byte.map(|at| at.duration_since(started)),
        transferred,
        total,
        sources: before.zip(after).map(|(before, after)| after.since(&before)),
    })
}

/// The image that a name like `localhost:65001/docker.io/library/alpine:3.20` means, in its own registry.
fn without_endpoint(image: &ImageReference) -> Option<ImageReference> {
    let (host, repository) = image.repository.as_str().split_once('/')?;
    let named = host.contains('.') && piecemeal_proto::is_registry(host);
    let repository = piecemeal_proto::full_repository(host, repository).parse().ok()?;
    named.then(|| ImageReference {
        registry: host.to_owned(),
        repository,
        reference: image.reference.clone(),
    })
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => registry,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(image: &str, change: impl FnOnce(&mut PullArgs)) -> Result<(String, String), String> {
        let mut args = PullArgs {
            image: image.to_owned(),
            platform: None,
            repeat: 1,
            direct: false,
            direct_url: None,
            plain_http: false,
            admin: None,
            json: false,
        };
        change(&mut args);
        let target = PullTarget::new(&args).map_err(|error| error.to_string())?;
        Ok((target.base.to_string(), target.image.repository.to_string()))
    }

    fn at(base: &str, repository: &str) -> Result<(String, String), String> {
        Ok((base.to_owned(), repository.to_owned()))
    }

    #[test]
    fn loopback_is_plain_http_and_everything_else_is_not() {
        assert_eq!(
            plan("localhost:65001/ghcr.io/a/b", |_| {}),
            at("http://localhost:65001/", "ghcr.io/a/b")
        );
        assert_eq!(plan("127.0.0.1:5000/a", |_| {}), at("http://127.0.0.1:5000/", "a"));
        assert_eq!(plan("[::1]:65001/a", |_| {}), at("http://[::1]:65001/", "a"));
        assert_eq!(
            plan("alpine", |_| {}),
            at("https://registry-1.docker.io/", "library/alpine")
        );
        assert_eq!(
            plan("10.0.0.1:65011/ghcr.io/a", |args| args.plain_http = true),
            at("http://10.0.0.1:65011/", "ghcr.io/a")
        );
    }

    #[test]
    fn direct_goes_where_the_path_says() {
        let direct = |args: &mut PullArgs| args.direct = true;
        assert_eq!(
            plan("localhost:65001/docker.io/library/alpine", direct),
            at("https://registry-1.docker.io/", "library/alpine")
        );
        assert_eq!(plan("ghcr.io/a/b", direct), at("https://ghcr.io/", "a/b"));
        assert!(plan("localhost:65001/library/alpine", direct).is_err());
        let url = |args: &mut PullArgs| args.direct_url = Some("http://10.99.0.2:5000".parse().unwrap());
        assert_eq!(
            plan("localhost:65001/origin.test/team/app:1", url),
            at("http://10.99.0.2:5000/", "team/app")
        );
        assert_eq!(
            plan("localhost:65001/team/app:1", url),
            at("http://10.99.0.2:5000/", "team/app")
        );
    }
}
