//! What PostgreSQL's grammar makes of a text: which statements, whether each is a read, which names it holds.
//!
//! Invariant: only what is known to be a read is called one; a node that nobody thought of is a write.
//! Nested nodes are found by walking the whole tree blindly, so that none can be forgotten.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{DiscardMode, TransactionStmtKind, VariableSetKind};
use serde_json::Value;

/// Bytes of stack for decoding and walking the deepest trees.
const STACK: usize = 256 << 20;

/// One statement of a text, as PostgreSQL's parser sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: Kind,
    /// Where it starts and ends in the text, white space and comments before it included.
    pub start: usize,
    pub end: usize,
    pub names: Names,
}

/// What a statement may do, told by its tree alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A query, or what only shows, plans or moves through one.
    Read,
    /// It begins or ends transactions, or marks points in them.
    Transaction,
    /// It changes this session and nothing else.
    Session,
    /// Anything else, by the name of the node or of the clause.
    Write(String),
}

impl Kind {
    fn write(what: impl Into<String>) -> Self {
        Self::Write(what.into())
    }

    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }
}

/// The names that a statement holds, qualified by dots, as the parser folded them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub functions: BTreeSet<String>,
    pub tables: BTreeSet<String>,
    pub types: BTreeSet<String>,
    pub operators: BTreeSet<String>,
    /// What stands behind a dot: a column, or a function of one argument.
    pub attributes: BTreeSet<String>,
    /// Constant names of settings that `set_config` is called for; `None` among them is any other argument.
    pub set_config: Vec<Option<String>>,
}

/// Runs `work` with a stack on which the deepest trees can be taken apart.
///
/// # Panics
/// When `work` does.
pub fn with_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        match worker.expect("a thread starts").join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The statements of `text`, or why PostgreSQL's parser does not take it.
///
/// # Errors
/// The parser's message.
pub fn read(text: &str) -> Result<Vec<Seen>, String> {
    let parsed = pg_query::parse(text, 0).map_err(|error| error.to_string())?;
    let mut seen = Vec::new();
    for raw in &parsed.protobuf.stmts {
        let Some(node) = raw.stmt.as_ref().and_then(|node| node.node.as_ref()) else { continue };
        let start = usize::try_from(raw.stmt_location).unwrap_or_default();
        // No length: up to the end of the text.
        let end = match usize::try_from(raw.stmt_len) {
            Ok(0) | Err(_) => text.len(),
            Ok(length) => start + length,
        };
        let mut walk = Walk::default();
        walk.value(&serde_json::to_value(node).map_err(|error| error.to_string())?);
        if matches!(node, NodeEnum::ConstraintsSetStmt(_)) {
            // They are names of constraints, in the shape of tables.
            walk.names.tables.clear();
        }
        seen.push(Seen { kind: kind(node, &walk), start, end, names: walk.names });
    }
    Ok(seen)
}

