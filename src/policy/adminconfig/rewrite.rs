//! A policy's text as regorus is to read it: rules that say where they stand, and OPA's order around `not`.
//!
//! Invariant: a line stays the line it was, so that errors name the author's lines; what is written in keeps the meaning
//! that OPA gives the original.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;

use regorus::unstable::{Expr, Literal, LiteralStmt, Module, Query, Rule, RuleHead};

use super::{Origin, Problem};

/// Where decisions and strategies are declared; other packages hold helpers.
pub(super) const PACKAGE: &str = "adminconfig";
/// Declarations under one name: a program of regorus' machine holds 65,535 instructions, and a policy takes about 16.
const RULES_OF_A_PROGRAM: usize = 500;
/// Most files that have programs of their own.
const FILES_OF_THEIR_OWN: usize = 64;
/// Deepest nesting of brackets; regorus reads by recursion.
const DEPTH: usize = 64;
/// Operators, references and calls between two braces; they nest too, in chains such as `a+a+a`.
const CHAIN: usize = 2_000;
/// Rounds of rewriting: each takes one level of `not` inside the operand of a `not`.
const ROUNDS: usize = 16;
const LOCAL: &str = "fedgate_operand_";

/// Which of the two rules a declaration belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collected {
    Config,
    Optimize,
}

impl Collected {
    pub fn as_str(self) -> &'static str {
        match self {
            Collected::Config => "config",
            Collected::Optimize => "optimize",
        }
    }

    fn of(name: &str) -> Option<Self> {
        match name {
            "config" => Some(Collected::Config),
            "optimize" => Some(Collected::Optimize),
            _ => None,
        }
    }
}

/// One `config[…]` or `optimize[…]`.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub rule: Collected,
    pub at: Origin,
}

/// The declarations of all files; a text's rules answer with an index into them.
#[derive(Debug, Default)]
pub(super) struct Declarations {
    pub list: Vec<Declared>,
    /// The program that each of them belongs to; a program is asked as one.
    programs: Vec<usize>,
    /// Each file has programs of its own, so that what is spent up can be said to be spent there.
    by_file: bool,
}

impl Declarations {
    pub fn of(files: usize) -> Self {
        Self { by_file: files <= FILES_OF_THEIR_OWN, ..Self::default() }
    }

    /// The rule that number `index` is collected under.
    fn name(&self, index: usize, rule: Collected) -> String {
        let program = self.programs.get(index).copied().unwrap_or_default();
        format!("fedgate_{}_{program}", rule.as_str())
    }

    fn add(&mut self, declared: Declared) -> usize {
        let (last, program) = (self.list.last(), self.programs.last().copied().unwrap_or_default());
        let size = self.programs.iter().rev().take_while(|one| **one == program).count();
        let another = last.is_some_and(|last| self.by_file && last.at.file != declared.at.file);
        self.programs.push(if another || size >= RULES_OF_A_PROGRAM { program + 1 } else { program });
        self.list.push(declared);
        self.list.len() - 1
    }

    /// The rules to ask, each with what it collects and where its first declaration stands and whether it has others.
    pub fn entry_points(&self) -> Vec<EntryPoint> {
        let mut found: BTreeMap<(bool, usize), EntryPoint> = BTreeMap::new();
        for (index, (declared, program)) in self.list.iter().zip(&self.programs).enumerate() {
            found
                .entry((declared.rule == Collected::Optimize, *program))
                .and_modify(|entry| entry.alone = false)
                .or_insert_with(|| EntryPoint {
                    rule: declared.rule,
                    path: format!("data.{PACKAGE}.{}", self.name(index, declared.rule)),
                    first: declared.at.clone(),
                    alone: true,
                });
        }
        found.into_values().collect()
    }
}

/// Some of the declarations of one rule.
#[derive(Clone, Debug)]
pub(super) struct EntryPoint {
    pub rule: Collected,
    pub path: String,
    pub first: Origin,
    pub alone: bool,
}

/// A replacement in a text.
struct Edit {
    range: Range<usize>,
    text: String,
}

