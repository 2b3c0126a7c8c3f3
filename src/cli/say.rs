//! Lines of a command's output.
//!
//! Invariant: a reader that has gone ends the program without an error.

use std::io::Write;

/// Like `println`, but a reader that has gone, as `head` goes, ends the program without an error.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::say::say_line(format_args!($($text)*)) };
}

pub(super) fn say_line(line: std::fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}
