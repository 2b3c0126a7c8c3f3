//! `WWW-Authenticate`, and where it may send us. The property is where the parser is.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piecemeal_upstream::fuzzing::challenge(input));
