//! See `embedserve_fuzz::entries`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| embedserve_fuzz::run("keys_toml", data));
