//! What runs behind a name: the rows of a server's catalogs as one graph, and what of it is harmful.
//!
//! Invariant: an edge says "may run"; whatever reaches a harmful function over edges is harmful, and
//! what PostgreSQL might run without a name in the text has an edge from something that is in the text.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};

use super::nodes::References;
use super::{
    Builder, Carried, FIRST_NORMAL_OID, FunctionKind, FunctionRow, Harm, Judged, JudgedOperator, RelationRow,
    TypeRow, Volatility, harm,
};
use crate::sql::known::Known;

pub type Oid = u32;

#[derive(Debug)]
pub struct Function {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    pub kind: FunctionKind,
    pub volatility: Volatility,
    pub arguments: Vec<Oid>,
    /// All arguments' types and the result's.
    pub types: Vec<Oid>,
    pub one_argument: bool,
    pub variadic: bool,
    /// In C or one of the server's own: only a superuser can make such.
    pub compiled: bool,
    pub extension: Option<String>,
    pub defaults: Option<References>,
}

#[derive(Debug)]
pub struct Operator {
    pub oid: Oid,
    pub symbol: String,
    pub schema: String,
    pub left: Oid,
    pub right: Oid,
    pub result: Oid,
    pub function: Oid,
    /// Its negator and its commutator (0: none), which a planner may put in its place.
    pub kin: [Oid; 2],
}

#[derive(Debug)]
pub struct Type {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    /// `pg_type.typtype`
    pub kind: char,
    pub category: char,
    pub base: Oid,
    pub element: Oid,
    pub attributes: Vec<Oid>,
    /// Functions that make a value of text or bytes.
    pub readers: Vec<Oid>,
    /// Functions that make text or bytes of a value.
    pub writers: Vec<Oid>,
    pub modifiers: Oid,
}

#[derive(Debug)]
pub struct Relation {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    pub columns: Vec<Oid>,
    pub children: Vec<Oid>,
    /// `file_fdw` runs a program for it.
    pub program: bool,
    /// Of its query, its policies and its virtual columns.
    pub stored: Vec<References>,
    /// Further functions and operators by `pg_depend`.
    pub depends: Vec<(Oid, Oid)>,
}

#[derive(Debug)]
pub struct Cast {
    pub source: Oid,
    pub target: Oid,
    /// 0: none
    pub function: Oid,
    pub implicit: bool,
    pub binary: bool,
}

