//! Tests of restarts that the administrator has allowed, and of those that are not.

use super::machine::{ACCELERATED, CONFIG, Machine, settings};
use crate::{kind::RuntimeKind, names::Names};

#[test]
fn a_containerd_without_config_path_is_told_the_line_and_nothing_of_it_is_touched() {
    let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
    let report = machine.install(&settings(Names::Accelerated));
    assert_eq!(machine.read(CONFIG), "version = 2\n");
    assert!(!report.runtimes[0].ready && machine.path(ACCELERATED).exists());
    let said = report.render();
    let line = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"/etc/containerd/certs.d\"\n";
    assert!(said.contains(line), "{said}");
}

const MIRRORS: &str =
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = []\n";

#[test]
fn where_the_line_would_break_containerd_none_is_added_and_nothing_is_restarted() {
    for files in [
        &[(CONFIG, MIRRORS)][..],
        &[
            (CONFIG, "version = 2\nimports = [\"conf.d/*.toml\"]\n"),
            ("/etc/containerd/conf.d/a.toml", MIRRORS),
        ],
    ] {
        let machine = Machine::new(files);
        let allowed = machine.node.install(&settings(Names::Both), Some(&|_| panic!("never")));
        let said = allowed.unwrap().render();
        assert!(said.contains("must not be added") && !said.contains("add to"), "{said}");
        assert_eq!(machine.read(files[0].0), files[0].1);
    }
}

#[test]
fn a_containerd_that_does_not_answer_after_its_restart_has_its_old_file_and_is_restarted_again() {
    let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
    let texts = std::cell::RefCell::new(Vec::new());
    let restart = |_: RuntimeKind| {
        texts.borrow_mut().push(machine.read(CONFIG));
        if texts.borrow().len() == 1 {
            Err("its CRI does not answer".to_owned())
        } else {
            Ok(())
        }
    };
    let report = machine.node.install(&settings(Names::Both), Some(&restart)).unwrap();
    let texts = texts.take();
    assert!(
        texts[0].contains("config_path") && texts[1..] == ["version = 2\n"],
        "{texts:?}"
    );
    let said = report.render();
    assert!(
        said.contains("CRI does not answer") && said.contains("restarted with that"),
        "{said}"
    );
}

#[test]
fn an_allowed_restart_happens_once_and_a_failed_one_is_undone() {
    let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
    let settings = settings(Names::Accelerated);
    let refused = machine
        .node
        .install(&settings, Some(&|_| Err("no systemd".to_owned())))
        .unwrap();
    assert!(
        refused.render().contains("no systemd") && !refused.runtimes[0].ready,
        "{}",
        refused.render()
    );
    assert_eq!(machine.read(CONFIG), "version = 2\n");
    let again = machine.node.install(&settings, Some(&|_| panic!("once"))).unwrap();
    assert!(again.render().contains("once already"), "{}", again.render());

    let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
    let report = machine.node.install(&settings, Some(&|_| Ok(()))).unwrap();
    assert!(report.runtimes[0].ready, "{}", report.render());
    assert_eq!(
        machine
            .node
            .install(&settings, Some(&|_| panic!("once")))
            .unwrap()
            .changes(),
        0
    );
    machine.node.remove(&settings, false).unwrap();
    assert!(
        machine.read(CONFIG).contains("config_path"),
        "the fallback files need it"
    );
    machine.node.remove(&settings, true).unwrap();
    assert_eq!(machine.read(CONFIG), "version = 2\n");
}