/// Brackets and chains that would nest too deep to be read.
///
/// # Errors
/// The line that goes too deep.
pub(super) fn check_depth(text: &str) -> Result<(), (u32, String)> {
    let (mut depth, mut chain, mut line) = (0usize, 0usize, 1u32);
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\n' => line += 1,
            b'#' => {
                while bytes.peek().is_some_and(|byte| *byte != b'\n') {
                    bytes.next();
                }
            }
            b'"' | b'`' => {
                while let Some(inner) = bytes.next() {
                    match inner {
                        b'\n' => line += 1,
                        b'\\' if byte == b'"' => drop(bytes.next()),
                        _ if inner == byte => break,
                        _ => {}
                    }
                }
            }
            b'(' | b'[' | b'{' => {
                depth += 1;
                chain = if byte == b'{' { 0 } else { chain + 1 };
            }
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if byte == b'}' {
                    chain = 0;
                }
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'&' | b'|' | b'.' | b'=' | b'<' | b'>' => chain += 1,
            // `not not not`, `else else`, `x in y in z`: a word may nest as well as a sign.
            b'n' if matches!(bytes.peek(), Some(b'o')) => chain += 1,
            _ => {}
        }
        if depth > DEPTH {
            return Err((line, format!("is nested more than {DEPTH} brackets deep")));
        }
        if chain > CHAIN {
            return Err((line, format!("holds more than {CHAIN} operators and references without a brace")));
        }
    }
    Ok(())
}

/// The first line with a name of ours in it.
pub(super) fn reserved(text: &str) -> Option<u32> {
    let at = text.find("fedgate_")?;
    let lines = text.get(..at)?.matches('\n').count();
    u32::try_from(lines + 1).ok()
}

/// `data.adminconfig` or whatever the package is, without `data`.
fn package(module: &Module) -> String {
    module.package.refr.span().text().to_owned()
}

fn in_package(module: &Module) -> bool {
    package(module) == PACKAGE
}

/// What stands at the names of the declarations: a set to regorus, or what it is otherwise.
///
/// # Errors
/// A rule `config` or `optimize` that is no set.
pub(super) fn heads(
    file: &str,
    text: &str,
    module: &Module,
    declarations: &mut Declarations,
) -> Result<String, (Collected, Problem)> {
    if !in_package(module) {
        return Ok(text.to_owned());
    }
    let mut edits = Vec::new();
    for rule in &module.policy {
        let (refr, is_set) = match rule.as_ref() {
            Rule::Spec { head: RuleHead::Set { refr, key: Some(_), .. }, .. } => (refr, true),
            Rule::Spec {
                head: RuleHead::Set { refr, .. } | RuleHead::Compr { refr, .. } | RuleHead::Func { refr, .. },
                ..
            }
            | Rule::Default { refr, .. } => (refr, false),
        };
        let Some(collected) = root(refr).and_then(Collected::of) else { continue };
        let at = Origin { file: file.into(), line: rule.span().line };
        let range = match rule.as_ref() {
            Rule::Spec { head: RuleHead::Set { span, refr, .. }, .. } if is_set => {
                // The span of a key that is an object starts inside it, so the key is taken from what is around it.
                let (from, to) = (refr.span().end as usize, span.end as usize);
                key_range(text, from, to)
            }
            _ => None,
        };
        let Some(range) = range else {
            let name = collected.as_str();
            let message = format!(
                "must be a set: write {name}[…] {{ … }}, or {name} contains … if {{ … }} under import rego.v1"
            );
            return Err((collected, Problem { at, message }));
        };
        let index = declarations.add(Declared { rule: collected, at });
        let span = refr.span();
        edits.push(Edit {
            range: span.start as usize..span.end as usize,
            text: declarations.name(index, collected),
        });
        edits.push(Edit { range: range.start..range.start, text: format!("[{index}, ") });
        edits.push(Edit { range: range.end..range.end, text: "]".to_owned() });
    }
    Ok(apply(text, edits))
}