/// All rows of a server.
#[derive(Debug, Default)]
pub struct Rows {
    pub functions: Vec<Function>,
    /// Aggregate, components, sort operator.
    pub aggregates: Vec<(Oid, Vec<Oid>, Oid)>,
    pub operators: Vec<Operator>,
    pub types: Vec<Type>,
    /// Range, multirange, subtype, functions.
    pub ranges: Vec<(Oid, Oid, Oid, Vec<Oid>)>,
    pub casts: Vec<Cast>,
    /// Domain and its CHECK.
    pub checks: Vec<(Oid, References)>,
    /// Left type, right type, support function, operator.
    pub classes: Vec<(Oid, Oid, Oid, Oid)>,
    pub relations: Vec<Relation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Node {
    /// A call of a function.
    Call(Oid),
    /// An operator.
    Use(Oid),
    /// A value of a type is made of a constant or of a value of another type, unasked.
    Make(Oid),
    /// A type is named, as in a cast.
    Name(Oid),
    /// A type is named where a value of a type of its own schema may stand before the cast.
    NameLater(Oid),
    /// A value of a type is in the statement.
    Hold(Oid),
    /// A value may be in the statement whose type nothing tells.
    Hidden,
    /// A relation is read.
    Read(Oid),
    /// Any statement.
    Anywhere,
}

/// The polymorphic types, whose name alone says nothing of the values.
const POLYMORPHIC: &[Oid] = &[2283, 2277, 2776, 3500, 3831, 4537, 5077, 5078, 5079, 5080, 4538];
/// Those of them that are made of others: arrays, ranges, multiranges.
const MADE_OF_OTHERS: &[Oid] = &[2277, 3831, 4537, 5078, 5080, 4538];
/// Types of the server's own that have operator classes of their own for btree and hash: whatever they are cast to,
/// they are sorted and compared as what they are. tests/guard_depth.rs holds the list against a server.
pub const SORTED: &[Oid] = &[
    16, 17, 18, 19, 20, 21, 23, 25, 26, 27, 700, 701, 774, 829, 869, 1042, 1082, 1083, 1114, 1184, 1186,
    1266, 1700, 2950, 3220, 3802,
];
/// Functions of the server's own that read a type, with its modifiers, out of a text.
const READS_TYPES: &[&str] = &[
    "has_function_privilege",
    "has_type_privilege",
    "pg_get_object_address",
    "regoperatorin",
    "regprocedurein",
    "regtypein",
    "to_regoperator",
    "to_regprocedure",
    "to_regtype",
    "to_regtypemod",
];
/// `regprocedure`, `regoperator` and `regtype`: making one reads such a text.
const READ_AS_TYPES: &[Oid] = &[2202, 2204, 2206];
const INTERNAL: Oid = 2281;
const RECORD: Oid = 2249;
const TEXT: Oid = 25;

fn own(oid: Oid) -> bool {
    oid >= FIRST_NORMAL_OID
}

/// Does a call of it read the name of any type out of a text?
fn reads_types(function: &Function) -> bool {
    function.schema == "pg_catalog" && READS_TYPES.contains(&function.name.as_str())
}

/// Of two types without both of which a thing cannot run, the one whose values are rarer; `None` when both
/// are the server's own and so anywhere.
fn rarer(one: Oid, other: Oid) -> Option<Oid> {
    [one, other].into_iter().find(|oid| own(*oid))
}

/// What is harmful: by which next node, and what the last one is.
#[derive(Clone)]
struct Cause {
    next: Option<Node>,
    /// Of the last node.
    reason: std::rc::Rc<str>,
}

struct Graph<'r> {
    rows: &'r Rows,
    functions: HashMap<Oid, &'r Function>,
    relations: HashMap<Oid, &'r Relation>,
    types: HashMap<Oid, &'r Type>,
    operators: HashMap<Oid, &'r Operator>,
    /// By what may run, who may run it.
    users: HashMap<Node, Vec<Node>>,
    seeds: Vec<(Node, String)>,
}

/// Judges the rows of a server.
pub fn judge(rows: &Rows) -> Builder {
    let (graph, base, harmful) = Graph::of(rows);
    let bits = graph.later(&harmful);
    let mut carried: HashMap<Node, Carried> = HashMap::new();
    for (oid, bit) in &bits {
        for node in graph.reach(vec![(Node::Hold(*oid), "".into())]).into_keys() {
            *carried.entry(node).or_default() |= bit;
        }
    }
    graph.build(&base, &harmful, &bits, &carried)
}

/// The functions that are not harmless, and what a call of each comes to.
pub fn calls(rows: &Rows) -> HashMap<Oid, String> {
    let (graph, _, harmful) = Graph::of(rows);
    let of = |row: &Function| Some((row.oid, graph.why(Node::Call(row.oid), &harmful)?));
    rows.functions.iter().filter_map(of).collect()
}

impl<'r> Graph<'r> {
    /// The graph, what is harmful by itself and what is so by its edges.
    fn of(rows: &'r Rows) -> (Self, HashMap<Oid, Harm>, HashMap<Node, Cause>) {
        let mut graph = Graph {
            rows,
            functions: rows.functions.iter().map(|row| (row.oid, row)).collect(),
            relations: rows.relations.iter().map(|row| (row.oid, row)).collect(),
            types: rows.types.iter().map(|row| (row.oid, row)).collect(),
            operators: rows.operators.iter().map(|row| (row.oid, row)).collect(),
            users: HashMap::new(),
            seeds: Vec::new(),
        };
        let base = graph.functions_edges(&Known::embedded());
        graph.operators_edges();
        graph.types_edges();
        graph.casts_edges();
        graph.classes_edges();
        graph.relations_edges();
        let seeds = graph.seeds.iter().map(|(node, reason)| (*node, reason.as_str().into())).collect();
        let harmful = graph.reach(seeds);
        (graph, base, harmful)
    }

