//! The rooms and their ranks, held against the code.
//!
//! It reads the tokens of each file under `src`, so that comments and strings do not count and the
//! insides of macros do. What is `#[cfg(test)]` may look anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Rooms of the first version and of those to come. A room names only rooms of a lower rank.
const RANKS: &[(u8, &[&str])] = &[
    (6, &["main", "app"]),
    (5, &["http"]),
    (4, &["session", "sync", "operate"]),
    (3, &["mask", "upstream"]),
    (2, &["guard", "policy", "tls"]),
    (1, &["sql", "wire", "audit", "config"]),
    (0, &["client", "ids", "document", "sqlstate", "metrics", "status", "timestamp"]),
];

/// Statics that may be changed, since each thread has its own: file and name. A clock that regorus is given has no
/// argument that could say whose evaluation it is asked for.
const OF_A_THREAD: &[(&str, &str)] = &[("policy/adminconfig/budget.rs", "BUDGET")];

/// Within a rank: names and label enums are everybody's, also at the bottom.
const COMMON_LEAF: &str = "ids";

/// `main` is another crate and sees the composition root alone.
const MAIN_SEES: &str = "app";

/// Which part of a crate which rooms may name; `*` is all of it. Guard and mask walk the tree and never make one.
const RESERVED: &[(&str, &[(&str, &str)])] = &[
    (
        "sqlparser",
        &[
            ("sql", "*"),
            ("guard", "ast"),
            ("guard", "tokenizer::Span"),
            ("mask", "ast"),
            ("mask", "tokenizer::Span"),
        ],
    ),
    ("regorus", &[("policy", "*")]),
    ("axum", &[("http", "*")]),
    ("clap", &[("app", "*")]),
    // `sql` reads its own list of known functions.
    ("toml", &[("config", "*"), ("sql", "from_str")]),
];

/// Rooms that perform no I/O, and what I/O would need.
const SILENT: &[&str] = &["sql", "wire", "guard", "mask", "ids", "document", "sqlstate"];
const SPEAKING: &[&[&str]] =
    &[&["tokio"], &["std", "fs"], &["std", "net"], &["std", "process"], &["std", "thread"]];

/// Where a shared value hides in a `static`.
const MUTABLE: &[&str] =
    &["Mutex", "RwLock", "LazyLock", "OnceLock", "Lazy", "OnceCell", "Cell", "RefCell", "UnsafeCell"];

fn rank(room: &str) -> Option<u8> {
    RANKS.iter().find(|(_, rooms)| rooms.contains(&room)).map(|(rank, _)| *rank)
}

/// One file: its path below `src`, and its text.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// The modules that lead to this file: `upstream/tls.rs` is `upstream`, `tls`.
    fn module(&self) -> Vec<String> {
        let mut parts: Vec<String> =
            self.path.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs").to_owned()).collect();
        if parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        parts
    }
}

fn sources() -> Vec<Source> {
    fn collect(folder: &Path, root: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(root).unwrap().to_owned(), text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(found.len() > 20, "only {} files under src", found.len());
    found
}

/// Everything that breaks the rules, each with file and line.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let path = source.path.display();
        match source.text.lines().next() {
            Some(first) if first.starts_with("//! ") && !first.contains("(room)") => {}
            _ => found.push(format!("{path}:1: does not open with `//!` and what it is for")),
        }
        let tokens: TokenStream = match source.text.parse() {
            Ok(tokens) => tokens,
            Err(error) => {
                found.push(format!("{path}: cannot be read as Rust: {error}"));
                continue;
            }
        };
        let module = source.module();
        if module == ["lib"] {
            for edge in edges(tokens, &[]) {
                found.push(format!("{path}:{}: the map of the rooms uses none of them", edge.line));
            }
            continue;
        }
        // A file of tests is test code where its parent says so, as `#[cfg(test)] mod tests;`.
        if let Some((name, parent)) = module.split_last()
            && sources.iter().any(|other| other.module() == parent && declares_tests(&other.text, name))
        {
            continue;
        }
        let Some(room) = module.first() else { continue };
        let Some(own) = rank(room) else {
            found.push(format!(
                "{path}:1: room `{room}` has no rank; give it one in tests/architecture.rs and lib.rs"
            ));
            continue;
        };
        for edge in edges(tokens, &module) {
            let wrong = match &edge.to {
                To::Room(to) if to == room => None,
                To::Room(to) if room == "main" => {
                    (to != MAIN_SEES).then(|| format!("main sees `{MAIN_SEES}` alone, not `{to}`"))
                }
                To::Room(to) => match rank(to) {
                    None => Some(format!("`{to}` is no room with a rank")),
                    Some(other) if other > own => {
                        Some(format!("`{room}` ({own}) looks up to `{to}` ({other})"))
                    }
                    Some(other) if other == own && !(own == 0 && to == COMMON_LEAF) => {
                        Some(format!("`{room}` looks sideways to `{to}`, both of rank {own}"))
                    }
                    Some(_) => None,
                },
                To::Crate(path) => reserved(room, path),
                To::Everything => {
                    Some("names the crate as a whole, so that nobody can tell which room is meant".into())
                }
                To::Hidden(what) => Some(format!("{what} hides code from this test")),
                To::Shared(name) if OF_A_THREAD.contains(&(&*path.to_string(), &**name)) => None,
                To::Shared(name) => Some(format!("static `{name}` can be changed, and is everybody's")),
            };
            if let Some(wrong) = wrong {
                found.push(format!("{path}:{}: {wrong}", edge.line));
            }
        }
    }
    found
}

