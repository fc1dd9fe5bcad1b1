//! Writes the seeds of the fuzz targets below the folder that is named: `FOLDER/TARGET/N`.
//!
//! `cargo run --example fuzz-seeds -- fuzz/corpus`; `scripts/fuzz-targets` calls it.

#[path = "../fuzz/seeds.rs"]
mod seeds;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = std::env::args().nth(1) else { return Err("usage: fuzz-seeds FOLDER".into()) };
    for target in ["frames", "answers", "startup", "guard", "comment", "explain"] {
        let folder = std::path::Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds::of(target).into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:04}")), seed)?;
        }
    }
    Ok(())
}