    /// `user` may run `used`.
    fn edge(&mut self, user: Node, used: Node) {
        if user != used {
            self.users.entry(used).or_default().push(user);
        }
    }

    fn refers(&mut self, user: Node, references: &References) {
        references.functions.iter().for_each(|oid| self.edge(user, Node::Call(*oid)));
        references.operators.iter().for_each(|oid| self.edge(user, Node::Use(*oid)));
        references.types.iter().for_each(|oid| self.edge(user, Node::Make(*oid)));
        references.relations.iter().for_each(|oid| self.edge(user, Node::Read(*oid)));
        if references.draws {
            self.seeds.push((user, "it draws from a sequence".to_owned()));
        }
    }

    /// Code of a superuser's that no statement can call, since nobody has a value of type internal: it is
    /// part of an access method or an aggregate, and its volatility is hardly ever set.
    fn machinery(&self, function: Oid) -> bool {
        self.functions
            .get(&function)
            .is_some_and(|function| function.compiled && function.types.contains(&INTERNAL))
    }

    fn functions_edges(&mut self, known: &Known) -> HashMap<Oid, Harm> {
        let mut base = HashMap::new();
        let rows = self.rows;
        for row in &rows.functions {
            let extension = row.extension.as_deref().filter(|_| row.compiled);
            let call = Node::Call(row.oid);
            if let Some(harm) = harm(known, &row.schema, &row.name, extension, row.kind, row.volatility) {
                self.seeds.push((call, harm.reason().to_owned()));
                base.insert(row.oid, harm);
            }
            row.arguments.iter().for_each(|of| self.edge(call, Node::Make(*of)));
            row.types.iter().for_each(|of| self.edge(call, Node::Hold(*of)));
            if let Some(defaults) = &row.defaults {
                self.refers(call, defaults);
            }
            if own(row.oid) && row.types.last() == Some(&RECORD) && row.types.len() == row.arguments.len() + 1
            {
                self.edge(call, Node::Hidden);
            }
        }
        for (aggregate, components, sort) in &rows.aggregates {
            for component in components {
                // What a component of the server's own is marked says nothing beyond the list of known ones.
                if !self.machinery(*component) {
                    self.edge(Node::Call(*aggregate), Node::Call(*component));
                }
            }
            self.edge(Node::Call(*aggregate), Node::Use(*sort));
        }
        base
    }

    fn operators_edges(&mut self) {
        let rows = self.rows;
        for row in &rows.operators {
            self.edge(Node::Use(row.oid), Node::Call(row.function));
            self.edge(Node::Use(row.oid), Node::Hold(row.result));
            // `NOT a = b` is planned as `a <> b`, `a < b` may be joined by as `b > a`, and their selectivity
            // is estimated by running them. PostgreSQL goes one step; over edges it is any number.
            for kin in row.kin.into_iter().filter(|kin| *kin != 0) {
                self.edge(Node::Use(row.oid), Node::Use(kin));
            }
        }
    }

    fn types_edges(&mut self) {
        let rows = self.rows;
        for row in &rows.types {
            let oid = row.oid;
            let (make, name, hold) = (Node::Make(oid), Node::Name(oid), Node::Hold(oid));
            self.edge(name, make);
            for reader in row.readers.iter().filter(|reader| own(**reader)) {
                self.edge(make, Node::Call(*reader));
                // A constant beside a value is read as one of the same type. (A domain has no reader of its own.)
                self.edge(hold, Node::Call(*reader));
            }
            for writer in row.writers.iter().filter(|writer| own(**writer)) {
                self.edge(hold, Node::Call(*writer));
            }
            if own(row.modifiers) {
                let call = Node::Call(row.modifiers);
                self.edge(name, call);
                for kind in READ_AS_TYPES {
                    self.edge(Node::Make(*kind), call);
                    self.edge(Node::Hold(*kind), call);
                }
                for reader in rows.functions.iter().filter(|row| reads_types(row)) {
                    self.edge(Node::Call(reader.oid), call);
                }
            }
            for part in row.attributes.iter().chain([&row.element, &row.base]).filter(|part| **part != 0) {
                self.part(oid, *part);
                if row.base != *part {
                    self.edge(hold, Node::Make(*part));
                }
            }
        }
        for (range, multirange, subtype, functions) in &rows.ranges {
            for (whole, part) in [(*range, *subtype), (*multirange, *range), (*multirange, *subtype)] {
                self.part(whole, part);
                self.edge(Node::Hold(whole), Node::Make(part));
            }
            for function in functions.iter().filter(|function| own(**function)) {
                self.edge(Node::Hold(*range), Node::Call(*function));
                self.edge(Node::Make(*range), Node::Call(*function));
            }
        }
        for (domain, check) in &rows.checks {
            self.refers(Node::Make(*domain), check);
        }
    }

