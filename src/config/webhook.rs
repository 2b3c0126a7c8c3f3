//! Settings of the webhook.
//!
//! Invariant: every name of a Kubernetes object is well formed before the webhook starts.

use std::{collections::BTreeSet, path::PathBuf, time::SystemTime};

use piecemeal_webhook::{CertificateSource, CopyName, NameStyle, Naming, Registries, RequiresSecret, WebhookConfig};

use super::{
    DaemonSettings,
    field::{self, Text, Texts},
    problems::Problems,
    raw::RawWebhook,
};

impl RawWebhook {
    /// Checks everything; `None` has left a problem.
    pub(crate) fn validate(self, problems: &mut Problems) -> Option<DaemonSettings<WebhookConfig>> {
        let listen = field::address(problems, "listen", self.listen);
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let registries = registries(problems, self.registry, self.region);
        let style = field::choice(problems, "name_style", self.name_style, &STYLES);
        let peer_port = port(problems, "peer_port", self.peer_port);
        let requires_secret = field::choice(problems, "require_pull_secret", self.require_pull_secret, &REQUIREMENTS);
        let secret_name = problems
            .require("secret_name", self.secret_name)
            .and_then(|template| problems.check("secret_name", CopyName::parse(&template)));
        let keep_unrelated = field::choice(problems, "keep_unrelated", self.keep_unrelated, &SWITCH);
        let secrets_keep = field::duration(problems, "secrets_keep", self.secrets_keep);
        let secrets_namespaces = names(problems, "secrets_namespaces", self.secrets_namespaces);
        let excluded_namespaces = names(problems, "exclude_namespaces", self.exclude_namespaces);
        let namespace = name(problems, "namespace", self.namespace);
        let release = name(problems, "release", self.release);
        let configuration = name(problems, "webhook_configuration", self.webhook_configuration);
        let service = name(problems, "service", self.service);
        let hosts_config_map = match self.hosts_config_map {
            Some(text) => name(problems, "hosts_config_map", Some(text)),
            None => release.as_ref().map(|release| format!("{release}-hosts")),
        };
        let certificates = certificates(problems, self.certificates, self.certificates_dir);
        let certificate_announce = field::duration(problems, "certificate_announce", self.certificate_announce);
        let log = field::log_filter(problems, "log", self.log);
        let bound = [("listen", listen.as_slice()), ("admin_listen", admin_listen.as_slice())];
        field::no_port_twice(problems, &bound);

        let namespace = namespace?;
        let mut certificate_names = vec![format!("{}.{namespace}.svc", service?)];
        certificate_names.extend(self.certificate_name.unwrap_or_default());
        Some(DaemonSettings {
            config: WebhookConfig {
                listen: listen?,
                registries: registries?,
                naming: Naming {
                    style: style?,
                    peer_port: peer_port?,
                },
                requires_secret: requires_secret?,
                secret_name: secret_name?,
                keep_unrelated: keep_unrelated?,
                secrets_keep: secrets_keep?,
                secrets_namespaces: secrets_namespaces?,
                excluded_namespaces: excluded_namespaces?,
                namespace,
                release: release?,
                configuration: configuration?,
                hosts_config_map: hosts_config_map?,
                certificates: certificates?,
                certificate_names,
                certificate_announce: certificate_announce?,
                identity: identity(),
            },
            admin_listen: admin_listen?,
            log: log?,
        })
    }
}

fn registries(problems: &mut Problems, items: Texts, region: Text) -> Option<Registries> {
    let items = problems.require("registry", items.filter(|items| !items.is_empty()))?;
    match Registries::parse(&items, &region.unwrap_or_default()) {
        Ok(registries) => Some(registries),
        Err(texts) => {
            for text in texts {
                problems.add("registry", text);
            }
            None
        }
    }
}

pub(super) fn port(problems: &mut Problems, key: &str, text: Text) -> Option<u16> {
    let text = problems.require(key, text)?;
    let port = text.parse::<u16>().ok().filter(|port| *port != 0);
    problems.check(
        key,
        port.ok_or_else(|| format!("{text:?} is not a port: write a number from 1 to 65535")),
    )
}

fn names(problems: &mut Problems, key: &str, texts: Texts) -> Option<BTreeSet<String>> {
    let names: Vec<Option<String>> = texts
        .unwrap_or_default()
        .into_iter()
        .map(|text| name(problems, key, Some(text)))
        .collect();
    names.into_iter().collect()
}