/// The key of `config[KEY]` or `config contains KEY`, between the ends of the name and of the head.
fn key_range(text: &str, from: usize, to: usize) -> Option<Range<usize>> {
    let between = text.get(from..to)?;
    let start = from + (between.len() - between.trim_start().len());
    let rest = text.get(start..to)?;
    if rest.starts_with('[') {
        return rest.ends_with(']').then(|| start + 1..to - 1);
    }
    let rest = rest.strip_prefix("contains")?;
    Some(to - rest.trim_start().len()..to)
}

/// The first name of a reference.
fn root(mut expr: &Expr) -> Option<&str> {
    loop {
        match expr {
            Expr::Var { span, .. } => return Some(span.text()),
            Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => expr = refr,
            _ => return None,
        }
    }
}

/// Reads the rules through what they are collected under, for policies that ask what others decided.
pub(super) fn readers(declarations: &Declarations) -> String {
    let mut text = format!("package {PACKAGE}\n");
    for EntryPoint { rule, path, .. } in declarations.entry_points() {
        let name = path.rsplit('.').next().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}[decided] {{ {name}[[_, decided]] }}", rule.as_str());
    }
    text
}

/// Whether a rule asks for `config` or `optimize`.
pub(super) fn reads_declarations(module: &Module) -> bool {
    let mut found = false;
    for rule in &module.policy {
        visit_rule(rule, &mut |expr| match expr {
            Expr::Var { span, .. } if in_package(module) => found |= Collected::of(span.text()).is_some(),
            Expr::RefDot { field, .. } => found |= Collected::of(field.0.text()).is_some(),
            Expr::RefBrack { index, .. } => {
                if let Expr::String { value, .. } = index.as_ref() {
                    found |= value.as_string().is_ok_and(|name| Collected::of(name).is_some());
                }
            }
            _ => {}
        });
    }
    found
}

/// One round: `print` (which OPA leaves out unless asked), and what a `not` has to evaluate in front of it.
/// None: there is nothing left to do.
pub(super) fn bodies(text: &str, module: &Module) -> Option<String> {
    let mut edits = Vec::new();
    let mut locals = text.matches(LOCAL).count();
    for rule in &module.policy {
        let Rule::Spec { bodies, .. } = rule.as_ref() else { continue };
        for body in bodies {
            query_edits(text, &body.query, &mut edits, &mut locals);
        }
    }
    if edits.is_empty() { None } else { Some(apply(text, edits)) }
}

/// Whether another round is due.
pub(super) fn rounds() -> std::ops::Range<usize> {
    0..ROUNDS
}

fn query_edits(text: &str, query: &Query, edits: &mut Vec<Edit>, locals: &mut usize) {
    for statement in &query.stmts {
        statement_edits(text, statement, edits, locals);
    }
}

fn statement_edits(text: &str, statement: &LiteralStmt, edits: &mut Vec<Edit>, locals: &mut usize) {
    let before = edits.len();
    match &statement.literal {
        Literal::SomeVars { .. } => {}
        Literal::SomeIn { collection, .. } => nested(text, collection, edits, locals),
        Literal::Every { domain, query, .. } => {
            nested(text, domain, edits, locals);
            query_edits(text, query, edits, locals);
        }
        Literal::Expr { expr, .. } => {
            if let Expr::Call { span, fcn, .. } = expr.as_ref()
                && matches!(fcn.as_ref(), Expr::Var { span, .. } if span.text() == "print")
            {
                let newlines = "\n".repeat(span.text().matches('\n').count());
                edits.push(Edit {
                    range: span.start as usize..span.end as usize,
                    text: format!("true{newlines}"),
                });
            } else {
                nested(text, expr, edits, locals);
            }
        }
        Literal::NotExpr { span, expr } => {
            let mut operands = Vec::new();
            in_front(text, expr, &mut operands);
            if operands.is_empty() {
                nested(text, expr, edits, locals);
                return;
            }
            let mut front = String::new();
            for range in operands {
                let Some(operand) = text.get(range.clone()) else { continue };
                let local = format!("{LOCAL}{locals}");
                *locals += 1;
                let _ = write!(front, "{local} := {operand}; ");
                edits.push(Edit { range, text: local });
            }
            let start = span.start as usize;
            // A rule may hold one literal without braces behind `if`; two need them.
            let bare = text.get(..start).is_some_and(|before| {
                let before = before.trim_end();
                before.ends_with("if")
                    && !before
                        .trim_end_matches("if")
                        .ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.')
            });
            if bare {
                front.insert_str(0, "{ ");
                let end = statement.span.end as usize;
                edits.push(Edit { range: end..end, text: " }".to_owned() });
            }
            edits.push(Edit { range: start..start, text: front });
        }
    }
    // Edits of one statement may lie inside each other (a comprehension inside an operand): then this round takes the
    // outer ones and the next round finds the inner ones again.
    debug_assert!(edits.len() >= before);
}