    fn part(&mut self, whole: Oid, part: Oid) {
        self.edge(Node::Make(whole), Node::Make(part));
        self.edge(Node::Name(whole), Node::Name(part));
        self.edge(Node::NameLater(whole), Node::NameLater(part));
        self.edge(Node::Hold(whole), Node::Hold(part));
    }

    fn casts_edges(&mut self) {
        let rows = self.rows;
        for row in &rows.casts {
            // Such a value may be sorted and compared as one of the other type; all else that may mean the other type
            // has it among its own.
            // Those of names of the server's own things are sorted and compared as OIDs.
            let names = READ_AS_TYPES.contains(&row.target);
            if row.binary && row.implicit && !names && !SORTED.contains(&row.source) {
                self.edge(Node::Hold(row.source), Node::Hold(row.target));
            }
            if row.function == 0 {
                continue;
            }
            let call = Node::Call(row.function);
            if row.implicit {
                self.edge(rarer(row.source, row.target).map_or(Node::Anywhere, Node::Hold), call);
            }
            // `x::text` runs a cast of somebody's type only where there is a value of it.
            let to_own = own(row.target) || !own(row.source);
            self.edge(if to_own { Node::Name(row.target) } else { Node::NameLater(row.target) }, call);
        }
    }

    /// Sorting and comparing run the functions of operator classes, those of other classes of a family among them.
    fn classes_edges(&mut self) {
        let rows = self.rows;
        for (left, right, function, operator) in &rows.classes {
            let holder = rarer(*left, *right).map_or(Node::Anywhere, Node::Hold);
            if *function != 0 && !self.machinery(*function) {
                self.edge(holder, Node::Call(*function));
            }
            if *operator != 0 {
                self.edge(holder, Node::Use(*operator));
            }
        }
    }

    fn relations_edges(&mut self) {
        let rows = self.rows;
        for row in &rows.relations {
            let read = Node::Read(row.oid);
            row.columns.iter().for_each(|of| self.edge(read, Node::Hold(*of)));
            row.children.iter().for_each(|child| self.edge(read, Node::Read(*child)));
            row.stored.iter().for_each(|stored| self.refers(read, stored));
            for (function, operator) in &row.depends {
                self.edge(read, Node::Call(*function));
                self.edge(read, Node::Use(*operator));
            }
            if row.program {
                self.seeds.push((read, "each read of it runs a program on the source's server".to_owned()));
            }
        }
    }

    /// All that may run one of `seeds`.
    fn reach(&self, seeds: Vec<(Node, std::rc::Rc<str>)>) -> HashMap<Node, Cause> {
        let mut found: HashMap<Node, Cause> = HashMap::new();
        let mut queue = VecDeque::new();
        for (node, reason) in seeds {
            if let Entry::Vacant(vacant) = found.entry(node) {
                vacant.insert(Cause { next: None, reason });
                queue.push_back(node);
            }
        }
        let mut hidden = false;
        while let Some(node) = queue.pop_front() {
            let Some(reason) = found.get(&node).map(|cause| cause.reason.clone()) else { continue };
            let users = self.users.get(&node).map_or(&[][..], Vec::as_slice);
            // A value whose type is not told may be of any that matters.
            let untold = (matches!(node, Node::Hold(oid) if own(oid)) && !hidden).then_some(Node::Hidden);
            hidden |= untold.is_some();
            for user in users.iter().chain(&untold) {
                if let Entry::Vacant(vacant) = found.entry(*user) {
                    vacant.insert(Cause { next: Some(node), reason: reason.clone() });
                    queue.push_back(*user);
                }
            }
        }
        found
    }

