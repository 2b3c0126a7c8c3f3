//! The Helm chart: every file of `ci/` against the schemas of every Kubernetes, the binary and Prometheus' own tool.
//!
//! The checks are in `charts/piecemeal/tests`, in Python: that is where the strict schemas and a reader of YAML are. This brings
//! the programs together, each of a pinned version and outside the clone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{go_tools, packages, shell};

const CHART: &str = "charts/piecemeal";
/// The programs that write the tables of values: in the chart's README, and in docs/kubernetes.
const TABLES: [&str; 2] = ["charts/piecemeal/tests/readme.py", "charts/piecemeal/tests/pages.py"];
/// The Python packages of the checks. kubernetes-validate has the schemas of Kubernetes 1.25 to 1.37.
const PYTHON_PACKAGES: [&str; 3] = ["kubernetes-validate==1.37.0", "jsonschema==4.26.0", "PyYAML==6.0.4"];

pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        [] => check(),
        ["docs"] => TABLES.iter().try_for_each(|table| python(&[table], &[])),
        _ => bail!("cargo xtask chart checks the chart; cargo xtask chart docs writes its tables of values"),
    }
}

fn check() -> Result<()> {
    check_version()?;
    let (helm, promtool, binary) = (helm()?, promtool()?, binary()?);
    for values in ci_values()? {
        shell::run(&helm, &["lint", "--quiet", "--strict", "--values", &values, CHART])?;
    }
    TABLES.iter().try_for_each(|table| python(&[table, "--check"], &[]))?;
    let programs = [
        ("PIECEMEAL_HELM", helm.as_str()),
        ("PIECEMEAL_PROMTOOL", promtool.as_str()),
        ("PIECEMEAL_BINARY", binary.as_str()),
    ];
    python(
        &[
            "-m",
            "unittest",
            "discover",
            "--start-directory",
            "charts/piecemeal/tests",
        ],
        &programs,
    )
}

/// The chart runs the image of its own version.
fn check_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let chart = fs::read_to_string(shell::root().join(CHART).join("Chart.yaml")).context("cannot read Chart.yaml")?;
    let wanted = format!("appVersion: \"{version}\"");
    ensure!(
        chart.lines().any(|line| line == wanted),
        "{CHART}/Chart.yaml is of another version than the workspace; it should say {wanted}"
    );
    Ok(())
}

fn ci_values() -> Result<Vec<String>> {
    let folder = shell::root().join(CHART).join("ci");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<String> = entries.map(|entry| text(&entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn helm() -> Result<String> {
    let helm = go_tools::KUBERNETES.iter().find(|tool| tool.name == "helm");
    let helm = helm.context("helm is among the tools")?;
    go_tools::install([helm])?;
    text(&go_tools::path(helm)?)
}

/// Debian has it in the package of Prometheus, which would also run one here.
fn promtool() -> Result<String> {
    if shell::has("promtool") {
        return Ok("promtool".to_owned());
    }
    let program = shell::tools_dir()?.join("bin/promtool");
    if !program.is_file() {
        packages::extract(
            "the alerts' tests need promtool",
            "prometheus",
            "usr/bin/promtool",
            &program,
        )?;
    }
    text(&program)
}

/// The real one, for its `--check-config`.
fn binary() -> Result<String> {
    shell::run("cargo", &["build", "--locked", "--package", "piecemeal"])?;
    text(&shell::target_dir()?.join("debug/piecemeal"))
}

/// Runs Python in the project's own environment, from the workspace's root; nothing is written beside what it runs.
fn python(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let python = text(&environment_dir()?.join("bin/python"))?;
    shell::run_with(&python, &[&["-B"], arguments].concat(), environment)
}

/// Another set of packages is another folder, and none is found half made.
fn environment_dir() -> Result<PathBuf> {
    let name = PYTHON_PACKAGES.map(|package| package.replace("==", "-")).join("_");
    let tools = shell::tools_dir()?;
    let dir = tools.join(format!("python-{name}"));
    if dir.is_dir() {
        return Ok(dir);
    }
    // Reading TOML is in Python from 3.11 on, and ensurepip in Debian's python3-venv.
    if shell::output("python3", &["-c", "import ensurepip, tomllib"]).is_err() {
        packages::add(
            "the chart's checks need Python 3.11 or newer, and",
            &["python3", "python3-venv"],
        )?;
    }
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let scratch = tempfile::tempdir_in(&tools).context("cannot make a folder among the tools")?;
    let new = scratch.path().join("environment");
    shell::run("python3", &["-m", "venv", &text(&new)?])?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    shell::run(&text(&new.join("bin/python"))?, &[&pip[..], &PYTHON_PACKAGES].concat())?;
    fs::rename(&new, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not text", path.display()))?;
    Ok(text.to_owned())
}