/// An object's name.
fn name(problems: &mut Problems, key: &str, text: Text) -> Option<String> {
    let text = problems.require(key, text)?;
    let is_label = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if text.len() <= NAME_BYTES_MAX && text.split('.').all(is_label) {
        return Some(text);
    }
    problems.add(
        key,
        format!("{text:?} is no name of an object in Kubernetes: lower-case letters, digits, '-' and '.'"),
    );
    None
}

fn certificates(problems: &mut Problems, source: Text, dir: Text) -> Option<CertificateSource> {
    let is_own = field::choice(problems, "certificates", source, &[("own", true), ("files", false)])?;
    if !is_own {
        return field::folder(problems, "certificates_dir", dir).map(CertificateSource::Files);
    }
    if let Some(dir) = dir.map(PathBuf::from) {
        let text = format!("{} has an effect only with --certificates files", dir.display());
        problems.add("certificates_dir", text);
        return None;
    }
    Some(CertificateSource::Own)
}

/// The pod's name, and what no other process of that name has.
fn identity() -> String {
    let uname = rustix::system::uname();
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!(
        "{}_{:x}_{:x}",
        uname.nodename().to_string_lossy(),
        std::process::id(),
        since.as_nanos()
    )
}

const STYLES: [(&str, NameStyle); 3] = [
    ("rename", NameStyle::Rename),
    ("mirror", NameStyle::Mirror),
    ("localhost", NameStyle::Localhost),
];
const REQUIREMENTS: [(&str, RequiresSecret); 3] = [
    ("auto", RequiresSecret::Instances),
    ("true", RequiresSecret::Always),
    ("false", RequiresSecret::Never),
];
const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];
const NAME_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> RawWebhook {
        let text = |text: &str| Some(text.to_owned());
        RawWebhook {
            listen: text("0.0.0.0:65015"),
            admin_listen: text("0.0.0.0:65016"),
            registry: Some(vec!["docker.io".to_owned(), "cri-x".to_owned()]),
            name_style: text("rename"),
            peer_port: text("65001"),
            require_pull_secret: text("auto"),
            secret_name: text("acr-credential-{secret}-p2p"),
            keep_unrelated: text("false"),
            secrets_keep: text("24h"),
            namespace: text("piecemeal"),
            release: text("piecemeal"),
            webhook_configuration: text("piecemeal"),
            service: text("piecemeal-webhook"),
            certificates: text("own"),
            certificate_announce: text("60s"),
            log: text("info"),
            ..RawWebhook::default()
        }
    }

    fn problem(raw: RawWebhook) -> String {
        let mut problems = Problems::default();
        let read = raw.validate(&mut problems);
        problems.finish(read).unwrap_err().to_string()
    }

    #[test]
    fn good_settings_are_taken() {
        let mut problems = Problems::default();
        let read = good().validate(&mut problems).unwrap();
        assert_eq!(read.config.certificate_names, ["piecemeal-webhook.piecemeal.svc"]);
        assert_eq!(read.config.hosts_config_map, "piecemeal-hosts");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (
                RawWebhook {
                    registry: None,
                    ..good()
                },
                "registry",
            ),
            (
                RawWebhook {
                    registry: Some(vec!["https://x".to_owned()]),
                    ..good()
                },
                "registry",
            ),
            (
                RawWebhook {
                    peer_port: text("0"),
                    ..good()
                },
                "peer_port",
            ),
            (
                RawWebhook {
                    secret_name: text("x"),
                    ..good()
                },
                "secret_name",
            ),
            (
                RawWebhook {
                    namespace: text("Not_A_Name"),
                    ..good()
                },
                "namespace",
            ),
            (
                RawWebhook {
                    certificates: text("files"),
                    ..good()
                },
                "certificates_dir",
            ),
            (
                RawWebhook {
                    certificates_dir: text("/tmp"),
                    ..good()
                },
                "certificates_dir",
            ),
            (
                RawWebhook {
                    admin_listen: text("0.0.0.0:65015"),
                    ..good()
                },
                "admin_listen",
            ),
        ];
        for (raw, key) in cases {
            let said = problem(raw);
            assert!(said.contains(key), "{key}: {said}");
        }
    }
}