    /// Types of which a value must be in a statement for something to run whose name is common.
    fn later(&self, harmful: &HashMap<Node, Cause>) -> HashMap<Oid, Carried> {
        let mut later = BTreeSet::new();
        for row in &self.rows.operators {
            if harmful.contains_key(&Node::Use(row.oid)) && self.private(row) {
                later.extend([row.left, row.right]);
            }
        }
        for row in &self.rows.casts {
            if harmful.contains_key(&Node::Call(row.function)) && own(row.source) && !own(row.target) {
                later.insert(row.source);
            }
        }
        later.into_iter().enumerate().map(|(at, oid)| (oid, 1 << at.min(63))).collect()
    }

    /// Can this operator only be meant where a value of its operands' types is in the statement? docs/guard.md
    /// has the argument.
    fn private(&self, row: &Operator) -> bool {
        let with = |of: Oid| {
            self.rows.operators.iter().any(|other| {
                other.schema == "pg_catalog"
                    && other.symbol == row.symbol
                    && other.left == of
                    && other.right == of
                    && !own(other.oid)
            })
        };
        // Constants of unknown type are text then.
        with(TEXT)
            && [row.left, row.right].iter().all(|of| {
                let Some(kind) = self.types.get(of) else { return false };
                let rows_are_others = kind.kind != 'c' || with(RECORD);
                let plain = matches!(kind.kind, 'b' | 'e' | 'r' | 'm' | 'c') && kind.element == 0;
                own(*of)
                    && plain
                    && rows_are_others
                    && kind.category != 'S'
                    && !self.rows.casts.iter().any(|cast| cast.target == *of && cast.implicit)
            })
    }

    fn label(&self, node: Node) -> Option<String> {
        match node {
            Node::Call(oid) => {
                let row = self.functions.get(&oid)?;
                Some(format!("the function {}.{}", row.schema, row.name))
            }
            Node::Use(oid) => {
                let row = self.operators.get(&oid)?;
                Some(format!("the operator {}.{}", row.schema, row.symbol))
            }
            Node::Make(oid) | Node::Name(oid) | Node::NameLater(oid) | Node::Hold(oid) => {
                let row = self.types.get(&oid)?;
                // Types of the server's own are only on the way.
                own(oid).then(|| format!("the type {}.{}", row.schema, row.name))
            }
            Node::Read(oid) => {
                let row = self.relations.get(&oid)?;
                Some(format!("the relation {}.{}", row.schema, row.name))
            }
            Node::Hidden => Some("a record whose columns are not known".to_owned()),
            Node::Anywhere => None,
        }
    }

    /// What `node` comes to: how it is said in a refusal.
    fn why(&self, node: Node, harmful: &HashMap<Node, Cause>) -> Option<String> {
        let cause = harmful.get(&node)?;
        let own_label = self.label(node);
        let mut way = Vec::new();
        let mut next = cause.next;
        while let Some(node) = next {
            let label = self.label(node).filter(|label| Some(label) != own_label.as_ref());
            if label.is_some() && way.last() != label.as_ref() {
                way.extend(label);
            }
            next = harmful.get(&node).and_then(|cause| cause.next);
        }
        let reason = &cause.reason;
        Some(match way.pop() {
            None => format!("{}{}.", reason.get(..1)?.to_uppercase(), reason.get(1..)?),
            Some(last) if way.is_empty() => format!("It may run {last}: {reason}."),
            // Long ways are told by their ends.
            Some(last) => {
                let first: Vec<&str> = way.iter().take(4).map(String::as_str).collect();
                format!("It may run {last} (by {}): {reason}.", first.join(", "))
            }
        })
    }

    /// Can a call make a value of an argument's type out of a constant?
    fn mixes(row: &Function) -> bool {
        let polymorphic = row.arguments.iter().filter(|of| POLYMORPHIC.contains(of)).count();
        let made = row.arguments.iter().any(|of| MADE_OF_OTHERS.contains(of));
        // An array of an array's type is nothing new.
        let makes = !made && row.types.last().is_some_and(|of| MADE_OF_OTHERS.contains(of));
        polymorphic >= 2
            || (polymorphic == 1 && (makes || row.variadic))
            || row.name.contains("populate_record")
    }