fn declares_tests(parent: &str, name: &str) -> bool {
    let squeezed: String = parent.chars().filter(|c| !c.is_whitespace()).collect();
    squeezed.contains(&format!("#[cfg(test)]mod{name};"))
}

/// Whether a room may name this path of another crate.
fn reserved(room: &str, path: &[String]) -> Option<String> {
    let name = path.first()?;
    if let Some((_, allowed)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
        let part = path[1..].join("::");
        let fits = allowed.iter().any(|(who, what)| {
            let below = part.strip_prefix(what).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
            *who == room && (*what == "*" || below)
        });
        return (!fits).then(|| format!("`{}` is not for `{room}`", path.join("::")));
    }
    let speaks = SPEAKING
        .iter()
        .any(|prefix| path.iter().map(String::as_str).take(prefix.len()).eq(prefix.iter().copied()));
    (SILENT.contains(&room) && speaks)
        .then(|| format!("`{}` in `{room}`, which performs no I/O", path.join("::")))
}

enum To {
    Room(String),
    /// Another crate, with the first step into it.
    Crate(Vec<String>),
    Everything,
    Hidden(&'static str),
    Shared(String),
}

struct Edge {
    to: To,
    line: usize,
}

/// What the tokens name, seen from `module`.
fn edges(tokens: TokenStream, module: &[String]) -> Vec<Edge> {
    let mut walk = Walk { edges: Vec::new() };
    walk.stream(tokens, module);
    walk.edges
}

struct Walk {
    edges: Vec<Edge>,
}

impl Walk {
    fn edge(&mut self, at: &TokenTree, to: To) {
        self.edges.push(Edge { to, line: at.span().start().line });
    }

    fn stream(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if is_cfg_test(&tokens[at..]) {
                at += 2;
                // Up to the end of the item: its body, or its semicolon.
                while at < tokens.len() {
                    at += 1;
                    match &tokens[at - 1] {
                        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
                        TokenTree::Punct(punct) if punct.as_char() == ';' => break,
                        _ => {}
                    }
                }
                continue;
            }
            let starts_path = at == 0 || !is_path_separator(&tokens[..at]);
            match &tokens[at] {
                TokenTree::Group(group) => self.stream(group.stream(), module),
                TokenTree::Ident(ident) if starts_path => match ident.to_string().as_str() {
                    "mod" => {
                        if let [_, TokenTree::Ident(name), TokenTree::Group(body), ..] = &tokens[at..] {
                            let inner = [module, &[name.to_string()]].concat();
                            self.stream(body.stream(), &inner);
                            at += 3;
                            continue;
                        }
                    }
                    "crate" => {
                        // `pub(crate)` names no room.
                        let visibility = tokens.len() == 1;
                        match after_separator(&tokens[at + 1..]) {
                            Some(rest) => self.below_root(&tokens[at], rest),
                            None if visibility => {}
                            None => self.edge(&tokens[at], To::Everything),
                        }
                    }
                    "super" => self.above(&tokens[at..], module),
                    "include" if matches!(tokens.get(at + 1), Some(TokenTree::Punct(p)) if p.as_char() == '!') =>
                    {
                        self.edge(&tokens[at], To::Hidden("include!"));
                    }
                    "path"
                        if matches!(tokens.get(at + 1), Some(TokenTree::Punct(p)) if p.as_char() == '=')
                            && tokens.len() == 3 =>
                    {
                        self.edge(&tokens[at], To::Hidden("#[path]"));
                    }
                    "static" if !is_lifetime(&tokens[..at]) => self.shared(&tokens[at..]),
                    name => self.other_crate(&tokens[at], name, &tokens[at + 1..], module),
                },
                _ => {}
            }
            at += 1;
        }
    }

