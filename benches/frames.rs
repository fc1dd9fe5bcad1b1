//! What the walk over a source's answers costs: message headers in, ranges to pass on out.
//!
//! `cargo bench --bench frames`. The figures stand in docs/performance.md.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedgate::wire::frame;

/// `rows` DataRow messages of `width` bytes each, then CommandComplete and ReadyForQuery.
fn answer(rows: usize, width: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rows {
        bytes.push(b'D');
        bytes.extend((width as u32 + 4).to_be_bytes());
        bytes.extend(std::iter::repeat_n(b'x', width));
    }
    bytes.extend(b"C\0\0\0\x0dSELECT 1\0");
    bytes.extend(b"Z\0\0\0\x05I");
    bytes
}

/// As the relay does it: a header, then a jump over the body.
fn walk(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut messages = 0;
    while let Ok(Some(header)) = frame::header(rest, 0x3fff_ffff) {
        messages += 1;
        rest = rest.get(header.size..).unwrap_or_default();
    }
    messages
}

fn frames(c: &mut Criterion) {
    for (name, rows, width) in
        [("point read", 1, 100), ("1000 narrow rows", 1000, 40), ("100 wide rows", 100, 4000)]
    {
        let bytes = answer(rows, width);
        assert_eq!(walk(&bytes), rows + 2);
        let mut group = c.benchmark_group("walk");
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| b.iter(|| walk(black_box(&bytes))));
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
