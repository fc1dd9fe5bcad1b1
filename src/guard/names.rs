//! The rule for functions, operators and types, by the source's own catalogue.
//!
//! Invariant: a name is admitted when everything it could mean is harmless, and refused when nothing
//! of that name is known.

use std::cell::RefCell;

use super::found::{Found, FoundKind, Notes};
use super::met::Met;
use crate::guard::Refusal;
use crate::guard::refusal::short;
use crate::sql::Limits;
use crate::sql::catalogue::{Catalogue, Function, Harm, Type};
use crate::sql::keyword::Category;
use crate::sql::lexer::{self, Kind, Token};

type Result<T> = std::result::Result<T, Refusal>;

/// Key words of all versions that look like function calls and are none: they run their arguments.
const SYNTAX: &[&str] = &[
    "array",
    "coalesce",
    "exists",
    "greatest",
    "grouping",
    "least",
    "nullif",
    "row",
    "treat",
    "xmlconcat",
    "xmlelement",
    "xmlexists",
    "xmlforest",
    "xmlparse",
    "xmlpi",
    "xmlroot",
    "xmlserialize",
    "xmltable",
];

/// Key words of versions from 16 on; before that, names of functions that somebody may have made.
const LATER_SYNTAX: &[&str] = &[
    "json",
    "json_array",
    "json_arrayagg",
    "json_exists",
    "json_object",
    "json_objectagg",
    "json_query",
    "json_scalar",
    "json_serialize",
    "json_table",
    "json_value",
    "merge_action",
];

/// Functions without brackets.
const VALUES: &[&str] = &[
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "localtime",
    "localtimestamp",
    "session_user",
    "system_user",
    "user",
];

pub(super) struct Names<'c> {
    pub catalogue: &'c Catalogue,
    pub met: &'c Met<'c>,
    /// Where names are written down; then nothing is judged.
    pub notes: Option<&'c Notes>,
    /// Types whose CHECKs are being judged: one that its own CHECK names is judged once.
    pub judging: RefCell<Vec<&'c Type>>,
}

/// Does `schema`, where one is given, leave this entry?
fn in_schema(schema: Option<&str>, of: &str) -> bool {
    // The session's own schema for temporary objects has a number, which nobody here knows.
    schema.is_none_or(|schema| schema == of || (schema == "pg_temp" && of.starts_with("pg_temp_")))
}

fn harm(name: &str, function: &Function) -> Option<Refusal> {
    let why = function.harm.as_ref()?;
    let refusal = Refusal::function(name);
    let full = format!("{}.{name}", short(&function.schema));
    Some(match (why, &function.why) {
        (_, Some(why)) => refusal.because(format!("It is about {full}. {why}")),
        (Harm::Denied(reason), None) => {
            refusal.because(format!("It is never called through the gateway: {reason}."))
        }
        (Harm::Procedure, None) => refusal.because(format!("{full} is a procedure.")),
        (Harm::Volatile, None) => refusal
            .because(format!("{full} is volatile, so it may write."))
            .hint("If it only reads, its owner can declare it STABLE."),
    })
}

impl<'c> Names<'c> {
    /// Writes a name down, if this is what the walk is for; then it need not be judged.
    pub fn noted(&self, kind: FoundKind, name: &[&str], offset: Option<usize>) -> bool {
        let Some(notes) = self.notes else { return false };
        let name = name.iter().map(|part| (*part).to_owned()).collect();
        notes.borrow_mut().push(Found { kind, name, offset });
        true
    }