    /// What follows `crate::`: a room, or several in braces.
    fn below_root(&mut self, at: &TokenTree, rest: &[TokenTree]) {
        match rest.first() {
            Some(TokenTree::Ident(room)) if room != "self" => self.edge(at, To::Room(room.to_string())),
            Some(TokenTree::Group(group)) => {
                for names in split_commas(group.stream()) {
                    self.below_root(at, &names);
                }
            }
            None => {}
            _ => self.edge(at, To::Everything),
        }
    }

    /// `super::super::…`: above the room, the next name is a room.
    fn above(&mut self, tokens: &[TokenTree], module: &[String]) {
        let mut depth = module.len();
        let mut rest = tokens;
        while let Some(TokenTree::Ident(ident)) = rest.first()
            && ident == "super"
        {
            depth = depth.saturating_sub(1);
            match after_separator(&rest[1..]) {
                Some(next) => rest = next,
                // `pub(super)`, or `use super as …`, which is odd enough to be refused at the root.
                None => {
                    if depth == 0 && tokens.len() > 1 {
                        self.edge(&tokens[0], To::Everything);
                    }
                    return;
                }
            }
        }
        match depth {
            0 => self.below_root(&tokens[0], rest),
            _ => {
                // `super::{super::x}` climbs on inside the braces.
                if let Some(TokenTree::Group(group)) = rest.first() {
                    for names in split_commas(group.stream()) {
                        if matches!(names.first(), Some(TokenTree::Ident(ident)) if ident == "super") {
                            self.above(&names, &module[..depth]);
                        }
                    }
                }
            }
        }
    }

    /// `static NAME: Type = …;`
    fn shared(&mut self, tokens: &[TokenTree]) {
        let name = match tokens.get(1) {
            Some(TokenTree::Ident(name)) if name == "mut" => tokens.get(2),
            name => name,
        };
        let Some(TokenTree::Ident(name)) = name else { return };
        let declared =
            tokens.iter().take_while(|token| !matches!(token, TokenTree::Punct(p) if p.as_char() == '='));
        let mut flat = Vec::new();
        flatten(declared.cloned().collect(), &mut flat);
        if flat
            .iter()
            .any(|word| word == "mut" || word.starts_with("Atomic") || MUTABLE.contains(&word.as_str()))
        {
            self.edge(&tokens[0], To::Shared(name.to_string()));
        }
    }

    /// `name::…`, where the name may be that of another crate.
    fn other_crate(&mut self, at: &TokenTree, name: &str, rest: &[TokenTree], module: &[String]) {
        let Some(rest) = after_separator(rest) else {
            // `use sqlparser as s;` would let `s::parser` pass.
            let renamed = matches!(rest.first(), Some(TokenTree::Ident(word)) if word == "as");
            if renamed && RESERVED.iter().any(|(reserved, _)| *reserved == name) {
                self.edge(at, To::Crate(vec![name.to_owned()]));
            }
            return;
        };
        if name == "fedgate" && module.first().is_some_and(|room| room == "main") {
            return self.below_root(at, rest);
        }
        self.within_crate(at, &[name.to_owned()], rest);
    }

    /// Up to three steps of a path into another crate, braces spread out.
    fn within_crate(&mut self, at: &TokenTree, path: &[String], rest: &[TokenTree]) {
        match rest.first() {
            Some(TokenTree::Ident(part)) if part != "self" => {
                let path = [path, &[part.to_string()]].concat();
                match after_separator(&rest[1..]) {
                    Some(below) if path.len() < 3 => self.within_crate(at, &path, below),
                    _ => self.edge(at, To::Crate(path)),
                }
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                for names in split_commas(group.stream()).iter().filter(|names| !names.is_empty()) {
                    self.within_crate(at, path, names);
                }
            }
            _ => self.edge(at, To::Crate(path.to_vec())),
        }
    }
}

