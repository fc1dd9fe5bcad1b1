//! Where the files of PostgreSQL's regression suite lie, and in which order they run.
//!
//! Invariant: each file of the folder is named once.

use std::path::{Path, PathBuf};

/// The files of `sql/`, those of `parallel_schedule` first and in its order.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    // A copy of the scripts alone will do for parsing.
    let sql = if folder.join("sql").is_dir() { folder.join("sql") } else { folder.to_owned() };
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(&sql)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    all.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    all.sort();
    let schedule = std::fs::read_to_string(folder.join("parallel_schedule")).unwrap_or_default();
    let mut ordered = Vec::new();
    for line in schedule.lines() {
        for name in line.strip_prefix("test:").unwrap_or_default().split_whitespace() {
            if let Some(at) = all.iter().position(|path| path.file_stem().is_some_and(|stem| stem == name)) {
                ordered.push(all.remove(at));
            }
        }
    }
    ordered.extend(all);
    Ok(ordered)
}
