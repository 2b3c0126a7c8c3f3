//! Health check of a runtime's CRI: one call of `Version`, over a minimal HTTP/2 client.
//!
//! systemd counts containerd as started even when its CRI plugin has not loaded, so that only an answer proves it. gRPC sends a
//! DATA frame only with a message: a DATA frame means success and an end of the stream without one means failure, so that nothing
//! has to be decoded.
//! Sources: RFC 9113, RFC 7541 appendix A, gRPC's PROTOCOL-HTTP2.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Waits until the CRI answers at this socket.
///
/// # Errors
/// Says what it answered last, if it does not within that time.
pub(crate) fn wait(socket: &Path, patience: Duration) -> Result<(), String> {
    let end = Instant::now() + patience;
    loop {
        let Err(why) = ask(socket) else { return Ok(()) };
        if Instant::now() >= end {
            return Err(format!("its CRI does not answer: {why}"));
        }
        thread::sleep(INTERVAL);
    }
}

fn ask(socket: &Path) -> Result<(), String> {
    let mut why = String::new();
    for service in ["runtime.v1.RuntimeService", "runtime.v1alpha2.RuntimeService"] {
        let answered = UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(CALL_TIMEOUT))?;
            stream.set_write_timeout(Some(CALL_TIMEOUT))?;
            call(stream, &format!("/{service}/Version"))
        });
        match answered {
            Ok(()) => return Ok(()),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// Whether a call without arguments is answered by a message.
fn call(mut stream: impl Read + Write, path: &str) -> io::Result<()> {
    let mut request = PREFACE.to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    request.extend(frame(HEADERS, END_HEADERS, STREAM, &headers(path)));
    // An empty message, neither compressed nor of any length.
    request.extend(frame(DATA, END_STREAM, STREAM, &[0; 5]));
    stream.write_all(&request)?;
    for _ in 0..FRAMES_MAX {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [high, middle, low, kind, flags, number @ ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        io::copy(&mut (&mut stream).take(length.into()), &mut io::sink())?;
        match (kind, u32::from_be_bytes(number)) {
            (DATA, STREAM) if length > 0 => return Ok(()),
            (RESET, STREAM) | (GO_AWAY, _) => return Err(io::Error::other("it refuses the call")),
            (DATA | HEADERS, STREAM) if flags & END_STREAM != 0 => {
                return Err(io::Error::other("its CRI plugin has not loaded"));
            }
            (SETTINGS, _) if flags & ACKNOWLEDGED == 0 => stream.write_all(&frame(SETTINGS, ACKNOWLEDGED, 0, &[]))?,
            _ => {}
        }
    }
    Err(ErrorKind::InvalidData.into())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `:method: POST` and `:scheme: http` of the static table; the others literally, by a name of that table or a new one.
fn headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let text = |text: &str| {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
        [&[length.unwrap_or_default()], text.as_bytes()].concat()
    };
    // Names by number: 4 is `:path`, 1 is `:authority`, 31 (two bytes) is `content-type`.
    for (name, value) in [
        (&[0x04][..], path),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        block.extend(name);
        block.extend(text(value));
    }
    block.push(0);
    block.extend(text("te"));
    block.extend(text("trailers"));
    block
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const ACKNOWLEDGED: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const STREAM: u32 = 1;
/// The most frames that are read of an answer, which has about ten.
const FRAMES_MAX: usize = 100;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    /// What the other side sends, and what it is sent.
    struct Wire(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Wire {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into)
        }
    }

    impl Write for Wire {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            self.1.write(from)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(frames: &[Vec<u8>]) -> io::Result<()> {
        let mut wire = Wire(io::Cursor::new(frames.concat()), Vec::new());
        let answer = call(&mut wire, "/x/Version");
        assert!(wire.1.starts_with(PREFACE));
        answer
    }

    #[test]
    fn a_message_is_a_yes_and_an_end_without_one_is_a_no() {
        let settings = frame(SETTINGS, 0, 0, &[]);
        let open = frame(HEADERS, END_HEADERS, STREAM, &[0x88]);
        let end = frame(HEADERS, END_HEADERS | END_STREAM, STREAM, &[0x88]);
        let message = frame(DATA, 0, STREAM, &[0, 0, 0, 0, 1, 7]);
        assert!(said(&[settings.clone(), open.clone(), message, end.clone()]).is_ok());
        let no = said(&[settings.clone(), end]).unwrap_err();
        assert!(no.to_string().contains("has not loaded"));
        for broken in [
            frame(RESET, 0, STREAM, &[0; 4]),
            frame(GO_AWAY, 0, 0, &[0; 8]),
            vec![1, 2],
        ] {
            assert!(said(&[settings.clone(), open.clone(), broken]).is_err());
        }
    }

    #[test]
    fn a_socket_without_a_listener_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(wait(&dir.path().join("none.sock"), Duration::ZERO).is_err());
    }
}
