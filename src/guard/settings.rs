//! The settings that a client may change: for SET, for `set_config`, for startup keys and for `options`.
//!
//! Invariant: nothing on the list changes how text is lexed, who the session is, what is logged or how
//! much memory it takes; every entry says why it is there.

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, ObjectName,
    Select, SelectItem, TableFactor, Value, ValueWithSpan,
};

use super::walk::{Walk, offset, parts};
use crate::guard::Refusal;

/// What values a setting may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Whatever the server accepts.
    Any,
    /// Any, but it is the gateway that sets it, with its own prefix.
    ApplicationName,
    /// UTF8, by any of its names.
    Utf8,
    On,
    /// A value that means true: it may be set, never unset.
    ReadOnly,
    /// A number up to this one.
    AtMost(u32),
    /// An amount of memory up to this many kilobytes.
    Memory(u64),
    /// Schemas, but for the session's own temporary one.
    Path,
}

use Rule::{Any, ApplicationName, AtMost, Memory, On, Path, ReadOnly, Utf8};

const FORMAT: &str = "how values are written";
const PLANNER: &str = "which plan is taken, never what it may do";
/// A plan takes `work_mem` for each of its sorts and hashes, a hash `hash_mem_multiplier` times that:
/// so both have a bound, and with it what one statement can take from the source.
const SPACE: &str = "how much a sort or a hash keeps in memory, within a bound";
const WAITS: &str = "how long this session waits; the gateway keeps its own clock";
const DUMP: &str = "pg_dump sets it";
const SEARCH: &str = "how near a match must be";

const ALLOWED: &[(&str, Rule, &str)] = &[
    ("application_name", ApplicationName, "who asks; drivers set it"),
    ("bytea_output", Any, FORMAT),
    ("check_function_bodies", Any, DUMP),
    ("client_encoding", Utf8, "drivers set it; statements can be judged in UTF-8 only"),
    ("client_min_messages", Any, "which notices this client sees"),
    ("constraint_exclusion", Any, PLANNER),
    ("cpu_index_tuple_cost", Any, PLANNER),
    ("cpu_operator_cost", Any, PLANNER),
    ("cpu_tuple_cost", Any, PLANNER),
    ("cursor_tuple_fraction", Any, PLANNER),
    ("datestyle", Any, FORMAT),
    ("default_text_search_config", Any, "how text is searched when none is named"),
    ("default_transaction_deferrable", Any, "when a read-only transaction starts"),
    ("default_transaction_isolation", Any, "which rows a transaction sees"),
    ("default_transaction_read_only", ReadOnly, "it may be switched on"),
    ("effective_cache_size", Any, PLANNER),
    ("effective_io_concurrency", AtMost(1000), "how far is read ahead"),
    ("escape_string_warning", Any, "a warning"),
    ("extra_float_digits", Any, FORMAT),
    ("from_collapse_limit", Any, PLANNER),
    ("geqo", Any, PLANNER),
    ("hash_mem_multiplier", AtMost(8), SPACE),
    ("hnsw.ef_search", Any, SEARCH),
    ("idle_in_transaction_session_timeout", Any, WAITS),
    ("idle_session_timeout", Any, WAITS),
    ("intervalstyle", Any, FORMAT),
    ("ivfflat.probes", Any, SEARCH),
    ("jit", Any, PLANNER),
    ("join_collapse_limit", Any, PLANNER),
    ("lc_monetary", Any, FORMAT),
    ("lc_numeric", Any, FORMAT),
    ("lc_time", Any, FORMAT),
    ("lock_timeout", Any, WAITS),
    ("max_parallel_workers_per_gather", AtMost(8), "how many of the workers that the source allows at all"),
    ("parallel_leader_participation", Any, PLANNER),
    ("parallel_setup_cost", Any, PLANNER),
    ("parallel_tuple_cost", Any, PLANNER),
    ("pg_trgm.similarity_threshold", Any, SEARCH),
    ("pg_trgm.strict_word_similarity_threshold", Any, SEARCH),
    ("pg_trgm.word_similarity_threshold", Any, SEARCH),
    ("plan_cache_mode", Any, PLANNER),
    ("quote_all_identifiers", Any, DUMP),
    ("random_page_cost", Any, PLANNER),
    ("recursive_worktable_factor", Any, PLANNER),
    ("restrict_nonsystem_relation_kind", Any, DUMP),
    ("row_security", Any, "off makes a filtered query fail, it never lifts the filter; pg_dump sets it"),
    ("search_path", Path, "where names are looked up; functions are judged in every schema"),
    ("seq_page_cost", Any, PLANNER),
    ("standard_conforming_strings", On, "drivers set it; off would change what is a string"),
    ("statement_timeout", Any, WAITS),
    ("synchronize_seqscans", Any, DUMP),
    ("timezone", Any, FORMAT),
    ("transaction_deferrable", Any, "when a read-only transaction starts"),
    ("transaction_isolation", Any, "which rows a transaction sees"),
    ("transaction_read_only", ReadOnly, "it may be switched on"),
    ("transaction_timeout", Any, WAITS),
    ("work_mem", Memory(256 << 10), SPACE),
    ("xmlbinary", Any, FORMAT),
    ("xmloption", Any, "whether text is taken for a document"),
];

