//! libFuzzer's way into the entry point of this name.
#![no_main]

#[path = "../entry.rs"]
#[allow(dead_code, reason = "each target calls one of them")]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::catalog(data));
