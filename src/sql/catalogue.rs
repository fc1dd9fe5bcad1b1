//! What a source's functions, operators and types may do: `pg_proc` and its kin as data.
//!
//! Invariant: nothing is harmless by default; an entry is only where the server itself says that a
//! function is immutable or stable, or where [`known`] says so with a reason.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::known::Known;

pub mod graph;
pub mod nodes;
pub mod queries;
mod stock;

pub use stock::{STOCK_VERSIONS, StockError};

/// `pg_proc.prokind`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    Function,
    Procedure,
    Aggregate,
    Window,
}

/// `pg_proc.provolatile`; for an aggregate the worst of its component functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// One row of the function query.
#[derive(Clone, Debug)]
pub struct FunctionRow {
    pub schema: String,
    pub name: String,
    pub kind: FunctionKind,
    pub volatility: Volatility,
    /// Can it be called with one argument, so that `a.f` may mean `f(a)`?
    pub one_argument: bool,
}

/// One row of the operator query: operators whose function has to be judged.
#[derive(Clone, Debug)]
pub struct OperatorRow {
    pub symbol: String,
    pub function_schema: String,
    pub function: String,
    pub volatility: Volatility,
}

/// One row of the type query.
#[derive(Clone, Debug)]
pub struct TypeRow {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// Base type, element type, attributes, subtype: whose input runs with this type's.
    pub parts: Vec<u32>,
    /// A function that runs when a value is made of it and that is volatile: its input function, or
    /// one of a cast to it.
    pub volatile_function: Option<String>,
    /// Definitions of a domain's CHECK constraints.
    pub checks: Vec<String>,
}

/// A relation that is not read just so.
#[derive(Clone, Debug)]
pub struct RelationRow {
    pub schema: String,
    pub name: String,
    /// What reading it comes to, if that is not harmless.
    pub why: Option<String>,
    /// A domain of its columns that is not harmless to make.
    pub domain: Option<String>,
    /// Of which types it holds values without which some operator cannot be meant.
    pub carries: Carried,
}

/// A set of types, each a bit; from the 64th on they share one.
pub type Carried = u64;

/// What the graph of a server says of a function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judged {
    harm: Option<Harm>,
    why: Option<Box<str>>,
    carries: Carried,
    domain: Option<Box<str>>,
    mixes: bool,
}

/// An operator that is not harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedOperator {
    pub symbol: Box<str>,
    pub schema: Box<str>,
    pub why: Box<str>,
    /// It is only meant where something in the statement carries values of one of these types; 0: anywhere.
    pub later: Carried,
}

/// Why a function is not harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    Volatile,
    /// It runs SQL from text, reaches tables by name or does something that no read needs.
    Denied(Box<str>),
    Procedure,
}

impl Harm {
    /// In the words of a refusal.
    pub fn reason(&self) -> &str {
        match self {
            Self::Volatile => "it is volatile, so it may write",
            Self::Denied(reason) => reason,
            Self::Procedure => "it is a procedure",
        }
    }
}

/// One function of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub schema: Box<str>,
    pub kind: FunctionKind,
    pub volatility: Volatility,
    pub one_argument: bool,
    pub harm: Option<Harm>,
    /// What a call comes to, where its own mark does not say it.
    pub why: Option<Box<str>>,
    /// Of which types it takes or returns values without which some operator cannot be meant.
    pub carries: Carried,
    /// A domain that it takes or returns and that is not harmless to make.
    pub domain: Option<Box<str>>,
    /// Can a call make a value of an argument's type out of a constant?
    pub mixes: bool,
}

/// One relation that is not read just so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub schema: Box<str>,
    pub why: Option<Box<str>>,
    pub domain: Option<Box<str>>,
    pub carries: Carried,
}

/// One type of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub schema: Box<str>,
    /// A volatile function that making a value of it may run, or what naming it comes to.
    pub volatile_function: Option<Box<str>>,
    /// CHECK constraints that making a value of it evaluates, those of its parts included.
    pub checks: Box<[Box<str>]>,
    /// Of which types it holds values without which some operator cannot be meant.
    pub carries: Carried,
    /// What a cast to it runs where values of one of these types are.
    pub later: Option<(Carried, Box<str>)>,
}