/// Families of settings, by the beginning of their names.
const ALLOWED_FAMILIES: &[(&str, &str)] =
    &[("enable_", PLANNER), ("geqo_", PLANNER), ("jit_above_", PLANNER), ("min_parallel_", PLANNER)];

/// Settings of the gateway's own that not even a writer may change.
const PINNED: &[&str] =
    &["backslash_quote", "client_encoding", "role", "session_authorization", "standard_conforming_strings"];

/// A setting that may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// In lower case.
    pub name: String,
    /// As the server is to get it.
    pub value: String,
}

fn rule(name: &str) -> Option<Rule> {
    if let Ok(at) = ALLOWED.binary_search_by(|(known, _, _)| (*known).cmp(name)) {
        return ALLOWED.get(at).map(|(_, rule, _)| *rule);
    }
    // One with a dot is no setting of the server's own.
    if name.contains('.') {
        return None;
    }
    ALLOWED_FAMILIES.iter().any(|(prefix, _)| name.starts_with(prefix)).then_some(Any)
}

fn is_true(value: &str) -> bool {
    ["on", "true", "t", "yes", "y", "1"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// An amount of memory as the server reads it: kilobytes, or with a unit behind a whole number.
fn kilobytes(value: &str) -> Option<u64> {
    // The server knows ASCII's spaces alone.
    let value = value.trim_ascii();
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit.trim_ascii() {
        "" | "kB" => Some(number),
        // Less than a kilobyte is rounded.
        "B" => Some(number.div_ceil(1024)),
        "MB" => number.checked_mul(1 << 10),
        "GB" => number.checked_mul(1 << 20),
        _ => None,
    }
}

/// May a name of this list be `pg_temp`? Where it comes first of those that there are, asking for the current schema
/// makes it: rows of `pg_namespace` and a transaction id, in a read-only transaction too.
fn names_temporary(path: &str) -> bool {
    // A comma inside of quotes parts a name here that is one to the server: then more is refused.
    path.split(',').any(|name| {
        let plain = |letter: char| letter == '"' || letter.is_ascii_whitespace() || letter == '\x0b';
        name.trim_matches(plain).eq_ignore_ascii_case("pg_temp")
    })
}

/// Encodings by name, as `pg_char_to_encoding` compares them: letters and digits only.
fn is_utf8(value: &str) -> bool {
    let plain: String =
        value.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
    // SQL_ASCII means "as it comes", and only UTF-8 comes.
    matches!(plain.as_str(), "utf8" | "unicode" | "sqlascii")
}

/// May a client set this? For startup keys and for SET.
pub fn judge_setting(name: &str, value: &str) -> Result<Setting, Refusal> {
    let name = name.to_ascii_lowercase();
    let Some(rule) = rule(&name) else {
        return Err(
            Refusal::setting(&name).because("It is not on the list of settings that clients may change.")
        );
    };
    let value = match rule {
        Any | ApplicationName => value.to_owned(),
        Utf8 if is_utf8(value) => "UTF8".to_owned(),
        Utf8 => return Err(Refusal::encoding(value)),
        On if is_true(value) => "on".to_owned(),
        On => {
            return Err(Refusal::setting(&name)
                .because("It has to stay on: statements are verified as they are lexed with it."));
        }
        ReadOnly if is_true(value) => "on".to_owned(),
        ReadOnly => return Err(Refusal::mode()),
        Path if names_temporary(value) => {
            return Err(Refusal::setting(&name).because(
                "With pg_temp on it, current_schema() makes the schema of the session's temporary objects, which is a write.",
            ));
        }
        Path => value.to_owned(),
        AtMost(most) if value.trim_ascii().parse::<f64>().is_ok_and(|value| value <= f64::from(most)) => {
            value.to_owned()
        }
        AtMost(most) => {
            return Err(Refusal::setting(&name).because(format!("A client may set it to {most} at most.")));
        }
        Memory(most) if kilobytes(value).is_some_and(|value| value <= most) => value.to_owned(),
        Memory(most) => {
            return Err(
                Refusal::setting(&name).because(format!("A client may set it to {}MB at most.", most >> 10))
            );
        }
    };
    Ok(Setting { name, value })
}

/// May a writer of a source that is open for writing set this?
pub(super) fn judge_writer_setting(name: &str, value: &str) -> Result<(), Refusal> {
    if PINNED.contains(&name) { judge_setting(name, value).map(|_| ()) } else { Ok(()) }
}

/// May a client give this setting back its default? The defaults are the session's pins, but for
/// `transaction_read_only`: its default is off, whatever `default_transaction_read_only` is.
pub(super) fn judge_reset(name: &str) -> Result<(), Refusal> {
    match name {
        "role" | "session_authorization" => Err(role(name)),
        "transaction_read_only" => Err(Refusal::mode()),
        _ => Ok(()),
    }
}

pub(super) fn role(name: &str) -> Refusal {
    Refusal::setting(name).because("The session's role at the source is the gateway's.")
}

/// Parses the startup key `options` (`-c name=value`, `--name=value`, backslash before a space) and
/// judges what it sets.
pub fn startup_options(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    // `pg_split_opts`
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(letters.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    let unknown = |word: &str| {
        Refusal::setting(word)
            .because("Of the startup options only \"-c name=value\" and \"--name=value\" are known.")
    };
    while let Some(word) = words.next() {
        let pair = if word == "-c" {
            words.next().ok_or_else(|| unknown(&word))?
        } else if let Some(pair) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            pair.to_owned()
        } else {
            return Err(unknown(&word));
        };
        let (name, value) = pair.split_once('=').ok_or_else(|| unknown(&pair))?;
        let setting = judge_setting(&name.replace('-', "_"), value)?;
        settings.push((setting.name, setting.value));
    }
    Ok(settings)
}

fn argument(arg: &FunctionArg) -> Option<&Expr> {
    match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        FunctionArg::Unnamed(
            FunctionArgExpr::QualifiedWildcard(_)
            | FunctionArgExpr::Wildcard
            | FunctionArgExpr::WildcardWithOptions(_),
        )
        | FunctionArg::Named { .. }
        | FunctionArg::ExprNamed { .. } => None,
    }
}

fn constant(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), span: _ }) => Some(text),
        _ => None,
    }
}