fn kind(node: &NodeEnum, walk: &Walk) -> Kind {
    match node {
        NodeEnum::SelectStmt(_) => query(walk),
        NodeEnum::ExplainStmt(explain) => {
            let analyze = explain.options.iter().any(|option| match &option.node {
                Some(NodeEnum::DefElem(option)) if option.defname == "analyze" => !is_off(option),
                _ => false,
            });
            match explain.query.as_ref().and_then(|query| query.node.as_ref()) {
                Some(NodeEnum::SelectStmt(_) | NodeEnum::ExecuteStmt(_)) => query(walk),
                Some(NodeEnum::DeclareCursorStmt(_)) if !analyze => query(walk),
                Some(other) => Kind::write(format!("EXPLAIN of {}", name(other))),
                None => Kind::write("EXPLAIN of nothing"),
            }
        }
        NodeEnum::PrepareStmt(prepare) => {
            match prepare.query.as_ref().and_then(|query| query.node.as_ref()) {
                Some(NodeEnum::SelectStmt(_)) => query(walk),
                Some(other) => Kind::write(format!("PREPARE of {}", name(other))),
                None => Kind::write("PREPARE of nothing"),
            }
        }
        NodeEnum::DeclareCursorStmt(declare) => {
            match declare.query.as_ref().and_then(|query| query.node.as_ref()) {
                Some(NodeEnum::SelectStmt(_)) => query(walk),
                _ => Kind::write("DECLARE of no query"),
            }
        }
        NodeEnum::ExecuteStmt(_)
        | NodeEnum::FetchStmt(_)
        | NodeEnum::ClosePortalStmt(_)
        | NodeEnum::VariableShowStmt(_) => query(walk),
        NodeEnum::CopyStmt(copy) => {
            if copy.is_from {
                Kind::write("COPY FROM")
            } else if copy.is_program || !copy.filename.is_empty() {
                Kind::write("COPY TO a file or program")
            } else {
                query(walk)
            }
        }
        NodeEnum::TransactionStmt(transaction) => match transaction.kind() {
            TransactionStmtKind::TransStmtPrepare
            | TransactionStmtKind::TransStmtCommitPrepared
            | TransactionStmtKind::TransStmtRollbackPrepared
            | TransactionStmtKind::Undefined => Kind::write("two-phase commit"),
            TransactionStmtKind::TransStmtBegin
            | TransactionStmtKind::TransStmtStart
            | TransactionStmtKind::TransStmtCommit
            | TransactionStmtKind::TransStmtRollback
            | TransactionStmtKind::TransStmtSavepoint
            | TransactionStmtKind::TransStmtRelease
            | TransactionStmtKind::TransStmtRollbackTo => match read_write(&transaction.options) {
                true => Kind::write("READ WRITE"),
                false => Kind::Transaction,
            },
        },
        NodeEnum::VariableSetStmt(set) => variable(set),
        NodeEnum::DiscardStmt(discard) => match discard.target() {
            DiscardMode::Undefined => Kind::write("DISCARD"),
            _ => Kind::Session,
        },
        NodeEnum::DeallocateStmt(_) | NodeEnum::UnlistenStmt(_) | NodeEnum::ConstraintsSetStmt(_) => {
            Kind::Session
        }
        // 1 is ACCESS SHARE, which every SELECT takes.
        NodeEnum::LockStmt(lock) if lock.mode == 1 => Kind::Session,
        NodeEnum::LockStmt(_) => Kind::write("LOCK"),
        other => Kind::write(name(other)),
    }
}