/// The functions, operators and types of one server.
///
/// Two are equal when the rows came in the same order, which the queries see to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    functions: HashMap<Box<str>, Vec<Function>>,
    /// The symbols of all operators.
    symbols: HashSet<Box<str>>,
    /// By symbol, those that are not harmless.
    operators: HashMap<Box<str>, Vec<JudgedOperator>>,
    /// The symbols of operators that may make a value of an operand's type out of a constant.
    mixing: HashSet<Box<str>>,
    /// By name, those that are not read just so.
    relations: HashMap<Box<str>, Vec<Relation>>,
    /// What any statement may run that is not harmless.
    anywhere: Option<Box<str>>,
    types: HashMap<Box<str>, Vec<Type>>,
    /// Names of the types that are not the server's own or run something, by OID.
    type_names: HashMap<u32, (Box<str>, Box<str>)>,
    /// Is anything that an attribute may mean both harmful and called by letters beyond ASCII?
    harmful_letters: bool,
}

/// First OID of what is not the server's own (`FirstNormalObjectId`).
const FIRST_NORMAL_OID: u32 = 16384;

/// Collects the rows of a server.
#[derive(Debug, Default)]
pub struct Builder {
    functions: Vec<(FunctionRow, Option<Judged>)>,
    symbols: BTreeSet<String>,
    operators: Vec<OperatorRow>,
    judged_operators: Vec<JudgedOperator>,
    mixing: HashSet<Box<str>>,
    types: Vec<TypeRow>,
    /// Of the types at the same places, what the graph says.
    carriers: HashMap<usize, (Carried, Option<(Carried, Box<str>)>)>,
    relations: Vec<RelationRow>,
    anywhere: Option<Box<str>>,
}

impl Builder {
    pub fn function(&mut self, row: FunctionRow) {
        self.functions.push((row, None));
    }

    pub(crate) fn judged_function(&mut self, row: FunctionRow, judged: Judged) {
        self.functions.push((row, Some(judged)));
    }

    /// The symbol of an operator of which nothing else matters.
    pub fn symbol(&mut self, symbol: &str) {
        if !self.symbols.contains(symbol) {
            self.symbols.insert(symbol.to_owned());
        }
    }

    /// An operator that may make a value of an operand's type out of a constant.
    pub(crate) fn mixing(&mut self, symbol: &str) {
        self.mixing.insert(symbol.into());
    }

    pub fn judged_operator(&mut self, row: JudgedOperator) {
        self.symbol(&row.symbol);
        self.judged_operators.push(row);
    }

    /// A type whose `volatile_function` is a whole sentence.
    pub(crate) fn judged_type(&mut self, row: TypeRow, carries: Carried, later: Option<(Carried, String)>) {
        let later = later.map(|(carried, why)| (carried, why.into()));
        self.carriers.insert(self.types.len(), (carries, later));
        self.types.push(row);
    }

    pub fn relation(&mut self, row: RelationRow) {
        self.relations.push(row);
    }

    pub(crate) fn anywhere(&mut self, why: String) {
        self.anywhere = Some(why.into());
    }

    pub fn operator(&mut self, row: OperatorRow) {
        self.symbol(&row.symbol);
        self.operators.push(row);
    }

