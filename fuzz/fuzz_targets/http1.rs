#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookward::fuzzing::http1(data));
