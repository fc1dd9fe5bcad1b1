//! The grammar held against PostgreSQL's own parser.
//!
//! Invariant: what is counted here is what PostgreSQL reads.

use fedgate_oracle::generate::{Grammar, POSTGRES};
use fedgate_oracle::judge;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A generator whose texts nobody parses finds nothing.
#[test]
fn postgresql_reads_much_of_what_is_made() {
    let grammar = Grammar::parse(POSTGRES).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let parsed = judge::with_stack(|| {
        (0..1000).filter(|_| judge::read(&grammar.text("text", &mut random)).is_ok()).count()
    });
    assert!(parsed > 250, "{parsed} of 1000");
}