fn is_boolean(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(ValueWithSpan { value: Value::Boolean(_) | Value::Placeholder(_), span: _ }))
        || constant(expr).is_some()
}

/// The three arguments of a plain call of `set_config`, or why it is none.
fn set_config(function: &Function) -> Result<Option<[&Expr; 3]>, Refusal> {
    let Function {
        name,
        uses_odbc_syntax: _,
        parameters: _,
        args,
        within_group,
        filter,
        null_treatment,
        over,
    } = function;
    if !Walk::is_set_config(name) {
        return Ok(None);
    }
    let refuse = || Refusal::function("set_config").at(function_offset(name)).because(SHAPES);
    let FunctionArguments::List(list) = args else { return Err(refuse()) };
    let plain = within_group.is_empty()
        && filter.is_none()
        && null_treatment.is_none()
        && over.is_none()
        && list.duplicate_treatment.is_none()
        && list.clauses.is_empty();
    match list.args.as_slice() {
        [first, second, third] if plain => match (argument(first), argument(second), argument(third)) {
            (Some(first), Some(second), Some(third)) if is_boolean(third) => Ok(Some([first, second, third])),
            _ => Err(refuse()),
        },
        _ => Err(refuse()),
    }
}

const SHAPES: &str = "It is admitted with constants only: set_config('name', 'value', true or false).";

