//! `Range` of a blob. The property is where the parser is.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piecemeal_proxy::fuzzing::range(input));
