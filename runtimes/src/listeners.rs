//! Listeners on a port, from /proc. Source: proc_pid_net(5).

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::Serialize;

/// One socket that listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    pub address: SocketAddr,
    /// Its process, when we may see it.
    pub process: Option<String>,
    pub pid: Option<u32>,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by ", self.address)?;
        match (&self.process, self.pid) {
            (Some(process), Some(pid)) => write!(f, "{process} (process {pid})"),
            _ => write!(f, "a process that cannot be seen from here"),
        }
    }
}

/// The listeners on `port` in this process's network namespace.
pub(crate) fn listeners(port: u16) -> Vec<Listener> {
    let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let sockets: Vec<(SocketAddr, u64)> = ["tcp", "tcp6"].iter().flat_map(|name| parse(&read(name))).collect();
    let mut sockets: Vec<(SocketAddr, u64)> = sockets
        .into_iter()
        .filter(|(address, _)| address.port() == port)
        .collect();
    sockets.sort();
    let owners = if sockets.is_empty() {
        BTreeMap::new()
    } else {
        owners(&sockets)
    };
    let listener = |(address, inode): &(SocketAddr, u64)| {
        let owner = owners.get(inode);
        Listener {
            address: *address,
            process: owner.map(|(_, name)| name.clone()),
            pid: owner.map(|(pid, _)| *pid),
        }
    };
    sockets.iter().map(listener).collect()
}

/// Addresses and inodes of the sockets in a table of the kernel's that listen.
fn parse(table: &str) -> Vec<(SocketAddr, u64)> {
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_listening = columns.get(3) == Some(&"0A");
        let (address, port) = columns.get(1).filter(|_| is_listening)?.split_once(':')?;
        let address = SocketAddr::new(ip(address)?, u16::from_str_radix(port, 16).ok()?);
        Some((address, columns.get(9)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// Words of four bytes, each in the order of the machine.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        Some(
            u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16)
                .ok()?
                .to_ne_bytes(),
        )
    };
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let mut bytes = [0; 16];
    for (at, part) in bytes.chunks_mut(4).enumerate() {
        part.copy_from_slice(&word(at)?);
    }
    (hex.len() == 32).then(|| Ipv6Addr::from(bytes).into())
}

/// The processes that have these sockets, as far as they can be read.
fn owners(sockets: &[(SocketAddr, u64)]) -> BTreeMap<u64, (u32, String)> {
    let mut owners = BTreeMap::new();
    for (pid, name) in crate::processes::all() {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for target in descriptors
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
        {
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let inode = inode.and_then(|inode| inode.parse::<u64>().ok());
            if let Some(inode) = inode.filter(|inode| sockets.iter().any(|(_, known)| known == inode)) {
                owners.insert(inode, (pid, name.clone()));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:FDE9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n   \
            1: 0100007F:FDE9 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(parse(table), [("127.0.0.1:65001".parse().unwrap(), 4711)]);
            let six = table.replace("0100007F:FDE9 0", "00000000000000000000000001000000:FDE9 0");
            assert_eq!(parse(&six)[0].0, "[::1]:65001".parse().unwrap());
        }
        assert!(parse("").is_empty() && parse("x\ny").is_empty());
    }

    #[test]
    fn we_find_ourselves() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listeners(listener.local_addr().unwrap().port());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pid, Some(std::process::id()));
    }
}
