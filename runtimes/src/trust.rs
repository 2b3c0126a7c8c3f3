//! Trust settings of a hosts.toml: authorities, client certificates, `skip_verify`.
//!
//! Another name of a registry is trusted by what the registry's own name is trusted by. Source: containerd's docs/hosts.md.

use toml::{Table, Value};

/// The lines by which a registry's own name is trusted, so that another name of it is too: authorities, client certificates.
///
/// `dir` is the folder of its own name, `hosts` the hosts.toml there if it is not ours, and `files` what else is there: without
/// a hosts.toml, containerd takes certificates and keys that lie beside it.
pub(crate) fn trust(dir: &str, hosts: Option<&str>, files: &[String]) -> String {
    let mut kept = Table::new();
    match hosts {
        Some(text) => {
            let table: Table = text.parse().unwrap_or_default();
            let own = own_host(dir, &table);
            let of = |key: &str| table.get(key).or_else(|| own?.get(key)).cloned();
            let keys = ["ca", "client", "skip_verify"].into_iter();
            kept.extend(keys.filter_map(|key| Some((key.to_owned(), absolute(dir, of(key)?)))));
        }
        None => {
            let path = |name: &String| Value::String(format!("{dir}/{name}"));
            let authorities: Vec<Value> = files.iter().filter(|name| name.ends_with(".crt")).map(path).collect();
            let key_of = |name: &String| Some(format!("{}.key", name.strip_suffix(".cert")?));
            let pairs = files
                .iter()
                .filter_map(|name| Some((name, key_of(name).filter(|key| files.contains(key))?)));
            let pairs: Vec<Value> = pairs
                .map(|(name, key)| Value::Array(vec![path(name), path(&key)]))
                .collect();
            let keys = [("ca", authorities), ("client", pairs)].into_iter();
            kept.extend(
                keys.filter(|(_, of)| !of.is_empty())
                    .map(|(key, of)| (key.to_owned(), Value::Array(of))),
            );
        }
    }
    kept.to_string()
}

/// The table of the registry itself among the hosts of a file: of its `server`, or of the name of its folder.
fn own_host<'a>(dir: &str, file: &'a Table) -> Option<&'a Table> {
    let bare = |url: &str| -> String {
        let url = url.trim_end_matches('/');
        url.split_once("://").map_or(url, |(_, rest)| rest).to_owned()
    };
    let folder = dir
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .trim_end_matches('_')
        .replace('_', ":");
    let own = file.get("server").and_then(Value::as_str).map_or(folder, bare);
    let hosts = file.get("host")?.as_table()?;
    hosts.iter().find(|(url, _)| bare(url) == own)?.1.as_table()
}

/// Relative paths are those of the file that they stand in, and are read from another.
fn absolute(dir: &str, value: Value) -> Value {
    match value {
        Value::String(path) if !path.starts_with('/') => Value::String(format!("{dir}/{path}")),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| absolute(dir, item)).collect()),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_may_stand_with_the_registry_s_own_host() {
        let with_server = "server = \"https://reg.test:5443\"\n[host.\"https://mirror.test\"]\n  ca = \"/m.crt\"\n\
             [host.\"https://reg.test:5443/\"]\n  ca = \"own.crt\"\n";
        assert_eq!(
            trust("/c/reg.test:5443", Some(with_server), &[]),
            "ca = \"/c/reg.test:5443/own.crt\"\n"
        );
        let without = "[host.\"https://reg.test:5443\"]\n  ca = \"/own.crt\"\n";
        for dir in ["/c/reg.test:5443", "/c/reg.test_5443_"] {
            assert_eq!(trust(dir, Some(without), &[]), "ca = \"/own.crt\"\n", "{dir}");
        }
        let of_another = "[host.\"https://mirror.test\"]\n  ca = \"/m.crt\"\n";
        assert_eq!(trust("/c/reg.test", Some(of_another), &[]), "");
    }

    #[test]
    fn another_name_of_a_registry_is_trusted_as_its_own() {
        let dir = "/etc/containerd/certs.d/a.io";
        let hosts = "server = \"https://a.io\"\nca = \"ca.crt\"\nclient = [[\"a.cert\", \"/b.key\"]]\nskip_verify = false\n\
                     [host.\"https://m.io\"]\nca = \"other.crt\"\n";
        assert_eq!(
            trust(dir, Some(hosts), &[]),
            format!("ca = \"{dir}/ca.crt\"\nclient = [[\"{dir}/a.cert\", \"/b.key\"]]\nskip_verify = false\n")
        );
        let files = ["ca.crt", "node.cert", "node.key", "lone.cert"].map(str::to_owned);
        assert_eq!(
            trust(dir, None, &files),
            format!("ca = [\"{dir}/ca.crt\"]\nclient = [[\"{dir}/node.cert\", \"{dir}/node.key\"]]\n")
        );
        assert_eq!(trust(dir, None, &[]), "");
    }
}
