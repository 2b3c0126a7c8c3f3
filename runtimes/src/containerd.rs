//! Reader of containerd's config.toml: whether containerd reads hosts.toml files at all, and from which folder.
//!
//! The CRI plugin's `config_path` decides that. Once it is set, containerd reads hosts.toml at every pull; setting it takes one
//! restart, which is the administrator's to make. Sources: containerd's docs/cri/registry.md, docs/hosts.md and the code that they
//! describe (cmd/containerd/server/config, plugins/cri/images, core/transfer/local).

use toml::{Table, Value};

use crate::problem::{Problem, Remedy};

/// Configuration as read from disk: the file itself, then its imports in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// Path and text each; the first is the main one. Empty: there is no file, and containerd has its own defaults.
    pub files: Vec<(String, String)>,
    /// Why a file that exists cannot be read.
    pub unreadable: Option<String>,
    /// The file that was changed last, and when, in seconds since 1970.
    pub newest: Option<(String, i64)>,
}

/// Verdict on a containerd's configuration, for hosts.toml files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The folder that they belong in.
    pub dir: String,
    /// Whether the folder is certain. Nothing is written into a guessed one.
    pub is_known: bool,
    /// Reason why containerd does not read them there; none: it reads them.
    pub problem: Option<Problem>,
    /// Why this containerd is not to be wired.
    pub aside: Option<String>,
    /// Hints for the administrator, none of which stops the wiring.
    pub notes: Vec<String>,
}

impl Config {
    /// The verdict for hosts.toml files, which belong into `default_dir` when the configuration names no folder.
    pub(crate) fn verdict(&self, main: &str, default_dir: &str) -> Verdict {
        let mut notes = Vec::new();
        let tables = match self.tables() {
            Ok(tables) => tables,
            Err(why) => return Verdict::unknown(default_dir, why),
        };
        if is_cri_disabled(&tables) {
            return Verdict {
                aside: Some(CRI_DISABLED.to_owned()),
                ..Verdict::ready(default_dir, notes)
            };
        }
        let version = tables.first().map_or(2, version);
        let registry = registry(&tables, version);
        let path = text(&registry, "config_path").unwrap_or_default();
        let dirs: Vec<&str> = path.split(':').filter(|dir| !dir.is_empty()).collect();
        let dir = dirs.first().copied().unwrap_or(default_dir);
        // Before any remedy: with the line beside one of these, the CRI plugin would not load and the node would be lost.
        if let Some((file, keys)) = self.refused_beside_config_path(&tables) {
            return Verdict::not_ready(dir, moving(&file, &keys, dir, !dirs.is_empty()), None, notes);
        }
        let remedy = Some(Remedy {
            file: main.to_owned(),
            table: table_name(version).to_owned(),
            line: format!("config_path = \"{dir}\""),
        });
        if dirs.is_empty() {
            return Verdict::not_ready(
                dir,
                "config_path is not set, so that no hosts.toml is read".to_owned(),
                remedy,
                notes,
            );
        }
        if dirs.len() > 1 {
            let two = format!(
                "config_path names {} folders; the files go to the first, {dir}",
                dirs.len()
            );
            if version >= 3 && !pulls_by_itself(&tables) {
                let why = format!(
                    "{two}, and containerd 2.1 and later reads them as one name (its transfer service does); name one folder"
                );
                return Verdict::not_ready(dir, why, remedy, notes);
            }
            notes.push(format!("{two}; name one before an upgrade to containerd 2.1"));
        }
        Verdict::ready(dir, notes)
    }

    /// The socket of its services.
    pub(crate) fn socket(&self) -> String {
        let tables = self.tables().unwrap_or_default();
        let address = |table: &Table| table.get("grpc")?.get("address")?.as_str().map(str::to_owned);
        tables
            .iter()
            .filter_map(address)
            .next_back()
            .unwrap_or_else(|| SOCKET.to_owned())
    }

    /// Why the configuration cannot be read or parsed.
    pub(crate) fn broken(&self) -> Option<String> {
        self.tables().err()
    }

    fn tables(&self) -> Result<Vec<Table>, String> {
        if let Some(why) = &self.unreadable {
            return Err(why.clone());
        }
        let table = |(path, text): &(String, String)| {
            text.parse()
                .map_err(|error: toml::de::Error| format!("{path} is not TOML: {}", error.message()))
        };
        self.files.iter().map(table).collect()
    }