    pub fn r#type(&mut self, row: TypeRow) {
        self.types.push(row);
    }

    pub fn build(self) -> Catalogue {
        let symbols = self.symbols.into_iter().map(Into::into).collect();
        let mixing = self.mixing;
        let mut catalogue = Catalogue { anywhere: self.anywhere, symbols, mixing, ..Catalogue::default() };
        let known = Known::embedded();
        for (row, judged) in self.functions {
            catalogue.add_function(row, judged, &known);
        }
        for row in self.operators {
            let (schema, name) = (&row.function_schema, &row.function);
            if let Some(harm) = harm(&known, schema, name, None, FunctionKind::Function, row.volatility) {
                catalogue.add_operator(JudgedOperator {
                    symbol: row.symbol.into(),
                    schema: schema.as_str().into(),
                    why: format!("It may run the function {schema}.{name}: {}.", harm.reason()).into(),
                    later: 0,
                });
            }
        }
        for row in self.judged_operators {
            catalogue.add_operator(row);
        }
        for row in self.relations {
            let relation = Relation {
                schema: row.schema.into(),
                why: row.why.map(Into::into),
                domain: row.domain.map(Into::into),
                carries: row.carries,
            };
            catalogue.relations.entry(row.name.into()).or_default().push(relation);
        }
        let by_oid: HashMap<u32, &TypeRow> = self.types.iter().map(|row| (row.oid, row)).collect();
        for (at, row) in self.types.iter().enumerate() {
            let reached = reached(row, &by_oid);
            let judged = self.carriers.get(&at);
            let volatile_function = reached.iter().find_map(|row| row.volatile_function.as_deref());
            let r#type = Type {
                schema: row.schema.as_str().into(),
                volatile_function: volatile_function.map(|why| match judged {
                    Some(_) => why.into(),
                    None => format!("Making a value of it runs the volatile function {why}.").into(),
                }),
                carries: judged.map_or(0, |(carries, _)| *carries),
                later: judged.and_then(|(_, later)| later.clone()),
                checks: reached
                    .iter()
                    .flat_map(|row| &row.checks)
                    .map(|check| check.as_str().into())
                    .collect(),
            };
            let runs = r#type.volatile_function.is_some();
            let harmful = runs || !r#type.checks.is_empty();
            catalogue.harmful_letters |= harmful && !row.name.is_ascii();
            catalogue.types.entry(row.name.as_str().into()).or_default().push(r#type);
            if row.oid >= FIRST_NORMAL_OID || runs {
                let name = (row.schema.as_str().into(), row.name.as_str().into());
                catalogue.type_names.insert(row.oid, name);
            }
        }
        catalogue
    }
}

/// A type and all types that it is made of.
fn reached<'r>(row: &'r TypeRow, by_oid: &HashMap<u32, &'r TypeRow>) -> Vec<&'r TypeRow> {
    let mut seen: HashSet<u32> = HashSet::from([row.oid]);
    let mut reached = vec![row];
    let mut next = 0;
    while let Some(row) = reached.get(next).copied() {
        next += 1;
        for part in &row.parts {
            if seen.insert(*part)
                && let Some(row) = by_oid.get(part)
            {
                reached.push(row);
            }
        }
    }
    reached
}

fn harm(
    known: &Known,
    schema: &str,
    name: &str,
    extension: Option<&str>,
    kind: FunctionKind,
    volatility: Volatility,
) -> Option<Harm> {
    if let Some(reason) = known.denied(name) {
        return Some(Harm::Denied(reason.into()));
    }
    match (kind, volatility) {
        (FunctionKind::Procedure, _) => Some(Harm::Procedure),
        (_, Volatility::Immutable | Volatility::Stable) => None,
        (_, Volatility::Volatile) if known.harmless(schema, name, extension).is_some() => None,
        (_, Volatility::Volatile) => Some(match known.explained(name) {
            Some(reason) => Harm::Denied(reason.into()),
            None => Harm::Volatile,
        }),
    }
}

impl Catalogue {
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn add_function(&mut self, row: FunctionRow, judged: Option<Judged>, known: &Known) {
        let judged = judged.unwrap_or_else(|| Judged {
            harm: harm(known, &row.schema, &row.name, None, row.kind, row.volatility),
            ..Judged::default()
        });
        let function = Function {
            harm: judged.harm,
            why: judged.why,
            carries: judged.carries,
            domain: judged.domain,
            mixes: judged.mixes,
            schema: row.schema.into(),
            kind: row.kind,
            volatility: row.volatility,
            one_argument: row.one_argument,
        };
        self.harmful_letters |= function.harm.is_some() && function.one_argument && !row.name.is_ascii();
        let overloads = self.functions.entry(row.name.into()).or_default();
        if !overloads.contains(&function) {
            overloads.push(function);
        }
    }

    fn add_operator(&mut self, row: JudgedOperator) {
        let operators = self.operators.entry(row.symbol.clone()).or_default();
        if !operators.contains(&row) {
            operators.push(row);
        }
    }

    /// May a name with letters beyond ASCII mean something harmful? A server of a one-byte encoding folds
    /// their case and cuts names at other places.
    pub fn has_harmful_letters(&self) -> bool {
        self.harmful_letters
    }

    /// All functions of this name, in any schema.
    pub fn functions(&self, name: &str) -> &[Function] {
        self.functions.get(name).map_or(&[], Vec::as_slice)
    }

