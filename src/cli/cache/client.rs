//! Client of a daemon's admin port.
//!
//! Invariant: an answer and each of its lines have a limit in bytes, and a pause between lines one in time.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use url::Url;

use crate::{
    admin::ADMIN_HEADER,
    cli::{error::WrongArgumentError, http::http_client},
};

/// The daemon to ask.
#[derive(Args, Debug)]
pub(super) struct AdminArgs {
    /// The admin port of a mirror or peer on this machine
    #[arg(long, value_name = "URL", default_value = MIRROR_ADMIN)]
    pub(super) admin: Url,
}

const MIRROR_ADMIN: &str = "http://127.0.0.1:65013";

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest pause between two lines of a daemon's answer. The daemon gives up on a blob that stands still for half of that.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// The most bytes of one line of an answer, or of a short answer as a whole.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// A daemon, as its admin port shows it.
pub(super) struct Admin {
    url: Url,
    client: Client,
}

impl Admin {
    pub(super) fn new(args: &AdminArgs) -> anyhow::Result<Self> {
        let url = args.admin.clone();
        if url.scheme() != "http" || url.host_str().is_none() {
            return Err(WrongArgumentError(format!("--admin {url}: an admin port is http://HOST:PORT")).into());
        }
        let client = http_client(|client| {
            client
                .connect_timeout(CONNECT_TIME_MAX)
                .read_timeout(SILENCE_MAX)
                .no_proxy()
        })?;
        Ok(Self { url, client })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// `name`: what of it is asked for.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        name: Option<&str>,
    ) -> anyhow::Result<T> {
        let mut url = self.url.join(path)?;
        if let Some(name) = name {
            url.query_pairs_mut().append_pair("name", name);
        }
        let mut answer = self.send(self.client.request(method, url)).await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                bail!("the answer of {} is too long", self.url);
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).with_context(|| format!("the answer of {} cannot be read", self.url))
    }

    /// Asks for what takes long.
    pub(super) async fn begin(&self, path: &str, request: &impl Serialize) -> anyhow::Result<Lines> {
        let url = self.url.join(path)?;
        let request = self.client.post(url).body(serde_json::to_vec(request)?);
        Ok(Lines {
            answer: self.send(request).await?,
            read: Vec::new(),
        })
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let sent = request.header(ADMIN_HEADER, "1").send().await;
        let answer = sent.map_err(|error| {
            let error = anyhow::Error::from(error.without_url());
            anyhow!(
                "no answer from {} ({})\nstart a mirror or peer on this machine, or name another port with --admin",
                self.url,
                crate::cli::describe(&error)
            )
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.unwrap_or_default();
        let said = serde_json::from_str::<Value>(&text).ok();
        let said = said.as_ref().and_then(|value| value["error"].as_str());
        match said {
            Some(said) => bail!("{said}"),
            None => bail!(
                "{} answered {status}; is a piecemeal mirror or peer of this release there?",
                self.url
            ),
        }
    }
}

/// An answer that comes line by line.
pub(super) struct Lines {
    answer: Response,
    read: Vec<u8>,
}

impl Lines {
    /// The next line as it is; `None` at the end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=end).collect();
                line.pop();
                return Ok(Some(String::from_utf8(line)?));
            }
            if self.read.len() > LINE_BYTES_MAX {
                bail!("a line of the answer is too long");
            }
            let chunk = self.answer.chunk().await.map_err(reqwest::Error::without_url);
            match chunk.context("the daemon broke off")? {
                Some(chunk) => self.read.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}
