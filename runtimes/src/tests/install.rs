//! Tests of `install`, `remove` and `status`.

use std::{fs, os::unix::fs::symlink, time::Duration};

use super::machine::{ACCELERATED, CONFIG, Machine, ORIGINAL, READY, settings};
use crate::{
    containers,
    edit::Edit,
    lock::lock,
    names::Names,
    node::NodeError,
    report::{FileCondition, FileOutcome},
    settings::Settings,
    state,
};

#[test]
fn a_second_install_changes_nothing_and_a_purge_leaves_no_trace() {
    let machine = Machine::new(&[(CONFIG, READY)]);
    let before = machine.everything();
    let first = machine.install(&settings(Names::Both));
    assert_eq!((first.changes(), first.repairs), (4, 0), "{}", first.render());
    assert!(first.runtimes.iter().all(|runtime| runtime.ready), "{}", first.render());
    let installed = machine.everything();
    let second = machine.install(&settings(Names::Both));
    assert_eq!((second.changes(), second.repairs), (0, 0), "{}", second.render());
    assert_eq!(machine.everything(), installed);

    let removed = machine.node.remove(&settings(Names::Both), false).unwrap();
    assert_eq!(removed.changes(), 4, "{}", removed.render());
    assert!(!machine.path(ORIGINAL).exists());
    let left = machine.read(ACCELERATED);
    assert!(
        left.contains("https://registry-1.docker.io") && !left.contains("127.0.0.1"),
        "{left}"
    );
    assert_eq!(machine.node.remove(&settings(Names::Both), false).unwrap().changes(), 0);
    machine.node.remove(&settings(Names::Both), true).unwrap();
    assert_eq!(machine.everything(), before);
}

#[test]
fn without_the_state_everything_is_found_by_what_the_files_say() {
    for state in [
        None,
        Some("{"),
        Some("{\"version\": 99, \"files\": {\"/etc/passwd\": \"x\"}}"),
    ] {
        let machine = Machine::new(&[(CONFIG, READY)]);
        machine.install(&settings(Names::Both));
        match state {
            None => fs::remove_file(machine.path(state::FILE)).unwrap(),
            Some(text) => machine.write(state::FILE, text),
        }
        assert_eq!(
            machine.standing(&settings(Names::Both), ORIGINAL),
            Some(FileCondition::Ours)
        );
        machine.node.remove(&settings(Names::Both), true).unwrap();
        assert!(
            !machine.path(ACCELERATED).exists()
                && !machine.path(ORIGINAL).exists()
                && !machine.path(state::FILE).exists()
        );
    }
}

#[test]
fn drift_is_told_and_undone_and_counted() {
    let machine = Machine::new(&[(CONFIG, READY)]);
    let settings = settings(Names::Both);
    machine.install(&settings);
    let good = machine.read(ACCELERATED);
    machine.write(ACCELERATED, &format!("{good}skip_verify = true\n"));
    fs::remove_file(machine.path(ORIGINAL)).unwrap();
    assert_eq!(machine.standing(&settings, ACCELERATED), Some(FileCondition::Drifted));
    assert_eq!(machine.standing(&settings, ORIGINAL), Some(FileCondition::Missing));
    let report = machine.install(&settings);
    assert_eq!((report.changes(), report.repairs), (2, 2), "{}", report.render());
    assert_eq!(machine.read(ACCELERATED), good);
    // Another setting is no drift.
    let report = machine.install(&Settings {
        has_peer: false,
        ..settings
    });
    assert_eq!((report.changes(), report.repairs), (4, 0), "{}", report.render());
}

#[test]
fn the_administrators_own_file_is_shared_and_given_back() {
    let theirs = "server = \"https://mine\" # why\n[host.\"https://mine\"]\n  ca = \"ca.pem\"\n";
    let machine = Machine::new(&[(CONFIG, READY), (ORIGINAL, theirs)]);
    assert_eq!(
        machine.standing(&settings(Names::Original), ORIGINAL),
        Some(FileCondition::Foreign)
    );
    machine.install(&settings(Names::Accelerated));
    assert_eq!(machine.read(ORIGINAL), theirs, "its own name is not ours to wire");
    machine.install(&settings(Names::Original));
    let shared = machine.read(ORIGINAL);
    assert!(shared.find("127.0.0.1").unwrap() < shared.find("[host.\"https://mine\"]").unwrap());
    assert!(
        machine.read(ACCELERATED).contains("[host]"),
        "a name that is no longer wanted leads to the registry"
    );
    machine.write(ORIGINAL, &shared.replace("# why", "# because"));
    assert_eq!(
        machine.standing(&settings(Names::Original), ORIGINAL),
        Some(FileCondition::Ours)
    );
    machine.install(&settings(Names::Accelerated));
    assert_eq!(machine.read(ORIGINAL), theirs.replace("# why", "# because"));
    machine.node.remove(&settings(Names::Original), true).unwrap();
    assert!(machine.path(ORIGINAL).exists() && !machine.path(state::FILE).exists());
}

#[test]
fn what_a_registry_is_trusted_by_goes_for_its_accelerated_name() {
    let machine = Machine::new(&[(CONFIG, READY), ("/etc/containerd/certs.d/docker.io/ca.crt", "pem")]);
    machine.install(&settings(Names::Both));
    let ca = "ca = [\"/etc/containerd/certs.d/docker.io/ca.crt\"]\n";
    assert!(machine.read(ACCELERATED).contains(ca) && machine.read(ORIGINAL).contains(ca));
    assert_eq!(machine.install(&settings(Names::Both)).changes(), 0);
    machine.node.remove(&settings(Names::Both), true).unwrap();
    assert!(machine.path("/etc/containerd/certs.d/docker.io/ca.crt").exists());
}