    /// The first file with keys that containerd refuses beside `config_path`, and these keys.
    ///
    /// Every file is looked at, of whatever version: how they are merged differs between releases, and to be wrong here would
    /// cost the node.
    fn refused_beside_config_path(&self, tables: &[Table]) -> Option<(String, Vec<String>)> {
        let of = |((path, _), table): (&(String, String), &Table)| {
            let keys = refused_keys(table);
            (!keys.is_empty()).then(|| (path.clone(), keys))
        };
        self.files.iter().zip(tables).find_map(of)
    }
}

impl Verdict {
    fn ready(dir: &str, notes: Vec<String>) -> Self {
        Self {
            dir: dir.to_owned(),
            is_known: true,
            problem: None,
            aside: None,
            notes,
        }
    }

    fn not_ready(dir: &str, why: String, remedy: Option<Remedy>, notes: Vec<String>) -> Self {
        Self {
            problem: Some(Problem { why, remedy }),
            ..Self::ready(dir, notes)
        }
    }

    fn unknown(default_dir: &str, why: String) -> Self {
        Self {
            is_known: false,
            ..Self::not_ready(default_dir, format!("{why}; {UNKNOWN}"), None, Vec::new())
        }
    }
}

/// `mirrors`, and `configs."host".tls`, as they stand in one file.
fn refused_keys(table: &Table) -> Vec<String> {
    let plugins = table.get("plugins").and_then(Value::as_table);
    let registries = REGISTRY_PLUGINS.iter().filter_map(|name| {
        let plugin = plugins?.get(*name)?;
        plugin.get("registry")?.as_table()
    });
    let mut keys = Vec::new();
    for registry in registries {
        let table = |key: &str| registry.get(key).and_then(Value::as_table);
        if table("mirrors").is_some_and(|mirrors| !mirrors.is_empty()) {
            keys.push("mirrors".to_owned());
        }
        let configs = table("configs").into_iter().flatten();
        let with_tls = configs.filter(|(_, config)| config.get("tls").is_some());
        keys.extend(with_tls.map(|(host, _)| format!("configs.\"{host}\".tls")));
    }
    keys
}

/// Instruction to move the refused keys by hand.
fn moving(file: &str, keys: &[String], dir: &str, has_config_path: bool) -> String {
    let keys = keys.join(", ");
    let state = if has_config_path {
        format!("{file} has {keys} beside config_path, and containerd does not load its CRI plugin like this")
    } else {
        format!(
            "config_path is not set, so that no hosts.toml is read, and must not be added while {file} has {keys}: \
             containerd would not load its CRI plugin"
        )
    };
    format!(
        "{state}; first write each mirror as a [host.\"https://…\"] table, and each tls as ca, client and skip_verify, \
         of {dir}/HOST/hosts.toml; then take {keys} out, have config_path = \"{dir}\", and restart containerd"
    )
}

/// The file that a process of containerd was started with.
pub(crate) fn config_of(arguments: &[String]) -> &str {
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        match argument.split_once('=') {
            Some(("-c" | "--config" | "-config", file)) => return file,
            None if matches!(argument, "-c" | "--config" | "-config") => return arguments.next().unwrap_or_default(),
            _ => {}
        }
    }
    DEFAULT_CONFIG
}

/// Imports of a configuration: paths and patterns as they stand.
pub(crate) fn imports(text: &str) -> Vec<String> {
    let table: Table = text.parse().unwrap_or_default();
    let imports = table
        .get("imports")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    imports.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether a file's name fits a pattern in which `*` is any text.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            // Every way to end the star: names are short.
            name.char_indices()
                .map(|(at, _)| at)
                .chain([name.len()])
                .any(|at| fits(rest, &name[at..]))
        }),
    }
}

fn version(table: &Table) -> i64 {
    // Without one it is of the first version to containerd 1.x, whose table has another name.
    table.get("version").and_then(Value::as_integer).unwrap_or(1)
}

fn table_name(version: i64) -> &'static str {
    match version {
        ..=1 => "plugins.cri.registry",
        2 => "plugins.\"io.containerd.grpc.v1.cri\".registry",
        _ => "plugins.\"io.containerd.cri.v1.images\".registry",
    }
}

fn plugin_names(version: i64) -> &'static [&'static str] {
    match version {
        ..=1 => &["cri", "io.containerd.grpc.v1.cri"],
        2 => &["io.containerd.grpc.v1.cri"],
        _ => &["io.containerd.cri.v1.images"],
    }
}