    /// Splits `[database.][schema.]name`.
    fn parts<'n>(name: &[&'n str]) -> Option<(Option<&'n str>, &'n str)> {
        match name {
            [name] => Some((None, name)),
            [schema, name] | [_, schema, name] => Some((Some(schema), name)),
            _ => None,
        }
    }

    fn functions<'n>(
        &self,
        schema: Option<&'n str>,
        name: &str,
    ) -> impl Iterator<Item = &'c Function> + use<'n, 'c> {
        self.catalogue.functions(name).iter().filter(move |function| in_schema(schema, &function.schema))
    }

    fn types<'n>(&self, schema: Option<&'n str>, name: &str) -> impl Iterator<Item = &'c Type> + use<'n, 'c> {
        self.catalogue.types(name).iter().filter(move |of| in_schema(schema, &of.schema))
    }

    /// A call of a function. `unquoted` tells whether the name is one unquoted word, which may be
    /// syntax rather than a name; `brackets` whether it has arguments.
    pub fn function(
        &self,
        name: &[&str],
        unquoted: bool,
        brackets: bool,
        offset: Option<usize>,
    ) -> Result<()> {
        let Some((schema, last)) = Self::parts(name) else {
            return Err(Refusal::unverified("improper qualified name").at(offset));
        };
        if unquoted && schema.is_none() {
            if SYNTAX.contains(&last) || (!brackets && VALUES.contains(&last)) {
                return Ok(());
            }
            if brackets
                && matches!(last, "current_time" | "current_timestamp" | "localtime" | "localtimestamp")
            {
                return Ok(());
            }
        }
        if self.noted(FoundKind::Function, name, offset) {
            return Ok(());
        }
        let mut known = false;
        for function in self.functions(schema, last) {
            known = true;
            self.called(last, schema, function, offset)?;
        }
        // Where no function fits, PostgreSQL reads `type(x)` as a cast.
        if self.types(schema, last).next().is_some() {
            self.r#type(name, offset)?;
            known = true;
        }
        if known || (unquoted && schema.is_none() && LATER_SYNTAX.contains(&last)) {
            return Ok(());
        }
        Err(Refusal::function(last)
            .because("No function of this name is known there.")
            .hint("A function that was just created is known after the next refresh of the catalogue.")
            .at(offset))
    }

    /// One function that a call may mean.
    fn called(
        &self,
        name: &str,
        schema: Option<&str>,
        function: &'c Function,
        offset: Option<usize>,
    ) -> Result<()> {
        if let Some(mut refusal) = harm(name, function) {
            // One schema's function closes a name that PostgreSQL has a harmless one of.
            if schema.is_none()
                && &*function.schema != "pg_catalog"
                && self
                    .catalogue
                    .functions(name)
                    .iter()
                    .any(|other| &*other.schema == "pg_catalog" && other.harm.is_none())
            {
                refusal = refusal.hint(format!(
                    "Write pg_catalog.{name} to call PostgreSQL's own, whatever the schema {} has.",
                    short(&function.schema)
                ));
            }
            return Err(refusal.at(offset));
        }
        self.met.carry(function.carries);
        if let Some(domain) = &function.domain {
            self.met.domain.set(Some(domain));
        }
        if function.mixes && self.met.mixes.get().is_none() {
            self.met.mixes.set(Some(offset.unwrap_or_default()));
        }
        Ok(())
    }

    /// A table, view or materialized view that is read.
    pub fn relation(&self, name: &[&str], offset: Option<usize>) -> Result<()> {
        let Some((schema, last)) = Self::parts(name) else {
            return Err(Refusal::unverified("improper qualified name").at(offset));
        };
        if self.noted(FoundKind::Relation, name, offset) {
            return Ok(());
        }
        for relation in self.catalogue.relations(last) {
            if !in_schema(schema, &relation.schema) {
                continue;
            }
            if let Some(why) = &relation.why {
                return Err(Refusal::denied("relation", last)
                    .because(format!("It is about {}.{}. {why}", short(&relation.schema), short(last)))
                    .hint("If the function only reads, its owner can declare it STABLE.")
                    .at(offset));
            }
            self.met.carry(relation.carries);
            if let Some(domain) = &relation.domain {
                self.met.domain.set(Some(domain));
                self.met.row(last);
            }
        }
        Ok(())
    }

    /// `a.name`, which is `name(a)` when `a` has no such column, and a cast where no function fits.
    pub fn attribute(&self, name: &str, offset: Option<usize>) -> Result<()> {
        if self.noted(FoundKind::Attribute, &[name], offset) {
            return Ok(());
        }
        for function in self.catalogue.functions(name) {
            if function.one_argument {
                self.called(name, None, function, offset)?;
            }
        }
        if !name.is_ascii() && self.catalogue.has_harmful_letters() {
            return Err(Refusal::denied("attribute", name)
                .because("There are harmful functions or types with such letters in their names.")
                .hint("Select a column without its table's name before it.")
                .at(offset));
        }
        if self.catalogue.types(name).is_empty() { Ok(()) } else { self.r#type(&[name], offset) }
    }

    /// A type that a value is made of.
    pub fn r#type(&self, name: &[&str], offset: Option<usize>) -> Result<()> {
        if self.noted(FoundKind::Type, name, offset) {
            return Ok(());
        }
        let Some((schema, last)) = Self::parts(name) else {
            return Err(Refusal::unverified("improper qualified name").at(offset));
        };
        let mut known = false;
        for of in self.types(schema, last) {
            known = true;
            if let Some(function) = &of.volatile_function {
                return Err(Refusal::denied("type", last).because(function.as_ref()).at(offset));
            }
            self.met.carry(of.carries);
            if let Some((types, why)) = &of.later {
                self.met.later(*types, || Refusal::denied("cast to", last).because(why.as_ref()).at(offset));
            }
            if self.judging.borrow().iter().any(|outer| std::ptr::eq(*outer, of)) {
                continue;
            }
            self.judging.borrow_mut().push(of);
            let judged = of.checks.iter().try_for_each(|check| self.check(check));
            self.judging.borrow_mut().pop();
            judged.map_err(|refusal| {
                Refusal::denied("type", last)
                    .because(format!("Its CHECK constraint is not harmless ({}).", refusal.message))
                    .at(offset)
            })?;
        }
        if known {
            return Ok(());
        }
        Err(Refusal::denied("type", last)
            .because("No type of this name is known there.")
            .hint("A type that was just created is known after the next refresh of the catalogue.")
            .at(offset))
    }

    /// The definition of a CHECK constraint as the server prints it: each call by its name.
    fn check(&self, definition: &str) -> Result<()> {
        let tokens = lexer::tokens(definition, &Limits::default())
            .map_err(|error| Refusal::unverified(&error.to_string()))?;
        for (at, token) in tokens.iter().enumerate() {
            let call = tokens.get(at + 1).is_some_and(|next| next.kind == Kind::LeftParen);
            let (name, from) = qualified(&tokens, at);
            match token.kind {
                Kind::Operator => self.operator(&token.text, None, None)?,
                Kind::Word(Category::Reserved | Category::TypeFunction | Category::ColumnName)
                    if from == at => {}
                Kind::Word(_) | Kind::Quoted if call && !token.is("check") => {
                    let names: Vec<&str> = name.iter().map(|part| part.text.as_ref()).collect();
                    self.function(&names, false, true, None)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An operator by its symbol, whatever its operands.
    fn operator(&self, symbol: &str, schema: Option<&str>, offset: Option<usize>) -> Result<()> {
        if self.noted(FoundKind::Operator, &[symbol], offset) {
            return Ok(());
        }
        // The server would find one that was created since the last load.
        if !self.catalogue.knows_operator(symbol) {
            return Err(Refusal::denied("operator", symbol)
                .because("No operator of this name is known there.")
                .hint("An operator that was just created is known after the next refresh of the catalogue.")
                .at(offset));
        }
        // The server's own do not, or have constants for text before anything else.
        let elsewhere = schema != Some("pg_catalog");
        if elsewhere && self.catalogue.mixes(symbol) && self.met.mixes.get().is_none() {
            self.met.mixes.set(Some(offset.unwrap_or_default()));
        }
        for operator in self.catalogue.harmful_operators(symbol) {
            if !in_schema(schema, &operator.schema) {
                continue;
            }
            let refusal = || {
                let full = format!("{}.{symbol}", short(&operator.schema));
                Refusal::denied("operator", symbol)
                    .because(format!("It is about {full}. {}", operator.why))
                    .hint(format!(
                        "Write OPERATOR(pg_catalog.{symbol}) for PostgreSQL's own; if the function only reads, \
                         its owner can declare it STABLE."
                    ))
                    .at(offset)
            };
            // With its schema, constants alone may mean it.
            if operator.later != 0 && schema.is_none() {
                self.met.later(operator.later, refusal);
            } else {
                return Err(refusal());
            }
        }
        Ok(())
    }

    /// Judges a query by its tokens alone, whatever a parser makes of them: no harmful function may
    /// stand before a bracket, no harmful operator anywhere.
    ///
    /// Returns how many calls of `set_config` there are; the walk judges each.
    pub fn tokens(&self, tokens: &[Token<'_>]) -> Result<usize> {
        if let Some(why) = self.catalogue.anywhere() {
            return Err(Refusal::denied("queries", "on this source").because(why));
        }
        let mut set_config = 0;
        for (at, token) in tokens.iter().enumerate() {
            let offset = Some(token.start);
            match token.kind {
                Kind::Operator => self.operator(&token.text, operator_schema(tokens, at), offset)?,
                // The walk notes the others where they stand.
                _ if self.notes.is_some() => {}
                Kind::Word(_) | Kind::Quoted => {
                    if self.catalogue.has_harmful_operators() && matches!(token.kind, Kind::Word(_)) {
                        for symbol in implied_operators(&token.text) {
                            self.operator(symbol, None, offset)?;
                        }
                        if token.is("not") && tokens.get(at + 1).is_some_and(|next| next.is("in")) {
                            self.operator("<>", None, offset)?;
                        }
                    }
                    let field = at.checked_sub(1).and_then(|at| tokens.get(at)).map(|token| token.kind)
                        == Some(Kind::Dot);
                    if !tokens.get(at + 1).is_some_and(|next| next.kind == Kind::LeftParen) {
                        // A table may be called as a function is; of others the tree is no witness.
                        if field && self.catalogue.types(&token.text).is_empty() {
                            self.attribute(&token.text, offset)?;
                        }
                        continue;
                    }
                    if token.kind == Kind::Word(Category::Reserved) && !field {
                        continue;
                    }
                    if token.text == "set_config" {
                        set_config += 1;
                        continue;
                    }
                    let (name, _) = qualified(tokens, at);
                    let schema = match name.as_slice() {
                        [.., schema, _] => Some(schema.text.as_ref()),
                        _ => None,
                    };
                    for function in self.functions(schema, &token.text) {
                        self.called(&token.text, schema, function, offset)?;
                    }
                }
                _ => {}
            }
        }
        Ok(set_config)
    }
}

/// The dotted name that ends with the token at `at`, and where it begins.
fn qualified<'t, 'a>(tokens: &'t [Token<'a>], at: usize) -> (Vec<&'t Token<'a>>, usize) {
    let mut from = at;
    while from >= 2
        && tokens.get(from - 1).is_some_and(|dot| dot.kind == Kind::Dot)
        && tokens.get(from - 2).is_some_and(|name| matches!(name.kind, Kind::Word(_) | Kind::Quoted))
    {
        from -= 2;
    }
    (tokens.get(from..=at).unwrap_or_default().iter().step_by(2).collect(), from)
}

/// The schema of an operator in `OPERATOR(schema.symbol)`.
fn operator_schema<'t>(tokens: &'t [Token<'_>], at: usize) -> Option<&'t str> {
    let dot = tokens.get(at.checked_sub(1)?)?;
    let schema = tokens.get(at.checked_sub(2)?)?;
    (dot.kind == Kind::Dot && matches!(schema.kind, Kind::Word(_) | Kind::Quoted)).then_some(&*schema.text)
}

/// Operators that syntax uses without writing them.
fn implied_operators(word: &str) -> &'static [&'static str] {
    match word {
        "in" | "using" | "natural" | "case" | "nullif" | "distinct" => &["="],
        "between" => &[">=", "<=", "<", ">"],
        "like" => &["~~", "!~~"],
        "ilike" => &["~~*", "!~~*"],
        "similar" => &["~", "!~"],
        _ => &[],
    }
}
