//! A session's limits without a source: portions, days, paths.

use super::*;
