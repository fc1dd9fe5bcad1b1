//! A text in, for each statement of it a permit or a refusal out.
//!
//! Invariant: a [`Permit`] is made in this room only, and only for text that was judged here; what
//! is not known to be harmless is refused. Nothing here performs I/O.

use std::cell::{Cell, RefCell};

use bytes::Bytes;

use crate::ids::{SourceName, StatementClass};
use crate::sql::Limits;
use crate::sql::catalogue::Catalogue;
use crate::sql::front;
use crate::sql::lexer::{self, Kind, LexError, Problem, Token};
use crate::sql::parse::{self, ParseError, Tree};
use crate::sql::statement::{self, Copied, Query, SetValue, Statement, Transaction};

mod cache;
mod found;
mod function_call;
mod met;
mod names;
mod permit;
mod refusal;
pub mod settings;
mod shape;
mod types;
mod verdict;
mod walk;

pub use cache::{Kept, Last, VerdictCache};
pub use found::{Findings, Found, FoundKind, found};
pub use function_call::{FunctionPermit, judge_function_call};
pub use permit::Permit;
pub use refusal::Refusal;
pub use verdict::{Admitted, Effect, Form, Mode, Step, Verdict};

use met::Met;
use names::Names;
use walk::Walk;

/// All that a verdict depends on beside the text.
#[derive(Clone, Copy, Debug)]
pub struct Context<'c> {
    pub catalogue: &'c Catalogue,
    pub mode: Mode,
    pub limits: &'c Limits,
    /// Named in refusals.
    pub source: &'c SourceName,
}

/// Judges a text as it came in a Query or Parse message.
pub fn judge(text: &[u8], ctx: &Context<'_>) -> Verdict {
    match judge_all(text, ctx) {
        Ok(verdict) => verdict,
        // PostgreSQL parses the whole text before it runs any of it.
        Err(refusal) => {
            Verdict { form: Form::Apart, steps: vec![Step::Refuse(refusal.for_source(ctx.source))] }
        }
    }
}

/// Judges the parameter types of a Parse message, a count and OIDs as they lie: a Bind makes values of
/// these, which runs what their input functions and CHECK constraints run.
///
/// # Errors
/// The refusal, of class `function`.
pub fn judge_parameter_types(types: &[u8], ctx: &Context<'_>) -> Result<(), Refusal> {
    if ctx.mode == Mode::ReadWrite {
        return Ok(());
    }
    for oid in types.get(2..).unwrap_or_default().chunks_exact(4) {
        let oid = oid.iter().fold(0, |oid, byte| oid << 8 | u32::from(*byte));
        let met = Met::default();
        let names = Names { catalogue: ctx.catalogue, met: &met, notes: None, judging: RefCell::default() };
        let judged = match ctx.catalogue.type_name(oid) {
            Some(None) => Ok(()),
            Some(Some((schema, name))) => names.r#type(&[schema, name], None),
            None => names.r#type(&[&oid.to_string()], None),
        };
        // The text was judged, or will be, as one without values of it.
        let judged = judged.and_then(|()| match met.carries.get() {
            0 => Ok(()),
            _ => Err(Refusal::denied("parameter type", &oid.to_string())
                .because("Some operator over values of it is not harmless.")
                .hint("Write a cast to it in the statement.")),
        });
        judged.map_err(|refusal| refusal.for_source(ctx.source))?;
    }
    Ok(())
}

/// Does this refusal stop the statements before it, too?
fn is_of_the_whole_text(refusal: &Refusal) -> bool {
    use crate::ids::RefusalClass::{
        Encoding, Function, Limit, Mask, Mode, Protocol, Setting, Unverified, Write,
    };
    match refusal.class {
        Unverified | Limit => true,
        Write | Mode | Setting | Function | Mask | Encoding | Protocol => false,
    }
}

