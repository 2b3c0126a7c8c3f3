//! The project's own commands: `cargo xtask test`, `cargo xtask conformance`, `cargo xtask chart`, `cargo xtask ci`,
//! `cargo xtask bench`, `cargo xtask fuzz`, `cargo xtask kube-assets`, `cargo xtask package`.

mod bench;
mod chart;
mod ci;
mod conformance;
mod fuzz;
mod go_tools;
mod kube_assets;
mod last_release;
mod package;
mod packages;
mod shell;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  test          installs the packages that the tests need (apt, as root; Go), then runs every test
  conformance   the OCI conformance suite against a mirror of Debian's docker-registry
  chart         checks the Helm chart: lint, the schemas of every Kubernetes version, its configurations with the binary, alerts
  chart docs    writes the tables of values in the chart's README and in docs/kubernetes
  ci            format, lints, dependencies' licences and sources, every test, the chart, docs
  bench [NAME… [-- PART…]]
                the benchmarks, or those named, or parts of one; they print figures and assert nothing, except soak:
                twenty minutes of pulls while daemons are killed, which pass or fail
  fuzz [SECONDS [TARGET…]]
                the fuzzer's targets, or those named, for a minute each or for SECONDS
  kube-assets   builds kube-apiserver, etcd and the other programs of the Kubernetes tests (Go; ten minutes the first time), and
                prints their folder for KUBEBUILDER_ASSETS; if that variable is set, its folder is used instead
  package [PART…] [--target TRIPLE] [--binary FILE]
                builds the release into target/package: binary, deb, image, or the parts named; for every target that this
                toolchain builds for, or the one named. --binary packages a binary that was built before
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["test"] => test::run(),
        ["conformance"] => conformance::run(),
        ["chart", ref arguments @ ..] => chart::run(arguments),
        ["ci"] => ci::run(),
        ["bench", ref arguments @ ..] => bench::run(arguments),
        ["fuzz", ref arguments @ ..] => fuzz::run(arguments),
        ["kube-assets"] => kube_assets::run(),
        ["package", ref arguments @ ..] => package::run(arguments),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
