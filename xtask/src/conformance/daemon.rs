//! Programs that run beside this one, and end with it.
//!
//! Invariant: each wait for a program has a limit, and a program is killed when its handle is dropped.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// A running program, killed when dropped. What it says is in its log.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until a GET is answered 200.
    ///
    /// # Errors
    /// When the program ends before, or takes too long.
    pub(super) fn wait_until_ready(&mut self, address: SocketAddr, path: &str) -> Result<()> {
        let deadline = Instant::now() + READY_TIME_MAX;
        while !answers(address, path).unwrap_or(false) {
            let ended = self.child.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                bail!("{path} does not answer; see {}", self.log.display());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits until the program has ended by itself.
    ///
    /// # Errors
    /// When it takes too long; it is killed then.
    pub(super) fn wait(mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + RUN_TIME_MAX;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
        bail!("still running after {RUN_TIME_MAX:?}; see {}", self.log.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Loopback addresses that were free just now.
pub(super) fn free_addresses<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); COUNT];
    // All are held until the last is found: none is found twice.
    let mut listeners = Vec::new();
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).context("cannot listen on loopback")?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}

fn answers(address: SocketAddr, path: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}

const READY_TIME_MAX: Duration = Duration::from_secs(20);
/// The suite takes seconds. It has no limit of its own on an answer that never comes.
const RUN_TIME_MAX: Duration = Duration::from_mins(5);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
