//! `piecemeal status`: the daemons' status, as text for people.
//!
//! Daemons report their status as JSON, whose fields differ between releases. Every field is shown: lists of objects as tables, the
//! rest as lines.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use reqwest::Client;
use serde_json::{Map, Value};
use url::Url;

use super::http::{http_client, runtime};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The admin port to query; may be repeated [peer, mirror and scheduler of this machine]
    #[arg(long, value_name = "URL")]
    admin: Vec<Url>,
    /// Print one JSON object, with each daemon's answer under its role
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let defaults = || {
        DEFAULT_ADMINS
            .iter()
            .map(|url| url.parse().expect("the default URLs are URLs"))
            .collect()
    };
    let urls: Vec<Url> = if args.admin.is_empty() {
        defaults()
    } else {
        args.admin.clone()
    };
    let (answers, silent) = runtime()?.block_on(ask_all(&urls))?;
    // Among the defaults, those that do not run here are no news.
    if answers.is_empty() || (!args.admin.is_empty() && !silent.is_empty()) {
        let hint = if args.admin.is_empty() {
            "\nno daemon of Piecemeal runs here; start one, or name another admin port with --admin"
        } else {
            ""
        };
        bail!("no answer from {}{hint}", silent.join(", "));
    }
    if args.json {
        let mut roles = Map::new();
        for (url, value) in answers {
            let role = value["role"].as_str().unwrap_or(url.as_str()).to_owned();
            let name = if roles.contains_key(&role) {
                url.to_string()
            } else {
                role
            };
            roles.insert(name, value);
        }
        println!("{}", Value::Object(roles));
        return Ok(());
    }
    let texts: Vec<String> = answers.iter().map(|(url, value)| render(url.as_str(), value)).collect();
    print!("{}", texts.join("\n"));
    Ok(())
}

type Answers = (Vec<(Url, Value)>, Vec<String>);

async fn ask_all(urls: &[Url]) -> anyhow::Result<Answers> {
    let client = http_client(|client| client.timeout(ASK_TIME_MAX).no_proxy())?;
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for url in urls {
        match ask(&client, url).await {
            Ok(value) => answers.push((url.clone(), value)),
            Err(error) => silent.push(format!("{url} ({})", super::error::describe(&error))),
        }
    }
    Ok((answers, silent))
}

async fn ask(client: &Client, url: &Url) -> anyhow::Result<Value> {
    let answer = client
        .get(url.join("/status")?)
        .send()
        .await
        .map_err(reqwest::Error::without_url)?;
    let answer = answer.error_for_status().map_err(reqwest::Error::without_url)?;
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}

/// One daemon's answer as text.
pub(super) fn render(place: &str, value: &Value) -> String {
    let Value::Object(fields) = value else {
        return format!("{place}: {value}\n");
    };
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let version = text("version").map(|version| format!(" {version}")).unwrap_or_default();
    let mut out = format!("{}{version} at {place}\n", text("role").unwrap_or("daemon"));
    let rest = fields
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "role" | "version"));
    let (tables, lines): (Vec<_>, Vec<_>) = rest.partition(|(_, value)| is_table(value));
    for (key, value) in lines {
        out += &format!("  {}: {}\n", words(key), line(key, value));
    }
    for (key, value) in tables {
        out += &format!(
            "  {}:\n{}",
            words(key),
            table(value.as_array().map_or(&[][..], Vec::as_slice))
        );
    }
    out
}

fn is_table(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|rows| !rows.is_empty() && rows.iter().all(Value::is_object))
}