fn judge_all(text: &[u8], ctx: &Context<'_>) -> Result<Verdict, Refusal> {
    let text = lexer::utf8(text).map_err(of_lexer)?;
    let tokens = lexer::tokens(text, ctx.limits).map_err(of_lexer)?;
    let mut steps = Vec::new();
    let mut refused = false;
    for piece in pieces(text, &tokens) {
        let outcome = parse::with_stack(piece.tokens, || judge_one(piece.tokens, ctx));
        match outcome {
            Err(refusal) if is_of_the_whole_text(&refusal) => return Err(refusal),
            _ if refused => {}
            Err(refusal) => {
                refused = true;
                steps.push(Step::Refuse(refusal.for_source(ctx.source)));
            }
            Ok((class, effect, sets)) => {
                let bytes = text.get(piece.start..piece.end).unwrap_or_default();
                let permit = Permit::new(Bytes::copy_from_slice(bytes.as_bytes()));
                steps.push(Step::Admit(Admitted { permit, class, effect, sets, offset: piece.start }));
            }
        }
    }
    Ok(Verdict { form: form(text), steps })
}

/// No `;` but at the very end, looked for in the bytes: so it holds however anybody lexes them.
fn form(text: &str) -> Form {
    let end = text.trim_end_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let end = end.strip_suffix(';').unwrap_or(end);
    if memchr::memchr(b';', end.as_bytes()).is_none() { Form::Whole } else { Form::Apart }
}

/// One statement of a text: its tokens and the bytes between its `;`s, without white space around.
struct Piece<'t, 'a> {
    tokens: &'t [Token<'a>],
    start: usize,
    end: usize,
}

fn pieces<'t, 'a>(text: &'a str, tokens: &'t [Token<'a>]) -> Vec<Piece<'t, 'a>> {
    let mut pieces = Vec::new();
    let mut depth = 0usize;
    let (mut first, mut start) = (0, 0);
    let mut close = |first: usize, last: usize, start: usize, end: usize| {
        let tokens = tokens.get(first..last).unwrap_or_default();
        let whole = text.get(start..end).unwrap_or_default();
        let space = |letter: char| matches!(letter, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
        let left = whole.len() - whole.trim_start_matches(space).len();
        let right = whole.len() - whole.trim_end_matches(space).len();
        if !tokens.is_empty() {
            pieces.push(Piece { tokens, start: start + left, end: end - right });
        }
    };
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::LeftParen => depth += 1,
            Kind::RightParen => depth = depth.saturating_sub(1),
            Kind::Semicolon if depth == 0 => {
                close(first, at, start, token.start);
                first = at + 1;
                start = token.end;
            }
            _ => {}
        }
    }
    close(first, tokens.len(), start, text.len());
    pieces
}

fn of_lexer(error: LexError) -> Refusal {
    match error.problem {
        Problem::Encoding => Refusal::bytes(),
        Problem::Limit(what) => Refusal::too_long(what),
        Problem::Syntax(what) => Refusal::unverified(what),
    }
    .at(Some(error.offset))
}

fn of_parser(error: ParseError) -> Refusal {
    match error {
        ParseError::Syntax { message, offset } => Refusal::unverified(&message).at(offset),
        ParseError::TooDeep => Refusal::too_complex("statement is nested too deeply"),
    }
}

type Outcome = Result<(StatementClass, Effect), Refusal>;

/// What a statement does, and whether it calls `set_config`.
fn judge_one(tokens: &[Token<'_>], ctx: &Context<'_>) -> Result<(StatementClass, Effect, bool), Refusal> {
    let statement = match statement::parse(tokens) {
        Ok(statement) => statement,
        Err(error) => return Err(of_parser(error)),
    };
    let met = Met::default();
    let judge = Judge {
        walk: Walk {
            names: Names { catalogue: ctx.catalogue, met: &met, notes: None, judging: RefCell::default() },
            set_config: Cell::new(0),
            with: Cell::new(false),
        },
        mode: ctx.mode,
    };
    let outcome = judge.statement(&statement).and_then(|admitted| met.judge(tokens).map(|()| admitted));
    let (class, effect) = match (ctx.mode, outcome) {
        (Mode::ReadWrite, Err(refusal)) => judge.for_writer(&statement, refusal)?,
        (_, outcome) => outcome?,
    };
    Ok((class, effect, judge.walk.set_config.get() > 0))
}

struct Judge<'c> {
    walk: Walk<'c>,
    mode: Mode,
}