/// `#[cfg(test)]`
fn is_cfg_test(tokens: &[TokenTree]) -> bool {
    match tokens {
        [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] if hash.as_char() == '#' => {
            let text: String =
                attribute.stream().to_string().chars().filter(|c| !c.is_whitespace()).collect();
            text == "cfg(test)"
        }
        _ => false,
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether the tokens end in `::`.
fn is_path_separator(tokens: &[TokenTree]) -> bool {
    let end = tokens.len();
    end >= 2 && is_punct(tokens.get(end - 1), ':') && is_punct(tokens.get(end - 2), ':') && {
        // In `use ::sqlparser` the separator starts the path and joins nothing.
        matches!(end.checked_sub(3).and_then(|before| tokens.get(before)),
            Some(TokenTree::Ident(word)) if word != "use" && word != "in")
            || is_punct(end.checked_sub(3).and_then(|before| tokens.get(before)), '>')
    }
}

fn after_separator(tokens: &[TokenTree]) -> Option<&[TokenTree]> {
    (is_punct(tokens.first(), ':') && is_punct(tokens.get(1), ':')).then(|| &tokens[2..])
}

fn is_lifetime(before: &[TokenTree]) -> bool {
    is_punct(before.last(), '\'')
}

fn split_commas(tokens: TokenStream) -> Vec<Vec<TokenTree>> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens.split(|token| is_punct(Some(token), ',')).map(<[TokenTree]>::to_vec).collect()
}

fn flatten(tokens: TokenStream, words: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => flatten(group.stream(), words),
            other => words.push(other.to_string()),
        }
    }
}

#[test]
fn the_rooms_keep_their_ranks() {
    let found = violations(&sources());
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// lib.rs is where people read the table, so it has to be the one that is held.
#[test]
fn the_map_in_lib_is_the_table() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let mut mapped: BTreeMap<String, u8> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Ok(rank) = cells[0].parse::<u8>() else { continue };
        for name in cells[1].split('`').skip(1).step_by(2) {
            mapped.insert(name.to_owned(), rank);
        }
    }
    for (name, mapped) in &mapped {
        assert_eq!(rank(name), Some(*mapped), "the rank of `{name}` in lib.rs");
    }
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut count = 0;
    for room in declared {
        count += 1;
        assert!(mapped.contains_key(room), "`{room}` is missing from the map in lib.rs");
    }
    assert_eq!(mapped.len(), count + 1, "the map in lib.rs has all rooms, and main, and no others");
}

#[test]
fn a_planted_edge_is_found() {
    let planted =
        |path: &str, code: &str| violations(&[Source::new(path, &format!("//! What it is for.\n{code}\n"))]);
    for (path, code, wanted) in [
        ("guard/walk.rs", "use crate::session::Relay;", "`guard` (2) looks up to `session` (4)"),
        ("guard/walk.rs", "use crate::{ids::X, upstream::{self, Y}};", "looks up to `upstream`"),
        ("guard/walk.rs", "fn f() { let x = crate::http::serve(); }", "looks up to `http`"),
        (
            "guard/walk.rs",
            "fn f() { tokio_select! { a = async { crate::http::g() } => {} } }",
            "looks up to `http`",
        ),
        ("guard/walk.rs", "use super::super::session;", "looks up to `session`"),
        ("guard/mod.rs", "use super::session;", "looks up to `session`"),
        ("guard/mod.rs", "use super::{sql, session::X};", "looks up to `session`"),
        ("guard/walk.rs", "mod deep { use super::super::super::session; }", "looks up to `session`"),
        ("guard/walk.rs", "use super::{super::session, x};", "looks up to `session`"),
        ("guard/walk.rs", "macro_rules! m { () => { $crate::session::f() } }", "looks up to `session`"),
        ("sql/a.rs", "use crate::wire::Frame;", "`sql` looks sideways to `wire`, both of rank 1"),
        ("metrics.rs", "use crate::status::Status;", "`metrics` looks sideways to `status`"),
        ("ids.rs", "use crate::metrics::Metrics;", "sideways"),
        ("app/mod.rs", "use crate::main::x;", "sideways"),
        ("guard/walk.rs", "use crate::helpers::x;", "`helpers` is no room with a rank"),
        ("guard/walk.rs", "use crate::*;", "names the crate as a whole"),
        ("guard/walk.rs", "use crate as c;", "names the crate as a whole"),
        ("guard/walk.rs", "use crate::{self as c};", "names the crate as a whole"),
        ("helpers/mod.rs", "", "room `helpers` has no rank"),
        ("guard/walk.rs", "use sqlparser::parser::Parser;", "`sqlparser::parser::Parser` is not for `guard`"),
        (
            "guard/walk.rs",
            "use sqlparser::{tokenizer::{Span, Tokenizer}};",
            "`sqlparser::tokenizer::Tokenizer` is not for",
        ),
        ("guard/walk.rs", "use sqlparser::tokenizer;", "`sqlparser::tokenizer` is not for `guard`"),
        ("guard/walk.rs", "use sqlparser::{self, ast};", "`sqlparser` is not for `guard`"),
        (
            "guard/walk.rs",
            "use ::sqlparser::{ast::Expr, dialect::X};",
            "`sqlparser::dialect::X` is not for `guard`",
        ),
        ("guard/walk.rs", "use sqlparser::*;", "`sqlparser` is not for `guard`"),
        ("guard/walk.rs", "use sqlparser as s;", "`sqlparser` is not for `guard`"),
        ("session/a.rs", "fn f(x: sqlparser::ast::Expr) {}", "`sqlparser::ast::Expr` is not for `session`"),
        (
            "wire/frame.rs",
            "use tokio::io::AsyncRead;",
            "`tokio::io::AsyncRead` in `wire`, which performs no I/O",
        ),
        ("sql/a.rs", "fn f() { std::fs::read(\"x\"); }", "`std::fs::read` in `sql`"),
        (
            "session/a.rs",
            "static SEEN: std::sync::Mutex<u8> = std::sync::Mutex::new(0);",
            "static `SEEN` can be changed",
        ),
        ("session/a.rs", "static mut SEEN: u8 = 0;", "static `SEEN` can be changed"),
        ("session/a.rs", "static SEEN: AtomicU64 = AtomicU64::new(0);", "static `SEEN` can be changed"),
        ("session/a.rs", "include!(\"x.rs\");", "include! hides code"),
        ("session/a.rs", "#[path = \"../http/x.rs\"] mod x;", "#[path] hides code"),
        ("main.rs", "use fedgate::session::X;", "main sees `app` alone"),
        ("lib.rs", "pub use crate::session::X;", "the map of the rooms uses none of them"),
    ] {
        let found = planted(path, code);
        assert!(found.len() == 1 && found[0].contains(wanted), "{path}: {code}: {found:?}");
        let line = if wanted.contains("no rank") && path.starts_with("helpers") { ":1: " } else { ":2: " };
        assert!(found[0].contains(line), "{found:?}");
    }
    assert!(violations(&[Source::new("guard/a.rs", "use crate::ids::X;")])[0].contains("does not open with"));
    assert!(violations(&[Source::new("guard/a.rs", "//! (room)")])[0].contains("does not open with"));
}

