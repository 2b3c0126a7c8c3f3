//! The images that nodes have before they pull anything, made of programs that are here.

use std::{env, fs, path::Path, process::Command};

use super::super::{image::Image, piecemeal::PIECEMEAL, tools::run};

/// The product's image, as the chart names it: the binary that is tested, the libraries that it is linked with, and the CAs that it
/// trusts.
pub(super) fn product(folder: &Path) -> Image {
    let stripped = folder.join("piecemeal");
    // Imported by every node, and most of it is for debuggers.
    run(Command::new("strip").arg("-o").arg(&stripped).arg(PIECEMEAL));
    let mut files = vec![(
        "/piecemeal".to_owned(),
        fs::read(&stripped).expect("reading the binary"),
    )];
    for word in run(Command::new("ldd").arg(PIECEMEAL)).split_whitespace() {
        if word.starts_with('/') {
            files.push((word.to_owned(), fs::read(word).expect("reading a library")));
        }
    }
    files.push((
        AUTHORITIES.to_owned(),
        fs::read(AUTHORITIES).expect("reading who is trusted"),
    ));
    Image::new("piecemeal", env!("CARGO_PKG_VERSION")).running(&files)
}

/// What holds a pod's namespaces.
pub(super) fn pause() -> Image {
    Image::new("pause", "1").running(&[("/pause".to_owned(), waiting_program())])
}

/// The smallest program that waits until it is killed: an ELF file (see elf(5)) of one segment.
///
/// # Panics
/// On a processor that it is not known for.
pub fn waiting_program() -> Vec<u8> {
    // pause() on x86, where others have only ppoll() without descriptors and without a time; then once more.
    let (machine, code): (u16, &[u8]) = match env::consts::ARCH {
        "x86_64" => (0x3e, &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]),
        "aarch64" => (
            0xb7,
            &[
                0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, 0x04,
                0x00, 0x80, 0xd2, 0x28, 0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xf9, 0xff, 0xff, 0x17,
            ],
        ),
        other => panic!("no program is known that waits on {other}"),
    };
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    half(&mut file, &[2, machine, 1, 0]);
    for value in [LOADED_AT + HEADERS, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    half(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // The segment: loaded, readable and executable.
    half(&mut file, &[1, 0, 5, 0]);
    for value in [0, LOADED_AT, LOADED_AT, size, size, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend(code);
    file
}

/// As in the product's image.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Of the file and of the one segment.
const HEADERS: u64 = 64 + 56;
const LOADED_AT: u64 = 0x40_0000;
