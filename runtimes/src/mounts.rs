//! Mount table of this process: whether a path is read-only because of its mount alone. Source: proc_pid_mountinfo(5).

use std::{fs, path::Path};

/// Whether the mount that a node's path is on is read-only, while its file system is not: a choice of the container or of the
/// administrator.
pub(crate) fn is_read_only_by_mount(root: &Path, path: &str) -> bool {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    by_table(&table, &root.join(path.trim_start_matches('/')))
}

fn by_table(table: &str, path: &Path) -> bool {
    let mounts = table.lines().filter_map(|line| {
        let (mount, of_system) = line.split_once(" - ")?;
        let mut columns = mount.split(' ').skip(4);
        let (place, options) = (columns.next()?.replace("\\040", " "), columns.next()?);
        let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
        let by_mount = is_read_only(options) && !is_read_only(of_system.split(' ').nth(2)?);
        path.starts_with(&place).then_some((place.len(), by_mount))
    });
    // Of those at one place the last hides the others.
    mounts
        .max_by_key(|(length, _)| *length)
        .is_some_and(|(_, by_mount)| by_mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_is_read_only_is_told_from_a_file_system_that_is() {
        let table = "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /host ro,relatime - ext4 /dev/a rw\n\
                     3 2 0:2 /etc /host/etc rw - ext4 /dev/a rw\n4 2 0:3 / /host/usr ro - squashfs /dev/b ro\n";
        let is = |path: &str| by_table(table, Path::new(path));
        assert!(is("/host/opt/x") && is("/host/etcetera"));
        assert!(!is("/host/etc/x") && !is("/host/usr/x") && !is("/x"));
    }
}