    /// A harmful domain that stands as it is, not inside another type: reading it runs nothing.
    fn domain(&self, types: &[Oid], harmful: &HashMap<Node, Cause>) -> Option<String> {
        types.iter().find_map(|oid| {
            let row = self.types.get(oid)?;
            let bare = row.kind == 'd' && !harmful.contains_key(&Node::Hold(*oid));
            let why = self.why(Node::Make(*oid), harmful).filter(|_| bare)?;
            Some(format!("{}.{}: making a value of it is not harmless. {why}", row.schema, row.name))
        })
    }

    fn build(
        &self,
        base: &HashMap<Oid, Harm>,
        harmful: &HashMap<Node, Cause>,
        bits: &HashMap<Oid, Carried>,
        carried: &HashMap<Node, Carried>,
    ) -> Builder {
        let carries = |node| carried.get(&node).copied().unwrap_or_default();
        let all = bits.values().fold(0, |all, bit| all | bit);
        let mut builder = Builder::default();
        let text = |node| self.why(node, harmful);
        for row in &self.rows.functions {
            let call = Node::Call(row.oid);
            let harm = base.get(&row.oid).cloned();
            let why = if harm.is_none() { text(call) } else { None };
            let judged = Judged {
                harm: harm.or_else(|| why.as_ref().map(|_| Harm::Volatile)),
                carries: carries(call),
                domain: self.domain(&row.types, harmful).map(Into::into),
                mixes: Self::mixes(row),
                why: why.map(Into::into),
            };
            let volatility = if judged.why.is_some() { Volatility::Volatile } else { row.volatility };
            builder.judged_function(
                FunctionRow {
                    schema: row.schema.clone(),
                    name: row.name.clone(),
                    kind: row.kind,
                    volatility,
                    one_argument: row.one_argument,
                },
                judged,
            );
        }
        for row in &self.rows.operators {
            builder.symbol(&row.symbol);
            let mixes = |oid| self.functions.get(oid).is_some_and(|function| Self::mixes(function));
            if own(row.oid) && mixes(&row.function) {
                builder.mixing(&row.symbol);
            }
            if let Some(why) = text(Node::Use(row.oid)) {
                builder.judged_operator(JudgedOperator {
                    symbol: row.symbol.as_str().into(),
                    schema: row.schema.as_str().into(),
                    why: why.into(),
                    later: match (bits.get(&row.left), bits.get(&row.right)) {
                        (Some(left), Some(right)) if self.private(row) => left | right,
                        _ => 0,
                    },
                });
            }
        }
        for row in &self.rows.types {
            let name = Node::Name(row.oid);
            builder.judged_type(
                TypeRow {
                    oid: row.oid,
                    schema: row.schema.clone(),
                    name: row.name.clone(),
                    parts: Vec::new(),
                    volatile_function: text(name).or_else(|| text(Node::Hold(row.oid))),
                    checks: Vec::new(),
                },
                carries(Node::Hold(row.oid)),
                text(Node::NameLater(row.oid)).map(|why| (all, why)),
            );
        }
        for row in &self.rows.relations {
            let read = Node::Read(row.oid);
            let relation = RelationRow {
                schema: row.schema.clone(),
                name: row.name.clone(),
                why: text(read),
                domain: self.domain(&row.columns, harmful),
                carries: carries(read),
            };
            if relation.why.is_some() || relation.domain.is_some() || relation.carries != 0 {
                builder.relation(relation);
            }
        }
        if let Some(why) = text(Node::Anywhere) {
            builder.anywhere(why);
        }
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::catalogue::Catalogue;

    const OWN: Oid = FIRST_NORMAL_OID;

    fn function(oid: Oid, name: &str, volatility: Volatility, types: &[Oid]) -> Function {
        Function {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind: FunctionKind::Function,
            volatility,
            arguments: types.to_vec(),
            types: types.to_vec(),
            one_argument: false,
            variadic: false,
            compiled: false,
            extension: None,
            defaults: None,
        }
    }

    fn relation(oid: Oid, name: &str, columns: &[Oid], stored: References) -> Relation {
        Relation {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            columns: columns.to_vec(),
            children: Vec::new(),
            program: false,
            stored: vec![stored],
            depends: Vec::new(),
        }
    }

    fn catalogue(rows: &Rows) -> Catalogue {
        judge(rows).build()
    }

    #[test]
    fn a_way_is_told_by_its_ends() {
        let mut rows = Rows::default();
        rows.functions.push(function(OWN, "vol", Volatility::Volatile, &[]));
        rows.relations.push(relation(
            OWN + 1,
            "one",
            &[],
            References { functions: [OWN].into(), ..References::default() },
        ));
        // Views that read each other cannot be, and would end all the same.
        rows.relations.push(relation(
            OWN + 2,
            "two",
            &[],
            References { relations: [OWN + 1, OWN + 2].into(), ..References::default() },
        ));
        rows.relations.push(relation(OWN + 3, "none", &[], References::default()));
        let catalogue = catalogue(&rows);
        let why = |name: &str| catalogue.relations(name).first().and_then(|row| row.why.clone());
        assert_eq!(
            why("two").as_deref(),
            Some(
                "It may run the function public.vol (by the relation public.one): it is volatile, so it may write."
            )
        );
        assert!(why("one").is_some() && why("none").is_none());
    }

    #[test]
    fn an_operator_is_as_harmful_as_what_may_stand_in_its_place() {
        let mut rows = Rows::default();
        rows.functions.push(function(OWN, "calm", Volatility::Immutable, &[OWN + 9]));
        rows.functions.push(function(OWN + 1, "vol", Volatility::Volatile, &[OWN + 9]));
        let mut operator = |oid, symbol: &str, function, kin| {
            rows.operators.push(Operator {
                oid,
                symbol: symbol.to_owned(),
                schema: "public".to_owned(),
                left: OWN + 9,
                right: OWN + 9,
                result: 16,
                function,
                kin,
            });
        };
        operator(OWN + 2, "~==", OWN, [OWN + 3, 0]);
        operator(OWN + 3, "~<>", OWN + 1, [OWN + 2, 0]);
        operator(OWN + 4, "<<~", OWN, [0, OWN + 5]);
        operator(OWN + 5, "~>>", OWN + 1, [0, OWN + 4]);
        operator(OWN + 6, "~~=", OWN, [0, OWN + 2]);
        operator(OWN + 7, "~~~~", OWN, [0, 0]);
        let catalogue = catalogue(&rows);
        for symbol in ["~==", "~<>", "<<~", "~>>", "~~="] {
            assert!(!catalogue.harmful_operators(symbol).is_empty(), "{symbol}");
        }
        assert!(catalogue.harmful_operators("~~~~").is_empty());
    }

    #[test]
    fn an_implicit_cast_closes_the_rarer_type() {
        let mut rows = Rows::default();
        rows.functions.push(function(OWN, "cast", Volatility::Volatile, &[OWN + 1]));
        rows.casts.push(Cast { source: OWN + 1, target: TEXT, function: OWN, implicit: true, binary: false });
        rows.relations.push(relation(OWN + 2, "has", &[OWN + 1], References::default()));
        rows.relations.push(relation(OWN + 3, "has_not", &[TEXT], References::default()));
        let catalogue = catalogue(&rows);
        assert!(!catalogue.relations("has").is_empty() && catalogue.relations("has_not").is_empty());
        assert!(catalogue.anywhere().is_none());
        rows.casts.push(Cast { source: 23, target: TEXT, function: OWN, implicit: true, binary: false });
        assert!(self::catalogue(&rows).anywhere().is_some());
    }

    #[test]
    fn what_only_the_server_can_call_is_machinery() {
        let mut rows = Rows::default();
        let mut step = function(OWN, "step", Volatility::Volatile, &[INTERNAL, TEXT]);
        step.compiled = true;
        rows.functions.push(step);
        let mut sum = function(OWN + 1, "sum", Volatility::Immutable, &[TEXT]);
        sum.kind = FunctionKind::Aggregate;
        rows.functions.push(sum);
        rows.aggregates.push((OWN + 1, vec![OWN], 0));
        assert!(catalogue(&rows).functions("sum")[0].harm.is_none());
        rows.functions[0].compiled = false;
        assert!(catalogue(&rows).functions("sum")[0].harm.is_some());
    }
}
