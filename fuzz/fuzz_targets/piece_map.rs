//! How a blob is cut, and sets of its pieces. The property is where the parser is.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piecemeal_proto::fuzzing::piece_map(input));