#[test]
fn the_folder_that_containerd_looks_at_first_is_the_one() {
    let theirs = "/etc/containerd/certs.d/reg.test_5000_/hosts.toml";
    let machine = Machine::new(&[(CONFIG, READY), (theirs, "server = \"https://mine\"\n")]);
    machine.install(&settings(Names::Original));
    assert!(machine.read(theirs).contains("127.0.0.1:65001"));
    assert!(!machine.path("/etc/containerd/certs.d/reg.test:5000").exists());
}

#[test]
fn while_not_every_host_is_known_nothing_is_taken_back() {
    let machine = Machine::new(&[(CONFIG, READY)]);
    machine.install(&settings(Names::Both));
    let mut fewer = settings(Names::Both);
    fewer.registries.retain(|registry| registry.name == "docker.io");
    fewer.is_complete = false;
    assert_eq!(machine.install(&fewer).changes(), 0);
    fewer.is_complete = true;
    assert_eq!(machine.install(&fewer).changes(), 2);
}

#[test]
fn hosts_for_every_name_are_never_touched_and_their_end_is_told() {
    let default = "/etc/containerd/certs.d/_default/hosts.toml";
    let machine = Machine::new(&[(CONFIG, READY), (default, "[host.\"https://m\"]\n")]);
    let note = |names| machine.install(&settings(names)).render().contains("_default");
    assert!(!note(Names::Accelerated) && note(Names::Both));
    assert_eq!(machine.read(default), "[host.\"https://m\"]\n");
}

#[test]
fn links_and_folders_in_the_way_are_left_alone() {
    let machine = Machine::new(&[
        (CONFIG, READY),
        ("/etc/store/hosts.toml", "server = \"https://mine\"\n"),
    ]);
    fs::create_dir_all(machine.path(ORIGINAL).parent().unwrap()).unwrap();
    symlink("/etc/store/hosts.toml", machine.path(ORIGINAL)).unwrap();
    fs::create_dir_all(machine.path(ACCELERATED)).unwrap();
    let report = machine.install(&settings(Names::Both));
    assert_eq!(machine.read("/etc/store/hosts.toml"), "server = \"https://mine\"\n");
    let left = report
        .files
        .iter()
        .filter(|file| file.outcome == FileOutcome::Left)
        .count();
    assert_eq!(left, 2, "{}", report.render());
}

#[test]
fn what_cannot_be_read_stops_neither_other_runtimes_nor_the_way_back() {
    let machine = Machine::new(&[(CONFIG, READY), ("/etc/crio/crio.conf", "")]);
    fs::create_dir_all(machine.path("/etc/containers/registries.conf.d/x.conf")).unwrap();
    assert!(
        machine
            .install(&settings(Names::Both))
            .runtimes
            .iter()
            .all(|of| of.ready),
        "a folder is passed over"
    );
    fs::write(machine.path(containers::MAIN), [0xff]).unwrap();
    let report = machine.install(&settings(Names::Both));
    let ready: Vec<bool> = report.runtimes.iter().map(|runtime| runtime.ready).collect();
    assert_eq!(ready, [true, false], "{}", report.render());
    // The state tells where the files are that containerd's configuration does not tell any more.
    let other = READY.replace("/etc/containerd/certs.d", "/opt/certs");
    machine.write(CONFIG, &other);
    machine.install(&settings(Names::Both));
    assert!(machine.path("/opt/certs/docker.io/hosts.toml").exists());
    fs::write(machine.path(CONFIG), [0xff]).unwrap();
    let report = machine.install(&settings(Names::Both));
    assert!(
        !report.runtimes[0].ready && report.changes() == 0,
        "{}",
        report.render()
    );
    machine.node.remove(&settings(Names::Both), true).unwrap();
    assert!(!machine.path("/opt/certs").exists() && !machine.path(ORIGINAL).exists());
    // Without the state it cannot know of other folders, and says so.
    let said = machine.node.remove(&settings(Names::Both), true).unwrap().render();
    assert!(said.contains("a folder other than /etc/containerd/certs.d"), "{said}");
}

#[test]
fn a_second_run_at_the_same_time_is_refused_after_a_while() {
    let machine = Machine::new(&[(CONFIG, READY)]);
    let lock = lock(&machine.node.root, Duration::ZERO).unwrap().expect("it is free");
    assert!(
        machine
            .node
            .begin(Duration::ZERO)
            .is_err_and(|error| matches!(error, NodeError::Busy))
    );
    drop(lock);
    assert!(machine.node.begin(Duration::ZERO).is_ok());
}

#[test]
fn an_edit_at_the_same_time_is_read_and_kept() {
    let machine = Machine::new(&[("/etc/x", "one")]);
    let mut run = machine.node.begin(Duration::ZERO).unwrap();
    let looks = std::cell::Cell::new(0);
    let decide = |current: Option<&str>| {
        looks.set(looks.get() + 1);
        if looks.get() == 1 {
            machine.write("/etc/x", "another");
        }
        Edit::Write(format!("{}!", current.unwrap_or_default()))
    };
    let (_, _, (outcome, _)) = run.change("/etc/x", FileOutcome::Written, &decide);
    assert_eq!(
        (outcome, machine.read("/etc/x").as_str()),
        (FileOutcome::Written, "another!")
    );
}

#[test]
fn a_node_without_a_peer_has_accelerated_names_that_lead_to_the_registry() {
    let machine = Machine::new(&[(CONFIG, READY)]);
    machine.install(&Settings {
        has_peer: false,
        ..settings(Names::Both)
    });
    assert!(
        machine
            .read(ACCELERATED)
            .ends_with("server = \"https://registry-1.docker.io\"\n\n[host]\n")
    );
    assert!(!machine.path(ORIGINAL).exists());
}
