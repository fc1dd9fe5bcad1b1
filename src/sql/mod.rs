//! Text to tree: the only place that parses. Nothing here performs I/O.