/// The `not`s of comprehensions inside an expression.
fn nested(text: &str, expr: &Expr, edits: &mut Vec<Edit>, locals: &mut usize) {
    match expr {
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
            nested(text, term, edits, locals);
            query_edits(text, query, edits, locals);
        }
        Expr::ObjectCompr { key, value, query, .. } => {
            nested(text, key, edits, locals);
            nested(text, value, edits, locals);
            query_edits(text, query, edits, locals);
        }
        other => children(other, &mut |child| nested(text, child, edits, locals)),
    }
}

/// What OPA evaluates in front of a `not`: the operands of a call, be it a function, a comparison or arithmetic. `==` and
/// `=` are unifications, of which only calls and the insides of composites go in front.
fn in_front(text: &str, expr: &Expr, found: &mut Vec<Range<usize>>) {
    use regorus::unstable::BoolOp;
    match expr {
        Expr::BoolExpr { op: BoolOp::Eq, lhs, rhs, .. } | Expr::AssignExpr { lhs, rhs, .. } => {
            for side in [lhs, rhs] {
                match side.as_ref() {
                    Expr::Var { .. } => {}
                    Expr::RefDot { .. } | Expr::RefBrack { .. } => indices(text, side, found),
                    other => operand(text, other, found),
                }
            }
        }
        Expr::RefDot { .. } | Expr::RefBrack { .. } => indices(text, expr, found),
        Expr::Call { params, .. } => params.iter().for_each(|param| operand(text, param, found)),
        Expr::BoolExpr { .. } | Expr::ArithExpr { .. } | Expr::BinExpr { .. } | Expr::Membership { .. } => {
            children(expr, &mut |child| operand(text, child, found));
        }
        Expr::UnaryExpr { expr, .. } => in_front(text, expr, found),
        Expr::Array { .. } | Expr::Set { .. } | Expr::Object { .. } => operand(text, expr, found),
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. }
        | Expr::ArrayCompr { .. }
        | Expr::SetCompr { .. }
        | Expr::ObjectCompr { .. } => {}
    }
}

/// References inside the brackets of a reference.
fn indices(text: &str, mut expr: &Expr, found: &mut Vec<Range<usize>>) {
    loop {
        match expr {
            Expr::RefDot { refr, .. } => expr = refr,
            Expr::RefBrack { refr, index, .. } => {
                if !matches!(index.as_ref(), Expr::Var { .. }) {
                    operand(text, index, found);
                }
                expr = refr;
            }
            _ => return,
        }
    }
}

fn operand(text: &str, expr: &Expr, found: &mut Vec<Range<usize>>) {
    match expr {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. } => {}
        // A comprehension is always defined.
        Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => {}
        // A name may be a rule's, and an undefined one counts; one that is a variable does no harm in front.
        Expr::Var { span, .. } => {
            let name = span.text();
            if name != "_" && !name.starts_with(LOCAL) {
                found.push(span.start as usize..span.end as usize);
            }
        }
        Expr::Array { .. } | Expr::Set { .. } | Expr::Object { .. } => {
            children(expr, &mut |child| operand(text, child, found));
        }
        Expr::Call { span, .. }
        | Expr::RefDot { span, .. }
        | Expr::RefBrack { span, .. }
        | Expr::ArithExpr { span, .. }
        | Expr::BinExpr { span, .. }
        | Expr::BoolExpr { span, .. }
        | Expr::Membership { span, .. }
        | Expr::UnaryExpr { span, .. }
        | Expr::AssignExpr { span, .. } => {
            let range = span.start as usize..span.end as usize;
            // A span leaves out the brackets around its ends.
            if text.get(range.clone()).is_some_and(balanced) {
                found.push(range);
            } else {
                children(expr, &mut |child| operand(text, child, found));
            }
        }
    }
}

