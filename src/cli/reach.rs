//! `piecemeal reach`: whether registries can be reached from here, and if not, what is in the way. Each cause has a message of its
//! own, since another person has to mend it.

use std::{error::Error, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use piecemeal_upstream::UpstreamConfig;
use reqwest::{Certificate, Client, StatusCode};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use url::Url;

use super::http::{http_client, runtime};
use crate::config::{Problems, read_upstreams};

#[derive(Args, Debug)]
pub(in crate::cli) struct ReachArgs {
    /// A registry and its URL; may be repeated
    #[arg(long, value_name = "NAME=URL", required = true)]
    upstream: Vec<String>,
    /// CA certificates to trust in addition to the system's, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Result of the check of an endpoint.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Good(&'static str),
    Bad(String),
}

pub(super) fn run(args: &ReachArgs) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    let upstreams = read_upstreams(&mut problems, args.upstream.clone());
    let (upstreams, _) = problems.finish(upstreams)?;
    let ca = match &args.ca {
        Some(path) => {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Certificate::from_pem_bundle(&pem).with_context(|| format!("{} is no PEM", path.display()))?
        }
        None => Vec::new(),
    };
    let client = http_client(|client| {
        let client = client
            .timeout(ANSWER_TIME_MAX)
            .redirect(reqwest::redirect::Policy::none());
        client.tls_certs_merge(ca.clone())
    })?;
    let bad = runtime()?.block_on(async {
        let mut bad = 0;
        for upstream in &upstreams {
            bad += look_at(&client, upstream).await;
        }
        bad
    });
    if bad > 0 {
        bail!("{bad} endpoints cannot be pulled from");
    }
    Ok(())
}

/// The number of its bad endpoints.
async fn look_at(client: &Client, upstream: &UpstreamConfig) -> usize {
    let mut bad = 0;
    for url in &upstream.urls {
        if upstream.name.starts_with('*') {
            say!(
                "?     {}: a pattern for many registries; name one of them to check it",
                upstream.name
            );
            continue;
        }
        match ask(client, url).await {
            Found::Good(how) => say!("ok    {} at {url}: {how}", upstream.name),
            Found::Bad(why) => {
                bad += 1;
                say!("WRONG {} at {url}: {why}", upstream.name);
            }
        }
    }
    bad
}

async fn ask(client: &Client, url: &Url) -> Found {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Found::Bad("the URL names no host".to_owned());
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<_> = match timeout(DNS_TIME_MAX, lookup_host((bare, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            return Found::Bad(format!(
                "DNS: the name is not known ({error}); see the resolver of this machine or pod"
            ));
        }
        Err(_) => return Found::Bad(format!("DNS: no answer within {} s", DNS_TIME_MAX.as_secs())),
    };
    match timeout(CONNECT_TIME_MAX, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            return Found::Bad(format!(
                "TCP: {error}; a firewall or a wrong port, or a proxy is needed ({addresses:?})"
            ));
        }
        Err(_) => {
            return Found::Bad(format!(
                "TCP: no answer within {} s; a firewall drops it, or a proxy is needed ({addresses:?})",
                CONNECT_TIME_MAX.as_secs()
            ));
        }
    }
    let Ok(ping) = url.join("/v2/") else {
        return Found::Bad("the URL cannot be requested".to_owned());
    };
    match client.get(ping).send().await {
        Ok(answer) => judge(answer.status()),
        Err(error) => Found::Bad(why(&error)),
    }
}

/// The meaning of a registry's answer to an anonymous `GET /v2/`.
fn judge(status: StatusCode) -> Found {
    match status.as_u16() {
        200 => Found::Good("it answers"),
        401 => Found::Good("it answers, and asks for credentials"),
        403 => {
            Found::Bad("HTTP 403: the registry refuses this address; add it to the registry's access list".to_owned())
        }
        404 => Found::Bad("HTTP 404: no registry of the OCI protocol answers there".to_owned()),
        429 => Found::Bad("HTTP 429: the registry limits this address at the moment".to_owned()),
        status => Found::Bad(format!(
            "HTTP {status}: the registry has a failure, or a proxy in between answers for it"
        )),
    }
}

/// The innermost cause tells whether the certificate or the line is to blame.
fn why(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    if text.contains("certificate") {
        format!("TLS: {text}; if the registry's authority is a private one, give it with --ca")
    } else if error.is_timeout() {
        format!("HTTP: no answer within {} s", ANSWER_TIME_MAX.as_secs())
    } else {
        format!("HTTP: {text}")
    }
}

const DNS_TIME_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_says_whose_it_is_to_mend() {
        let said = |status: u16| judge(StatusCode::from_u16(status).unwrap());
        assert!(matches!(said(200), Found::Good(_)));
        assert!(matches!(said(401), Found::Good(_)));
        for (status, part) in [
            (403, "access list"),
            (404, "no registry"),
            (429, "limits"),
            (503, "has a failure"),
            (302, "in between"),
        ] {
            assert!(
                matches!(said(status), Found::Bad(text) if text.contains(part)),
                "{status}"
            );
        }
    }
}