fn function_offset(name: &ObjectName) -> Option<usize> {
    parts(name)?.last().and_then(|ident| offset(ident.span))
}

/// Judges a call of `set_config` with a constant name as the SET that it is. `false`: it is another
/// function.
pub(super) fn judge_call(function: &Function, walk: &Walk<'_>) -> Result<bool, Refusal> {
    let Some([name, value, _]) = set_config(function)? else { return Ok(false) };
    let at = function_offset(&function.name);
    let Some(name) = constant(name) else {
        return Err(Refusal::function("set_config").because(SHAPES).at(at));
    };
    judge_value(name, value, walk).map_err(|refusal| refusal.at(at))?;
    walk.set_config.set(walk.set_config.get() + 1);
    Ok(true)
}

fn judge_value(name: &str, value: &Expr, walk: &Walk<'_>) -> Result<(), Refusal> {
    let lower = name.to_ascii_lowercase();
    match rule(&lower) {
        // The relay puts its prefix before the name, which it can do in a SET only.
        Some(ApplicationName) => {
            Err(Refusal::setting(&lower).because("It can be set with SET application_name only."))
        }
        Some(Any) => walk.expr(value),
        Some(Utf8 | On | ReadOnly | AtMost(_) | Memory(_) | Path) | None => {
            let Some(value) = constant(value) else {
                return Err(Refusal::setting(&lower).because(SHAPES));
            };
            let setting = judge_setting(&lower, value)?;
            keeps_encoding(&setting, value)
        }
    }
}

/// SQL_ASCII is read as UTF8 where the gateway sets it; in a text it would be sent as it stands.
pub(super) fn keeps_encoding(setting: &Setting, value: &str) -> Result<(), Refusal> {
    let ascii = value.chars().any(|letter| letter.eq_ignore_ascii_case(&'q'));
    if setting.name == "client_encoding" && ascii { Err(Refusal::encoding(value)) } else { Ok(()) }
}