fn balanced(text: &str) -> bool {
    let mut depth = 0i32;
    let mut quoted = None;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match (quoted, byte) {
            (Some(b'"'), b'\\') => drop(bytes.next()),
            (Some(quote), byte) if quote == byte => quoted = None,
            (Some(_), _) => {}
            (None, b'"' | b'`') => quoted = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth -= 1,
            (None, _) => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// Where edits overlap, the one that starts first and reaches farther is taken; the other belongs to the next round.
fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.range.start, std::cmp::Reverse(edit.range.end)));
    let mut out = String::with_capacity(text.len() + 64);
    let mut at = 0;
    for edit in edits {
        if edit.range.start < at {
            continue;
        }
        out.push_str(text.get(at..edit.range.start).unwrap_or_default());
        out.push_str(&edit.text);
        at = edit.range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

fn children(expr: &Expr, each: &mut dyn FnMut(&Expr)) {
    match expr {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. } => {}
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().for_each(|item| each(item)),
        Expr::Object { fields, .. } => {
            for (_, key, value) in fields {
                each(key);
                each(value);
            }
        }
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
            each(term);
            query_expressions(query, each);
        }
        Expr::ObjectCompr { key, value, query, .. } => {
            each(key);
            each(value);
            query_expressions(query, each);
        }
        Expr::Call { fcn, params, .. } => {
            each(fcn);
            params.iter().for_each(|param| each(param));
        }
        Expr::UnaryExpr { expr, .. } => each(expr),
        Expr::RefDot { refr, .. } => each(refr),
        Expr::RefBrack { refr, index, .. } => {
            each(refr);
            each(index);
        }
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => {
            each(lhs);
            each(rhs);
        }
        Expr::Membership { key, value, collection, .. } => {
            if let Some(key) = key {
                each(key);
            }
            each(value);
            each(collection);
        }
    }
}