#[test]
fn what_is_allowed_is_not_found() {
    for (path, code) in [
        (
            "guard/walk.rs",
            "use crate::{ids, sql::Tree}; use super::Permit; pub(super) fn f() {} pub(crate) fn g() {}",
        ),
        ("guard/mod.rs", "pub(super) struct X; impl X { pub(in crate::guard) fn f() {} }"),
        (
            "guard/walk.rs",
            "// use crate::session::X;\n/// crate::session\nconst X: &str = \"crate::session::X\";",
        ),
        ("guard/walk.rs", "#[cfg(test)]\nmod tests { use crate::session::X; use tokio::net::TcpStream; }"),
        ("guard/walk.rs", "#[cfg(test)]\nuse crate::session::X;\nfn f() {}"),
        ("guard/walk.rs", "mod deep { use super::super::Permit; fn f() { super::g() } }"),
        (
            "guard/walk.rs",
            "use sqlparser::ast::{self, Expr}; use sqlparser::{tokenizer::Span, ast::*}; fn f() -> &'static str { \"\" }",
        ),
        ("metrics.rs", "use crate::ids::RefusalClass;"),
        ("sql/a.rs", "use sqlparser::parser::Parser; use std::io::Write; static WORDS: &[&str] = &[\"a\"];"),
        ("session/a.rs", "use crate::{config, guard, upstream, wire}; use tokio::net::TcpListener;"),
        ("session/a.rs", "fn f() { let path = 1; x(path); let session = a::crate_name::b(); }"),
        ("main.rs", "fn main() -> std::process::ExitCode { fedgate::app::main() }"),
        ("lib.rs", "pub mod app;"),
    ] {
        let found = violations(&[Source::new(path, &format!("//! What it is for.\n{code}\n"))]);
        assert!(found.is_empty(), "{path}: {code}: {found:?}");
    }
    let tests = Source::new("guard/tests.rs", "//! Cases.\nuse crate::session::X;\n");
    let parent = |text: &str| Source::new("guard/mod.rs", text);
    let found = violations(&[parent("//! Judges.\n#[cfg(test)]\nmod tests;\n"), tests]);
    assert!(found.is_empty(), "{found:?}");
    let tests = Source::new("guard/tests.rs", "//! Cases.\nuse crate::session::X;\n");
    assert_eq!(violations(&[parent("//! Judges.\nmod tests;\n"), tests]).len(), 1);
}