    /// All types of this name, in any schema.
    pub fn types(&self, name: &str) -> &[Type] {
        self.types.get(name).map_or(&[], Vec::as_slice)
    }

    /// Schema and name of a type by its OID: `Some(None)` for one of the server's own whose making runs nothing
    /// that a schema defines; `None` for one that is not known.
    pub fn type_name(&self, oid: u32) -> Option<Option<(&str, &str)>> {
        match self.type_names.get(&oid) {
            Some((schema, name)) => Some(Some((schema, name))),
            None => (oid < FIRST_NORMAL_OID).then_some(None),
        }
    }

    /// Is there an operator of this symbol, in any schema?
    pub fn knows_operator(&self, symbol: &str) -> bool {
        self.symbols.contains(symbol)
    }

    /// May an operator of this symbol, in a schema of its own, make a value of an operand's type out of a constant?
    pub fn mixes(&self, symbol: &str) -> bool {
        self.mixing.contains(symbol)
    }

    /// The operators of this symbol that are not harmless, in any schema.
    pub fn harmful_operators(&self, symbol: &str) -> &[JudgedOperator] {
        if self.operators.is_empty() {
            return &[];
        }
        self.operators.get(symbol).map_or(&[], Vec::as_slice)
    }

    /// The relations of this name that are not read just so, in any schema.
    pub fn relations(&self, name: &str) -> &[Relation] {
        if self.relations.is_empty() {
            return &[];
        }
        self.relations.get(name).map_or(&[], Vec::as_slice)
    }

    /// All relations that are refused, with what reading them comes to.
    pub fn refused_relations(&self) -> impl Iterator<Item = (String, &str)> {
        self.relations.iter().flat_map(|(name, relations)| {
            relations.iter().filter_map(move |relation| {
                Some((format!("{}.{name}", relation.schema), relation.why.as_deref()?))
            })
        })
    }

    /// What any statement may run that is not harmless.
    pub fn anywhere(&self) -> Option<&str> {
        self.anywhere.as_deref()
    }

    /// Is there any operator that is not harmless?
    pub fn has_harmful_operators(&self) -> bool {
        !self.operators.is_empty()
    }

    /// How many function names, operator symbols and type names are known.
    pub fn size(&self) -> (usize, usize, usize) {
        (self.functions.len(), self.operators.len(), self.types.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(schema: &str, name: &str, volatility: Volatility) -> FunctionRow {
        FunctionRow {
            schema: schema.into(),
            name: name.into(),
            kind: FunctionKind::Function,
            volatility,
            one_argument: true,
        }
    }

    #[test]
    fn harm_is_told_by_volatility_and_by_what_is_known() {
        let mut builder = Catalogue::builder();
        builder.function(function("public", "tidy", Volatility::Volatile));
        builder.function(function("public", "shape", Volatility::Immutable));
        builder.function(function("pg_catalog", "random", Volatility::Volatile));
        builder.function(function("public", "random", Volatility::Volatile));
        builder.function(function("pg_catalog", "txid_current", Volatility::Stable));
        let catalogue = builder.build();
        assert_eq!(catalogue.functions("tidy")[0].harm, Some(Harm::Volatile));
        assert_eq!(catalogue.functions("shape")[0].harm, None);
        assert_eq!(catalogue.functions("random")[0].harm, None);
        assert_eq!(catalogue.functions("random")[1].harm, Some(Harm::Volatile));
        assert!(matches!(catalogue.functions("txid_current")[0].harm, Some(Harm::Denied(_))));
        assert!(catalogue.functions("nothing").is_empty());
    }

    #[test]
    fn checks_reach_through_arrays_and_composites() {
        let row = |oid, name: &str, parts: &[u32], checks: &[&str]| TypeRow {
            oid,
            schema: "public".into(),
            name: name.into(),
            parts: parts.to_vec(),
            volatile_function: None,
            checks: checks.iter().map(|check| (*check).to_owned()).collect(),
        };
        let mut builder = Catalogue::builder();
        builder.r#type(row(1, "email", &[], &["CHECK (f(VALUE))"]));
        builder.r#type(row(2, "_email", &[1], &[]));
        builder.r#type(row(3, "person", &[2, 3], &[]));
        let catalogue = builder.build();
        assert_eq!(catalogue.types("person")[0].checks.len(), 1);
    }
}