/// Rows of objects, under the keys of the first.
fn table(rows: &[Value]) -> String {
    let Some(Value::Object(first)) = rows.first() else {
        return String::new();
    };
    let keys: Vec<&String> = first.keys().collect();
    let mut cells: Vec<Vec<String>> = vec![keys.iter().map(|key| words(key).to_uppercase()).collect()];
    cells.extend(
        rows.iter()
            .map(|row| keys.iter().map(|key| line(key, &row[key.as_str()])).collect()),
    );
    let width = |column: usize| {
        cells
            .iter()
            .map(|row: &Vec<String>| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..keys.len()).map(width).collect();
    let pad = |(cell, &width): (&String, &usize)| format!("{cell:<width$}");
    let row = |cells: &Vec<String>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(pad).collect();
        format!("    {}\n", padded.join("  ").trim_end())
    };
    cells.iter().map(row).collect()
}

/// A value in one line, in the unit that its key names.
fn line(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
        Value::String(text) => shorten(text),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(bytes), _) if key.contains("bytes") => format_bytes(bytes),
            (Some(percent), _) if key.ends_with("percent") => format!("{percent} %"),
            (_, Some(seconds)) if key.ends_with("seconds") => format!("{seconds:.1} s"),
            _ => number.to_string(),
        },
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| line(key, item)).collect();
            if items.is_empty() {
                "-".to_owned()
            } else {
                items.join(", ")
            }
        }
        Value::Object(fields) => {
            // Under `bytes`, every number is one of bytes.
            let in_bytes = key == "bytes";
            let item = |(name, value): (&String, &Value)| {
                format!("{} {}", words(name), line(if in_bytes { key } else { name }, value))
            };
            let items: Vec<String> = fields.iter().map(item).collect();
            items.join(", ")
        }
    }
}

fn words(key: &str) -> String {
    key.strip_suffix("_bytes")
        .or_else(|| key.strip_suffix("_percent"))
        .unwrap_or(key)
        .replace('_', " ")
}

/// A digest is known by its first twelve digits.
pub(super) fn shorten(text: &str) -> String {
    match text.parse::<piecemeal_proto::Digest>() {
        Ok(digest) => format!("{}:{}", digest.algorithm().name(), &digest.hex()[..12]),
        Err(_) => text.to_owned(),
    }
}

/// In the largest decimal unit that leaves a digit before the point.
pub(super) fn format_bytes(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000 => return format!("{bytes} B"),
        1_000..1_000_000 => (1_000, "kB"),
        1_000_000..1_000_000_000 => (1_000_000, "MB"),
        _ => (1_000_000_000, "GB"),
    };
    // Tenths, without floats.
    let tenths = bytes / (unit / 10);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

pub(super) const PEER_ADMIN: &str = "http://127.0.0.1:65003";
const DEFAULT_ADMINS: [&str; 3] = [PEER_ADMIN, "http://127.0.0.1:65013", "http://127.0.0.1:65014"];
const ASK_TIME_MAX: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_are_shown_in_decimal_units() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (3_640_000, "3.6 MB"),
            (20_000_000_000, "20.0 GB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    #[test]
    fn a_status_is_lines_and_then_tables() {
        let digest = piecemeal_proto::Digest::of(b"layer");
        let value = json!({
            "role": "scheduler",
            "version": "0.1.0",
            "swarms": [{ "digest": digest.to_string(), "blob_bytes": 5_000_000, "completion_percent": 40 }],
            "bytes": { "from_peers": 1500, "from_upstream": 0 },
            "members": [],
        });
        let text = render(PEER_ADMIN, &value);
        let short = &digest.to_string()[..19];
        assert!(
            text.starts_with("scheduler 0.1.0 at http://127.0.0.1:65003\n"),
            "{text}"
        );
        assert!(
            text.contains("  bytes: from peers 1.5 kB, from upstream 0 B\n"),
            "{text}"
        );
        assert!(text.contains("  members: -\n"), "{text}");
        let head = text.lines().find(|line| line.contains("COMPLETION")).unwrap();
        assert!(["BLOB", "DIGEST"].iter().all(|name| head.contains(name)), "{text}");
        assert!(
            text.lines()
                .any(|line| line.contains(short) && line.contains("5.0 MB") && line.contains("40 %")),
            "{text}"
        );
    }
}