/// The CRI plugin's table about registries, of all files together.
///
/// containerd merges files of version 3 key by key. In earlier versions a later file's table of a plugin replaces the former one.
fn registry(tables: &[Table], version: i64) -> Table {
    let mut registry = Table::new();
    for table in tables {
        let plugins = table.get("plugins").and_then(Value::as_table);
        let plugin = |name: &&str| plugins?.get(*name)?.as_table();
        let Some(plugin) = plugin_names(version).iter().find_map(plugin) else {
            continue;
        };
        if version < 3 {
            registry.clear();
        }
        registry.extend(
            plugin
                .get("registry")
                .and_then(Value::as_table)
                .cloned()
                .unwrap_or_default(),
        );
    }
    registry
}

/// Whether the CRI plugin pulls without the transfer service.
fn pulls_by_itself(tables: &[Table]) -> bool {
    let said = |table: &Table| {
        table
            .get("plugins")?
            .get("io.containerd.cri.v1.images")?
            .get("use_local_image_pull")?
            .as_bool()
    };
    tables.iter().filter_map(said).next_back().unwrap_or(false)
}

fn is_cri_disabled(tables: &[Table]) -> bool {
    let disabled = tables
        .iter()
        .filter_map(|table| table.get("disabled_plugins")?.as_array())
        .flatten();
    disabled.filter_map(Value::as_str).any(|name| {
        matches!(
            name,
            "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.images" | "io.containerd.cri.v1.runtime"
        )
    })
}

fn text(table: &Table, key: &str) -> Option<String> {
    table.get(key).and_then(Value::as_str).map(str::to_owned)
}

const DEFAULT_CONFIG: &str = "/etc/containerd/config.toml";
const SOCKET: &str = "/run/containerd/containerd.sock";
const CRI_DISABLED: &str =
    "its CRI plugin is disabled (disabled_plugins): it serves Docker, and Kubernetes does not use it";
const REGISTRY_PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];
const UNKNOWN: &str = "until then the folder of hosts.toml files is unknown, and none is written";

#[cfg(test)]
pub(crate) mod testing {
    use super::{Config, Verdict};

    pub(crate) const MAIN: &str = "/etc/containerd/config.toml";
    pub(crate) const CERTS: &str = "/etc/containerd/certs.d";

    /// The verdict on a configuration of these texts.
    pub(crate) fn verdict(texts: &[&str]) -> Verdict {
        let files = texts.iter().map(|text| (MAIN.to_owned(), (*text).to_owned())).collect();
        let config = Config {
            files,
            ..Config::default()
        };
        config.verdict(MAIN, CERTS)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{CERTS, MAIN, verdict},
        *,
    };

    #[test]
    fn config_path_is_found_in_every_version_of_the_file() {
        let ready = [
            "[plugins.cri.registry]\nconfig_path = \"/x\"\n",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n",
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"/x\"\n",
        ];
        for text in ready {
            let verdict = verdict(&[text]);
            assert_eq!((&*verdict.dir, verdict.problem), ("/x", None), "{text}");
        }
    }

    #[test]
    fn without_config_path_the_one_line_is_told() {
        let cases = [
            (vec![], "plugins.\"io.containerd.grpc.v1.cri\".registry"),
            (vec!["version = 2\n"], "plugins.\"io.containerd.grpc.v1.cri\".registry"),
            (vec!["oom_score = 0\n"], "plugins.cri.registry"),
            (
                vec!["version = 3\n"],
                "plugins.\"io.containerd.cri.v1.images\".registry",
            ),
            // The table of another version is not looked at.
            (
                vec!["version = 3\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n"],
                "plugins.\"io.containerd.cri.v1.images\".registry",
            ),
        ];
        for (texts, table) in cases {
            let verdict = verdict(&texts);
            let remedy = verdict.problem.and_then(|problem| problem.remedy).expect("a remedy");
            assert_eq!(
                (&*remedy.table, &*remedy.line),
                (table, "config_path = \"/etc/containerd/certs.d\"")
            );
            assert_eq!(verdict.dir, CERTS);
        }
    }