/// The one shape with a name that is no constant, which pg_dump sends:
/// `SELECT pg_catalog.set_config(name, '…', false) FROM pg_catalog.pg_settings WHERE name = '…'`.
///
/// `true`: the call in the select list is judged; all else is left to the walk.
pub(super) fn is_dump_shape(select: &Select, walk: &Walk<'_>) -> Result<bool, Refusal> {
    let [SelectItem::UnnamedExpr(Expr::Function(function))] = select.projection.as_slice() else {
        return Ok(false);
    };
    if !Walk::is_set_config(&function.name) || select.from.is_empty() || walk.with.get() {
        return Ok(false);
    }
    let Some([Expr::Identifier(name), value, _]) = set_config(function)? else { return Ok(false) };
    let [table] = select.from.as_slice() else { return Ok(false) };
    let settings = match &table.relation {
        TableFactor::Table { name, alias: None, args: None, sample: None, .. } if table.joins.is_empty() => {
            // Versions before 17 send it without the schema, behind an empty search_path.
            match parts(name).as_deref() {
                Some([name]) => name.value == "pg_settings",
                Some([schema, name]) => schema.value == "pg_catalog" && name.value == "pg_settings",
                _ => false,
            }
        }
        _ => false,
    };
    let Some(Expr::BinaryOp { left, op: BinaryOperator::Eq, right }) = &select.selection else {
        return Ok(false);
    };
    let (Expr::Identifier(compared), Some(setting)) = (&**left, constant(right)) else { return Ok(false) };
    let plain = select.distinct.is_none()
        && select.having.is_none()
        && select.named_window.is_empty()
        && matches!(&select.group_by, GroupByExpr::Expressions(exprs, modifiers) if exprs.is_empty() && modifiers.is_empty());
    if !settings || !plain || name.value != "name" || compared.value != "name" {
        return Ok(false);
    }
    let at = function_offset(&function.name);
    judge_value(setting, value, walk).map_err(|refusal| refusal.at(at))?;
    walk.set_config.set(walk.set_config.get() + 1);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RefusalClass;

    #[test]
    fn the_list_is_sorted_and_in_lower_case() {
        assert!(ALLOWED.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(ALLOWED.iter().all(|(name, _, _)| *name == name.to_ascii_lowercase()));
        for name in [
            "role",
            "session_authorization",
            "session_replication_role",
            "maintenance_work_mem",
            "backslash_quote",
            "log_statement",
        ] {
            assert!(rule(name).is_none(), "{name}");
        }
    }

    #[test]
    fn names_are_compared_without_case() {
        assert_eq!(judge_setting("DateStyle", "ISO").unwrap().name, "datestyle");
        assert_eq!(judge_setting("CLIENT_ENCODING", "utf-8").unwrap().value, "UTF8");
        assert_eq!(judge_setting("client_encoding", "SQL_ASCII").unwrap().value, "UTF8");
        assert_eq!(judge_setting("client_encoding", "SJIS").unwrap_err().class, RefusalClass::Encoding);
        assert_eq!(
            judge_setting("default_transaction_read_only", "off").unwrap_err().class,
            RefusalClass::Mode
        );
        assert_eq!(
            judge_setting("standard_conforming_strings", "off").unwrap_err().class,
            RefusalClass::Setting
        );
        assert_eq!(judge_setting("role", "postgres").unwrap_err().class, RefusalClass::Setting);
    }

    #[test]
    fn memory_has_a_bound_in_every_unit() {
        for value in ["64", "64kB", " 256MB ", "262144", "268435456B", "4 MB"] {
            assert!(judge_setting("work_mem", value).is_ok(), "{value}");
        }
        for value in
            ["257MB", "262145", "1GB", "1TB", "0x7fffffff", "1e9", "-1", "", "MB", "18446744073709551615GB"]
        {
            assert!(judge_setting("work_mem", value).is_err(), "{value}");
        }
        assert!(judge_setting("hash_mem_multiplier", "2.5").is_ok());
        for value in ["8.01", "1e9", "inf", "nan", "x", ""] {
            assert!(judge_setting("hash_mem_multiplier", value).is_err(), "{value}");
        }
    }

    #[test]
    fn the_temporary_schema_is_on_no_search_path() {
        for path in [
            "pg_temp",
            "PG_Temp",
            "\"pg_temp\"",
            "nowhere, pg_temp",
            "\"$user\",\x0bpg_temp\t",
            " \"pg_temp\" ,public",
            "public, pg_temp",
        ] {
            assert!(judge_setting("Search_Path", path).is_err(), "{path}");
        }
        for path in ["", "\"$user\", public", "pg_temperature", "my_pg_temp, pg_catalog"] {
            assert!(judge_setting("search_path", path).is_ok(), "{path}");
        }
    }

    #[test]
    fn startup_options_are_read_as_the_server_reads_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            startup_options("-c jit=off  --search-path=a\\ b"),
            Ok(vec![pair("jit", "off"), pair("search_path", "a b")])
        );
        assert_eq!(startup_options("-cgeqo=off"), Ok(vec![pair("geqo", "off")]));
        assert_eq!(startup_options(""), Ok(vec![]));
        for text in [
            "-c",
            "-c role=postgres",
            "-c x",
            "-B 10",
            "--role=postgres",
            "-c\\ default_transaction_read_only=off",
            "-e",
        ] {
            assert!(startup_options(text).is_err(), "{text}");
        }
    }
}