const READ: StatementClass = StatementClass::Read;
const SESSION: StatementClass = StatementClass::Session;
const TRANSACTION: StatementClass = StatementClass::Transaction;

impl Judge<'_> {
    fn statement(&self, statement: &Statement<'_, '_>) -> Outcome {
        let none = |class| Ok((class, Effect::None));
        match statement {
            Statement::Query(query) => {
                self.query(query)?;
                none(READ)
            }
            Statement::Declare { name, hold, query } => {
                self.query(query)?;
                Ok((READ, Effect::Declare { name: name.as_str().into(), hold: *hold }))
            }
            Statement::Fetch { name } => Ok((READ, Effect::Fetch { name: name.as_str().into() })),
            Statement::Close { name } => Ok((READ, Effect::Close { name: name.as_deref().map(Box::from) })),
            Statement::Explain { analyze, inner } => self.explain(*analyze, inner),
            Statement::Prepare { name, types, inner } => {
                if let Some(types) = types {
                    self.tree(types)?;
                }
                self.statement(inner)?;
                Ok((SESSION, Effect::Prepare { name: name.as_str().into() }))
            }
            Statement::Execute { name, arguments } => {
                if let Some(arguments) = arguments {
                    self.query(arguments)?;
                }
                Ok((READ, Effect::Execute { name: name.as_str().into() }))
            }
            Statement::Deallocate { name: None } => Ok((SESSION, Effect::DeallocateAll)),
            Statement::Deallocate { name: Some(name) } => {
                Ok((SESSION, Effect::Deallocate { name: name.as_str().into() }))
            }
            Statement::CopyOut(Copied::Query(query)) => {
                self.query(query)?;
                none(READ)
            }
            Statement::CopyOut(Copied::Table { name, offset }) => {
                let name: Vec<&str> = name.iter().map(String::as_str).collect();
                self.walk.table(&name, Some(*offset))?;
                none(READ)
            }
            Statement::Show | Statement::LockAccessShare => none(READ),
            Statement::Transaction(Transaction::Modes(modes)) => match modes.read_write {
                Some(at) => Err(Refusal::mode().at(Some(at))),
                None => none(TRANSACTION),
            },
            Statement::Transaction(Transaction::Other) => none(TRANSACTION),
            Statement::SetCharacteristics { modes } => match modes.read_write {
                Some(at) => Err(Refusal::mode().at(Some(at))),
                None => none(SESSION),
            },
            Statement::Set { local, name, value, offset } => self.set(*local, name, value, *offset),
            Statement::Reset { name, offset } => {
                settings::judge_reset(name).map_err(|refusal| refusal.at(Some(*offset)))?;
                none(SESSION)
            }
            Statement::Role { parameter, offset } => Err(settings::role(parameter).at(Some(*offset))),
            Statement::Session { deallocates: true } => Ok((SESSION, Effect::DeallocateAll)),
            Statement::Session { deallocates: false } => none(SESSION),
            Statement::Write { tag, offset } => Err(Refusal::write(tag).at(Some(*offset))),
        }
    }

    /// EXPLAIN plans, and with ANALYZE runs: either way only what may run itself, and no
    /// `CREATE TABLE … AS`, which EXPLAIN ANALYZE carries out in a read-only transaction.
    fn explain(&self, analyze: bool, inner: &Statement<'_, '_>) -> Outcome {
        match inner {
            Statement::Query(_) | Statement::Execute { .. } => self.statement(inner),
            Statement::Declare { query, .. } if !analyze => {
                self.query(query)?;
                Ok((READ, Effect::None))
            }
            Statement::Write { tag, offset } => {
                // With ANALYZE it would run, and PostgreSQL names what runs.
                let tag = if analyze { tag.to_string() } else { format!("EXPLAIN {tag}") };
                Err(Refusal::write(&tag).at(Some(*offset)))
            }
            _ => Err(Refusal::unverified("EXPLAIN of this statement is not supported")),
        }
    }

    fn query(&self, query: &Query<'_, '_>) -> Result<(), Refusal> {
        let before = self.walk.set_config.get();
        self.walk.with.set(query.tokens.iter().any(|token| token.is("with")));
        let calls = self.walk.names.tokens(query.tokens)?;
        self.tree(&query.tree)?;
        // What the tokens show and the walk did not meet, the tree hides.
        if self.walk.names.notes.is_none() && self.walk.set_config.get() - before != calls {
            return Err(Refusal::function("set_config"));
        }
        Ok(())
    }

    fn tree(&self, tree: &Tree) -> Result<(), Refusal> {
        for front::Name { parts, offset } in &tree.beside.types {
            let name: Vec<&str> = parts.iter().map(String::as_str).collect();
            self.walk.names.r#type(&name, Some(*offset))?;
        }
        for front::Name { parts, offset } in &tree.beside.functions {
            let name: Vec<&str> = parts.iter().map(String::as_str).collect();
            self.walk.names.function(&name, false, true, Some(*offset))?;
        }
        self.walk.query(&tree.query)
    }

    fn set(&self, local: bool, name: &str, value: &SetValue, offset: usize) -> Outcome {
        let at = |refusal: Refusal| refusal.at(Some(offset));
        let SetValue::Text(value) = value else {
            // The session's own value again; the name is judged as for a value that changes nothing.
            settings::judge_reset(name).map_err(at)?;
            return Ok((SESSION, Effect::None));
        };
        let setting = settings::judge_setting(name, value).map_err(at)?;
        settings::keeps_encoding(&setting, value).map_err(at)?;
        if setting.name == "application_name" && !local {
            return Ok((SESSION, Effect::ApplicationName { value: setting.value.into() }));
        }
        Ok((SESSION, Effect::None))
    }

    /// A writer may do what would be refused as a write, but not undo what the gateway stands on.
    fn for_writer(&self, statement: &Statement<'_, '_>, refusal: Refusal) -> Outcome {
        use crate::ids::RefusalClass::{
            Encoding, Function, Limit, Mask, Mode, Protocol, Setting, Unverified, Write,
        };
        debug_assert_eq!(self.mode, self::Mode::ReadWrite);
        let written = |effect| Ok((StatementClass::Write, effect));
        match refusal.class {
            Write | Mode | Function => {
                // `set_config` of a pinned setting is refused as a setting; in another shape, as a function.
                if refusal.message.ends_with(" set_config") {
                    return Err(refusal);
                }
                written(match statement {
                    Statement::Prepare { name, .. } => Effect::Prepare { name: name.as_str().into() },
                    Statement::Execute { name, .. } => Effect::Execute { name: name.as_str().into() },
                    Statement::Declare { name, hold, .. } => {
                        Effect::Declare { name: name.as_str().into(), hold: *hold }
                    }
                    Statement::Explain { inner, .. } => match &**inner {
                        Statement::Execute { name, .. } => Effect::Execute { name: name.as_str().into() },
                        _ => Effect::None,
                    },
                    _ => Effect::None,
                })
            }
            Setting => match statement {
                Statement::Set { name, value: SetValue::Text(value), .. } => {
                    settings::judge_writer_setting(name, value)?;
                    written(Effect::None)
                }
                _ => Err(refusal),
            },
            Unverified | Limit | Mask | Encoding | Protocol => Err(refusal),
        }
    }
}