    #[test]
    fn imports_count_as_containerd_counts_them() {
        let main = "version = 2\nimports = [\"conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n";
        assert_eq!(imports(main), ["conf.d/*.toml"]);
        let other = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_selinux = true\n";
        assert!(
            verdict(&[main, other]).problem.is_some(),
            "the plugin's whole table is replaced"
        );
        let three = main.replace("= 2", "= 3").replace("grpc.v1.cri", "cri.v1.images");
        let other = other.replace("grpc.v1.cri", "cri.v1.images");
        assert_eq!(verdict(&[&three, &other]).problem, None, "tables are merged");
        for (pattern, name, is_good) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.tom", false),
            ("a*b*", "axxbyy", true),
            ("a", "b", false),
        ] {
            assert_eq!(fits(pattern, name), is_good, "{pattern} {name}");
        }
    }

    #[test]
    fn what_containerd_refuses_or_reads_otherwise_is_told() {
        let registry = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n";
        let two = verdict(&[&format!("version = 2\n{registry}")]);
        assert_eq!((&*two.dir, &two.problem, two.notes.len()), ("/a", &None, 1));
        let three = registry.replace("grpc.v1.cri", "cri.v1.images");
        let one_name = verdict(&[&format!("version = 3\n{three}")]);
        assert!(
            one_name
                .problem
                .is_some_and(|problem| problem.why.contains("transfer service"))
        );
        let local =
            format!("version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = true\n{three}");
        assert_eq!(verdict(&[&local]).problem, None);
        assert!(
            verdict(&["version = "])
                .problem
                .is_some_and(|problem| problem.why.contains("not TOML"))
        );
    }

    #[test]
    fn no_line_is_offered_with_which_containerd_would_not_load_its_cri_plugin() {
        let mirrors = "registry.mirrors.\"docker.io\"]\nendpoint = []\n";
        let tls = "registry.configs.\"reg.test:5000\".tls]\ninsecure_skip_verify = true\n";
        let head = |version, plugin| format!("version = {version}\n[plugins.\"{plugin}\".");
        for (version, plugin) in [
            (1, "cri"),
            (2, "io.containerd.grpc.v1.cri"),
            (3, "io.containerd.cri.v1.images"),
        ] {
            let head = head(version, plugin);
            let empty = format!("version = {version}\n");
            let path = format!("{head}registry]\nconfig_path = \"/x\"\n");
            for (refused, key) in [(mirrors, "mirrors"), (tls, "configs.\"reg.test:5000\".tls")] {
                let refused = format!("{head}{refused}");
                // Alone, in a file that is imported, and beside config_path.
                for texts in [vec![&*refused], vec![&*empty, &*refused], vec![&*path, &*refused]] {
                    let problem = verdict(&texts).problem.unwrap_or_else(|| panic!("{texts:?}"));
                    assert_eq!(problem.remedy, None, "{texts:?}");
                    assert!(
                        problem.why.contains(key) && problem.why.contains("HOST/hosts.toml"),
                        "{}",
                        problem.why
                    );
                }
            }
        }
        let auth = format!(
            "{}registry]\nconfig_path = \"/x\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r\".auth]\nusername = \"u\"\n",
            head(2, "io.containerd.grpc.v1.cri")
        );
        assert_eq!(verdict(&[&auth]).problem, None, "credentials are allowed beside it");
    }

    #[test]
    fn a_containerd_without_a_cri_plugin_is_left_aside_before_anything_else() {
        for plugin in ["cri", "io.containerd.grpc.v1.cri"] {
            let docker = verdict(&[&format!("disabled_plugins = [\"{plugin}\"]\n")]);
            assert!(docker.aside.is_some() && docker.problem.is_none(), "{plugin}");
        }
    }

    #[test]
    fn a_process_says_which_file_and_a_file_says_which_socket() {
        let of = |arguments: &[&str]| {
            config_of(&arguments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).to_owned()
        };
        assert_eq!(of(&["/usr/bin/containerd"]), MAIN);
        for arguments in [["--config", "/x"], ["-c", "/x"]] {
            assert_eq!(of(&[&["containerd"], &arguments[..]].concat()), "/x");
        }
        assert_eq!(of(&["containerd", "--config=/x", "--log-level=info"]), "/x");
        assert_eq!(Config::default().socket(), SOCKET);
        let files = vec![(MAIN.to_owned(), "[grpc]\naddress = \"/run/x.sock\"\n".to_owned())];
        let config = Config {
            files,
            ..Config::default()
        };
        assert_eq!(config.socket(), "/run/x.sock");
    }
}
