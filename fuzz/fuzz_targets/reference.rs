//! Names of repositories, tags, images and registries. The property is where the parser is.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piecemeal_proto::fuzzing::reference(input));
