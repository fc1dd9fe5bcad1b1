//! The binary: nothing but the way into [`fedgate::app`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Sessions allocate small and short-lived things on several threads; the system's allocator grew and
/// trimmed its arenas under that (docs/performance.md has the figures).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    fedgate::app::main()
}