fn query_expressions(query: &Query, each: &mut dyn FnMut(&Expr)) {
    for statement in &query.stmts {
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn { key, value, collection, .. } => {
                if let Some(key) = key {
                    each(key);
                }
                each(value);
                each(collection);
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => each(expr),
            Literal::Every { domain, query, .. } => {
                each(domain);
                query_expressions(query, each);
            }
        }
        for with in &statement.with_mods {
            each(&with.r#as);
        }
    }
}

/// Every expression of a rule but the name it declares, from the outside in.
fn visit_rule(rule: &Rule, each: &mut dyn FnMut(&Expr)) {
    fn deep(expr: &Expr, each: &mut dyn FnMut(&Expr)) {
        each(expr);
        children(expr, &mut |child| deep(child, each));
    }
    match rule {
        Rule::Default { value, .. } => deep(value, each),
        Rule::Spec { head, bodies, .. } => {
            match head {
                RuleHead::Compr { refr, assign, .. } => {
                    head_indices(refr, &mut |index| deep(index, each));
                    if let Some(assign) = assign {
                        deep(&assign.value, each);
                    }
                }
                RuleHead::Set { refr, key, .. } => {
                    head_indices(refr, &mut |index| deep(index, each));
                    if let Some(key) = key {
                        deep(key, each);
                    }
                }
                RuleHead::Func { assign, .. } => {
                    if let Some(assign) = assign {
                        deep(&assign.value, each);
                    }
                }
            }
            for body in bodies {
                if let Some(assign) = &body.assign {
                    deep(&assign.value, each);
                }
                query_expressions(&body.query, &mut |expr| deep(expr, each));
            }
        }
    }
}

fn head_indices(mut refr: &Expr, each: &mut dyn FnMut(&Expr)) {
    loop {
        match refr {
            Expr::RefDot { refr: inner, .. } => refr = inner,
            Expr::RefBrack { refr: inner, index, .. } => {
                each(index);
                refr = inner;
            }
            _ => return,
        }
    }
}

/// A rule that needs itself; OPA refuses those, and regorus would follow them until the stack ends. The answer is how
/// many rules ask each other at most, one inside the other.
///
/// # Errors
/// The place of a rule in the circle, and the names along it.
pub(super) fn check_circles<'m>(modules: impl Iterator<Item = &'m Module> + Clone) -> Result<usize, Problem> {
    // A name in a package; a package that is asked for as a whole means all of its rules.
    let mut places: BTreeMap<String, Origin> = BTreeMap::new();
    for module in modules.clone() {
        let package = package(module);
        for rule in &module.policy {
            if let Some(name) = rule_name(rule) {
                let span = rule.span();
                let at = Origin { file: span.source.get_path().as_str().into(), line: span.line };
                places.entry(format!("{package}.{name}")).or_insert(at);
            }
        }
    }
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for module in modules {
        let package = package(module);
        let aliases: BTreeMap<String, String> = module
            .imports
            .iter()
            .filter_map(|import| {
                let path = import.refr.span().text().strip_prefix("data.")?.to_owned();
                let last = path.rsplit('.').next().unwrap_or_default();
                let name = import.r#as.as_ref().map_or(last, |alias| alias.text()).to_owned();
                Some((name, path))
            })
            .collect();
        for rule in &module.policy {
            let Some(name) = rule_name(rule) else { continue };
            let locals = locals(rule);
            let to = edges.entry(format!("{package}.{name}")).or_default();
            visit_rule(rule, &mut |expr| {
                let target = match expr {
                    Expr::Var { span, .. } if !locals.contains(span.text()) => match aliases.get(span.text())
                    {
                        Some(path) => path.clone(),
                        None => format!("{package}.{}", span.text()),
                    },
                    Expr::RefDot { .. } | Expr::RefBrack { .. } => match data_path(expr, &aliases) {
                        Some(path) => path,
                        None => return,
                    },
                    _ => return,
                };
                // The longest prefix that is a rule, or all rules below it.
                let mut prefix = target.as_str();
                loop {
                    if places.contains_key(prefix) {
                        to.insert(prefix.to_owned());
                        return;
                    }
                    match prefix.rsplit_once('.') {
                        Some((shorter, _)) => prefix = shorter,
                        None => break,
                    }
                }
                if matches!(expr, Expr::RefBrack { .. }) {
                    let below = format!("{target}.");
                    to.extend(
                        places
                            .range(below.clone()..)
                            .take_while(|(path, _)| path.starts_with(&below))
                            .map(|(path, _)| path.clone()),
                    );
                }
            });
        }
    }
    find_circle(&edges, &places)
}

