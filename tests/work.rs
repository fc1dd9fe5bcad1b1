//! What a verdict takes, counted and not timed: bytes allocated in all and held at once, over families of texts that are
//! large on purpose.
//!
//! Invariant: twice the text asks for twice the work, and no text makes a verdict hold more than its bound. The test runs alone in its process, so that the counts are its own.

#[path = "support/families.rs"]
mod families;

use cap::Cap;
use fedgate::guard::{Context, Mode, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::lexer;
use peak_alloc::PeakAlloc;

static PEAK: PeakAlloc = PeakAlloc;
#[global_allocator]
static ALLOCATOR: Cap<PeakAlloc> = Cap::new(PeakAlloc, usize::MAX);

/// Bytes that one verdict may hold at the same time, whatever it is asked.
const HELD: usize = 192 << 20;
/// Of a small text too: tables that are made once.
const FIXED: usize = 256 << 10;

/// About the longest text of the family that the bounds on tokens let through.
fn longest(make: fn(usize) -> String, limits: &Limits) -> usize {
    let (mut fits, mut over) = (0, limits.bytes);
    while over - fits > 4 << 10 {
        let middle = fits.midpoint(over);
        if lexer::tokens(&make(middle), limits).is_ok() {
            fits = middle;
        } else {
            over = middle;
        }
    }
    fits
}

#[test]
fn work_is_linear_in_the_text_and_memory_is_bounded() {
    let catalogue = Catalogue::stock(15).unwrap();
    let source = SourceName::new("s");
    let bounded = Limits::default();
    // Out of the way: what is looked for is what these bounds would hide.
    let unbounded = Limits { tokens: usize::MAX, weight: usize::MAX, ..bounded };
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &bounded, source: &source };
    let free = Context { limits: &unbounded, ..ctx };
    let (mut worst, mut findings) = ((0, 0, ""), Vec::new());
    for (name, make) in families::FAMILIES {
        let totals: Vec<usize> = [4 << 10, 8 << 10, 16 << 10]
            .into_iter()
            .map(|bytes| {
                let text = make(bytes);
                let before = ALLOCATOR.total_allocated();
                drop(judge(text.as_bytes(), &free));
                ALLOCATOR.total_allocated() - before
            })
            .collect();
        // Vectors grow by doubling, so a family may leap.
        if totals.windows(2).any(|pair| pair[1] > 3 * pair[0] + FIXED) {
            findings.push(format!("{name}: {totals:?} bytes in all for 4, 8 and 16 KiB"));
        }
        // The longest that is parsed at all.
        let text = make(longest(*make, &bounded));
        let before = PEAK.current_usage();
        PEAK.reset_peak_usage();
        drop(judge(text.as_bytes(), &ctx));
        let held = PEAK.peak_usage().saturating_sub(before);
        worst = worst.max((held, text.len(), name));
        if held > HELD {
            findings.push(format!("{name}: {} bytes hold {held}", text.len()));
        }
    }
    println!("most held at the same time: {} MiB, for {} bytes ({})", worst.0 >> 20, worst.1, worst.2);
    assert!(findings.is_empty(), "{findings:#?}");
}