/// The name of a node's kind, as its debugging output begins.
fn name(node: &NodeEnum) -> String {
    let text = format!("{node:?}");
    text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

fn query(walk: &Walk) -> Kind {
    match &walk.write {
        Some(write) => Kind::write(write.clone()),
        None => Kind::Read,
    }
}

/// Is the value of this option a clear no?
fn is_off(option: &pg_query::protobuf::DefElem) -> bool {
    match option.arg.as_ref().and_then(|value| value.node.as_ref()) {
        Some(NodeEnum::Integer(value)) => value.ival == 0,
        Some(NodeEnum::String(value)) => matches!(value.sval.to_ascii_lowercase().as_str(), "off" | "false"),
        _ => false,
    }
}

/// Is READ WRITE among these modes of a transaction?
fn read_write(options: &[pg_query::Node]) -> bool {
    options.iter().any(|option| match &option.node {
        Some(NodeEnum::DefElem(option)) if option.defname == "transaction_read_only" => {
            let value = option.arg.as_ref().and_then(|value| value.node.as_ref());
            let on = match value {
                Some(NodeEnum::AConst(value)) => {
                    matches!(&value.val, Some(pg_query::protobuf::a_const::Val::Ival(value)) if value.ival == 1)
                }
                Some(NodeEnum::Integer(value)) => value.ival == 1,
                _ => false,
            };
            !on
        }
        _ => false,
    })
}

/// Settings on which the guard or the read-only session stands: nobody sets them to anything.
const PINNED: &[&str] = &[
    "client_encoding",
    "default_transaction_read_only",
    "role",
    "session_authorization",
    "session_replication_role",
    "standard_conforming_strings",
    "transaction_read_only",
];

/// Values of those that change nothing.
fn keeps(name: &str, value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    match name {
        // The server looks encodings up by their letters and digits alone.
        "client_encoding" => {
            let name: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
            matches!(name.as_str(), "utf8" | "unicode")
        }
        "standard_conforming_strings" | "transaction_read_only" | "default_transaction_read_only" => {
            matches!(value.as_str(), "on" | "true" | "1" | "yes" | "tru" | "tr" | "t" | "ye" | "y")
        }
        _ => false,
    }
}

fn variable(set: &pg_query::protobuf::VariableSetStmt) -> Kind {
    let name = set.name.to_ascii_lowercase();
    match set.kind() {
        VariableSetKind::VarSetMulti => match read_write(&set.args) {
            true => Kind::write("READ WRITE"),
            false if name == "transaction snapshot" => Kind::Transaction,
            false if name == "transaction" => Kind::Transaction,
            false => Kind::Session,
        },
        VariableSetKind::VarSetValue if PINNED.contains(&name.as_str()) => {
            let value = match set.args.as_slice() {
                [one] => match &one.node {
                    Some(NodeEnum::AConst(value)) => match &value.val {
                        Some(pg_query::protobuf::a_const::Val::Sval(value)) => value.sval.clone(),
                        Some(pg_query::protobuf::a_const::Val::Ival(value)) => value.ival.to_string(),
                        _ => String::new(),
                    },
                    _ => String::new(),
                },
                _ => String::new(),
            };
            match keeps(&name, &value) {
                true => Kind::Session,
                false => Kind::write(format!("SET {name}")),
            }
        }
        VariableSetKind::VarSetValue | VariableSetKind::VarSetCurrent => Kind::Session,
        // The gateway's pins are startup parameters: what they are reset to is what they were.
        VariableSetKind::VarSetDefault | VariableSetKind::VarReset | VariableSetKind::VarResetAll => {
            Kind::Session
        }
        VariableSetKind::Undefined => Kind::write("SET"),
    }
}

/// A blind walk over a tree as plain data: objects are known by their fields.
#[derive(Debug, Default)]
struct Walk {
    names: Names,
    /// The first thing that makes a query more than a read.
    write: Option<String>,
}

impl Walk {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.value(item)),
            Value::Object(fields) => {
                self.object(fields);
                for (name, inner) in fields {
                    self.field(name, inner);
                    self.value(inner);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn object(&mut self, fields: &serde_json::Map<String, Value>) {
        if let Some(name) = fields.get("funcname").and_then(dotted) {
            if name.rsplit('.').next() == Some("set_config") {
                let setting = fields.get("args").and_then(|arguments| arguments.get(0)).and_then(constant);
                self.names.set_config.push(setting);
            }
            self.names.functions.insert(name);
        }
        if fields.contains_key("repeatable")
            && let Some(name) = fields.get("method").and_then(dotted)
        {
            self.names.functions.insert(name);
        }
        if fields.contains_key("typmods")
            && let Some(name) = fields.get("names").and_then(dotted)
        {
            self.names.types.insert(name);
        }
        if let (Some(Value::String(catalog)), Some(Value::String(schema)), Some(Value::String(name))) =
            (fields.get("catalogname"), fields.get("schemaname"), fields.get("relname"))
        {
            let parts: Vec<&str> = [catalog, schema, name]
                .into_iter()
                .map(String::as_str)
                .filter(|part| !part.is_empty())
                .collect();
            self.names.tables.insert(parts.join("."));
        }
    }

    fn field(&mut self, name: &str, inner: &Value) {
        let filled = match inner {
            Value::Null => false,
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        let harm = match name {
            "into_clause" | "IntoClause" if filled => Some("SELECT INTO".to_owned()),
            "locking_clause" | "LockingClause" if filled => Some("row locks".to_owned()),
            // Read already where they stand alone; inside of these they are what is planned, kept or run.
            "SelectStmt" | "ExecuteStmt" | "DeclareCursorStmt" => None,
            "ExplainStmt" | "PrepareStmt" | "FetchStmt" | "ClosePortalStmt" | "VariableShowStmt"
            | "CopyStmt" => None,
            _ if name.ends_with("Stmt") && name.starts_with(|first: char| first.is_ascii_uppercase()) => {
                Some(name.to_owned())
            }
            _ => None,
        };
        if self.write.is_none() {
            self.write = harm;
        }
        if name == "AExpr"
            && let Some(symbol) = inner.get("name").and_then(dotted)
        {
            self.names.operators.insert(symbol);
        }
        if matches!(name, "using_op" | "useOp" | "oper_name")
            && let Some(symbol) = dotted(inner)
        {
            self.names.operators.insert(symbol);
        }
        let names = match name {
            // The first field of a column stands for itself.
            "ColumnRef" => inner.get("fields").and_then(Value::as_array).and_then(|fields| fields.get(1..)),
            "AIndirection" => inner.get("indirection").and_then(Value::as_array).map(Vec::as_slice),
            _ => None,
        };
        let names = names.unwrap_or_default().iter().filter_map(string).map(str::to_owned);
        self.names.attributes.extend(names);
    }
}

/// A list of names as one, with dots between.
fn dotted(list: &Value) -> Option<String> {
    let parts: Vec<&str> = list.as_array()?.iter().filter_map(string).collect();
    (!parts.is_empty()).then(|| parts.join("."))
}

fn string(item: &Value) -> Option<&str> {
    item.get("node")?.get("String")?.get("sval")?.as_str()
}

/// A constant of text.
fn constant(item: &Value) -> Option<String> {
    let value = item.get("node")?.get("AConst")?.get("val")?.get("Sval")?.get("sval")?.as_str()?;
    Some(value.to_ascii_lowercase())
}

/// May a setting of this name be given any value?
#[must_use]
pub fn is_pinned(name: &str) -> bool {
    PINNED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Seen {
        let mut seen = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(seen.len(), 1, "{text}");
        seen.remove(0)
    }

    #[test]
    fn reads_are_reads() {
        for text in [
            "SELECT 1",
            "TABLE t",
            "VALUES (1), (2)",
            "WITH c AS (SELECT 1) SELECT * FROM c UNION ALL SELECT 2",
            "EXPLAIN ANALYZE SELECT 1",
            "EXPLAIN (ANALYZE, BUFFERS) EXECUTE s",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "FETCH ALL FROM c",
            "MOVE 1 c",
            "CLOSE ALL",
            "SHOW ALL",
            "COPY t TO STDOUT",
            "COPY (SELECT 1) TO STDOUT WITH (FORMAT csv)",
            "PREPARE s AS SELECT $1",
            "EXECUTE s(1)",
            "EXPLAIN (ANALYZE off) DECLARE c CURSOR FOR SELECT 1",
        ] {
            assert_eq!(only(text).kind, Kind::Read, "{text}");
        }
        for text in ["BEGIN READ ONLY", "ROLLBACK TO s", "SET TRANSACTION READ ONLY", "ABORT"] {
            assert_eq!(only(text).kind, Kind::Transaction, "{text}");
        }
        for text in ["SET search_path = a, b", "RESET ALL", "DISCARD ALL", "LOCK t IN ACCESS SHARE MODE"] {
            assert_eq!(only(text).kind, Kind::Session, "{text}");
        }
    }

    #[test]
    fn everything_else_is_a_write() {
        for text in [
            "SELECT 1 INTO t",
            "SELECT * FROM (SELECT 1 FROM t FOR UPDATE) s",
            "SELECT 1 UNION (SELECT 2 FROM t FOR KEY SHARE)",
            "WITH d AS (DELETE FROM t RETURNING 1) SELECT 1",
            "SELECT (WITH d AS (UPDATE t SET a = 1 RETURNING 1) SELECT 1)",
            "WITH m AS (MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE RETURNING 1) TABLE m",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
            "EXPLAIN ANALYZE CREATE TABLE t AS EXECUTE s",
            "EXPLAIN ANALYZE DECLARE c CURSOR FOR SELECT 1",
            "EXPLAIN (ANALYZE off, ANALYZE) DECLARE c CURSOR FOR SELECT 1",
            "PREPARE s AS DELETE FROM t",
            "COPY t FROM STDIN",
            "COPY t TO '/tmp/x'",
            "COPY t TO PROGRAM 'cat'",
            "COPY (DELETE FROM t RETURNING 1) TO STDOUT",
            "BEGIN READ WRITE",
            "SET TRANSACTION READ WRITE",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "PREPARE TRANSACTION 'x'",
            "SET ROLE postgres",
            "SET standard_conforming_strings = off",
            "LOCK t",
            "NOTIFY x",
            "CALL p()",
            "DO 'x'",
            "VACUUM",
            "LISTEN x",
        ] {
            assert!(only(text).kind.is_write(), "{text}");
        }
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        let seen = only(
            "SELECT a.f(1), x::s.t, y OPERATOR(p.+) 1 FROM ROWS FROM (g(h())) r, q.u TABLESAMPLE m (1) \
             WHERE EXISTS (SELECT FROM v) ORDER BY k(1) LIMIT l()",
        );
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(names(&seen.names.functions), "a.f g h k l m");
        assert_eq!(names(&seen.names.tables), "q.u v");
        assert_eq!(names(&seen.names.types), "s.t");
        assert_eq!(names(&seen.names.operators), "p.+");
    }

    #[test]
    fn statements_have_their_places() {
        let seen = read("SELECT 1 ; /* ; */ SELECT ';'; ").unwrap();
        let places: Vec<_> = seen.iter().map(|seen| (seen.start, seen.end)).collect();
        assert_eq!(places.len(), 2);
        assert_eq!(places[0], (0, 9));
        assert_eq!(places[1].1, 29);
    }

    #[test]
    fn deep_trees_are_read_whole() {
        let text = format!("SELECT {}DELETE{}", "(".repeat(300), ")".repeat(300));
        let seen = with_stack(|| read(&text.replace("DELETE", "f(1)"))).unwrap();
        assert!(seen[0].names.functions.contains("f"));
        let nested =
            (0..120).fold("SELECT 1 FROM t FOR UPDATE".to_owned(), |inner, _| format!("SELECT ({inner})"));
        assert!(with_stack(|| read(&nested)).unwrap()[0].kind.is_write());
    }
}