fn find_circle(
    edges: &BTreeMap<String, BTreeSet<String>>,
    places: &BTreeMap<String, Origin>,
) -> Result<usize, Problem> {
    // Without recursion: chains of rules may be as long as there are rules. Behind each that is done, how deep it goes.
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    let mut deepest = 0;
    for start in edges.keys() {
        let mut path: Vec<(&str, std::collections::btree_set::Iter<'_, String>)> = Vec::new();
        let mut on_path: BTreeSet<&str> = BTreeSet::new();
        if done.contains_key(start.as_str()) {
            continue;
        }
        let Some(next) = edges.get(start) else { continue };
        path.push((start, next.iter()));
        on_path.insert(start);
        while let Some((name, next)) = path.last_mut() {
            match next.next() {
                Some(to) if on_path.contains(to.as_str()) => {
                    let names: Vec<&str> =
                        path.iter().map(|(name, _)| *name).skip_while(|name| name != to).collect();
                    let at = places.get(to).cloned().unwrap_or(Origin { file: "".into(), line: 0 });
                    let message = format!(
                        "rule {} needs itself: {} -> {to}",
                        to.rsplit('.').next().unwrap_or(to),
                        names.join(" -> ")
                    );
                    return Err(Problem { at, message });
                }
                Some(to) if done.contains_key(to.as_str()) => {}
                Some(to) => {
                    if let Some(next) = edges.get(to) {
                        on_path.insert(to);
                        path.push((to, next.iter()));
                    }
                }
                None => {
                    let name = *name;
                    let below = edges.get(name).into_iter().flatten().filter_map(|to| done.get(to.as_str()));
                    let depth = below.max().map_or(1, |below| below + 1);
                    deepest = deepest.max(depth);
                    done.insert(name, depth);
                    on_path.remove(name);
                    path.pop();
                }
            }
        }
    }
    Ok(deepest)
}

fn rule_name(rule: &Rule) -> Option<&str> {
    match rule {
        Rule::Spec {
            head: RuleHead::Set { refr, .. } | RuleHead::Compr { refr, .. } | RuleHead::Func { refr, .. },
            ..
        }
        | Rule::Default { refr, .. } => root(refr),
    }
}

/// `data.a.b[…]` as `a.b`, as far as it is spelled out; an alias counts as what it stands for.
fn data_path(expr: &Expr, aliases: &BTreeMap<String, String>) -> Option<String> {
    let mut parts = Vec::new();
    let mut at = expr;
    loop {
        match at {
            Expr::RefDot { refr, field, .. } => {
                parts.push(field.0.text().to_owned());
                at = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                match index.as_ref() {
                    Expr::String { value, .. } => parts.push(value.as_string().ok()?.to_string()),
                    // What is behind an index that is not known belongs to what is in front of it.
                    _ => parts.clear(),
                }
                at = refr;
            }
            Expr::Var { span, .. } => {
                if span.text() != "data" {
                    parts.push(aliases.get(span.text())?.clone());
                }
                parts.reverse();
                return Some(parts.join("."));
            }
            _ => return None,
        }
    }
}

/// Names that a rule gives to values of its own, which hide rules of the same name.
fn locals(rule: &Rule) -> BTreeSet<String> {
    fn in_query(query: &Query, names: &mut BTreeSet<String>) {
        for statement in &query.stmts {
            match &statement.literal {
                Literal::SomeVars { vars, .. } => {
                    names.extend(vars.iter().map(|name| name.text().to_owned()))
                }
                Literal::SomeIn { key, value, collection, .. } => {
                    for expr in key.iter().chain([value]) {
                        in_pattern(expr, names);
                    }
                    in_expr(collection, names);
                }
                Literal::Every { key, value, domain, query, .. } => {
                    names.extend(key.iter().map(|name| name.text().to_owned()));
                    names.insert(value.text().to_owned());
                    in_expr(domain, names);
                    in_query(query, names);
                }
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => in_expr(expr, names),
            }
        }
    }
    fn in_pattern(expr: &Expr, names: &mut BTreeSet<String>) {
        match expr {
            Expr::Var { span, .. } => drop(names.insert(span.text().to_owned())),
            Expr::Array { items, .. } => items.iter().for_each(|item| in_pattern(item, names)),
            Expr::Object { fields, .. } => fields.iter().for_each(|(_, _, value)| in_pattern(value, names)),
            _ => {}
        }
    }
    fn in_expr(expr: &Expr, names: &mut BTreeSet<String>) {
        use regorus::unstable::AssignOp;
        match expr {
            Expr::AssignExpr { op: AssignOp::ColEq, lhs, rhs, .. } => {
                in_pattern(lhs, names);
                in_expr(rhs, names);
            }
            Expr::ArrayCompr { query, .. }
            | Expr::SetCompr { query, .. }
            | Expr::ObjectCompr { query, .. } => {
                in_query(query, names);
            }
            other => children(other, &mut |child| in_expr(child, names)),
        }
    }
    let mut names = BTreeSet::new();
    if let Rule::Spec { head, bodies, .. } = rule {
        if let RuleHead::Func { args, .. } = head {
            args.iter().for_each(|argument| in_pattern(argument, &mut names));
        }
        bodies.iter().for_each(|body| in_query(&body.query, &mut names));
    }
    names
}
