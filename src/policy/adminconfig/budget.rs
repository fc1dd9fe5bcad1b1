//! What one evaluation may spend: steps of the interpreter, time, and bytes that built-ins make.
//!
//! Invariant: regorus asks for the time before each step, and what it asks is this room, so that each step is counted; the
//! clock on the wall is looked at every few of them. A built-in whose answer may be larger than a constant pays for it
//! before it runs. Nothing is shared between threads.
//!
//! regorus takes another clock than the system's when it is built without its feature `std`. That clock answers "the end
//! of time" once something is spent up, which ends the evaluation at that step.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use regorus::unstable::{BUILTINS, Expr, Ref, Span};
use regorus::utils::limits::{TimeSource, set_time_source};
use regorus::{Engine, Source, Value};

use super::engine::Limits;

/// Bytes that a value takes beside what is in it.
const VALUE: u64 = 32;
/// Paths that `graph.reachable_paths` may look at.
const PATHS: u64 = 10_000;
/// Steps between two looks at the clock, which costs as much as a step does.
const STEPS_A_LOOK: u32 = 16;
/// What a built-in makes that is worth a look.
const BYTES_A_LOOK: u64 = 4 << 10;
/// Addresses of one `net.cidr_expand`, as a power of two.
const ADDRESSES: u32 = 16;

/// What is spent up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    Steps,
    Time,
    /// By this built-in.
    Bytes(&'static str),
}

/// What is left of an evaluation's means. Cells of their own, since a step looks at two of them.
struct Means {
    /// False: nobody evaluates, and nothing is counted.
    given: Cell<bool>,
    steps: Cell<u64>,
    /// Steps since the clock was looked at.
    unseen: Cell<u32>,
    bytes: Cell<u64>,
    end: Cell<Option<Instant>>,
    now_ns: Cell<i64>,
    spent: Cell<Option<Spent>>,
}

thread_local! {
    // regorus' clock has no argument that could say whose evaluation it is asked for; a thread evaluates one at a time.
    static MEANS: Means = const {
        Means {
            given: Cell::new(false),
            steps: Cell::new(0),
            unseen: Cell::new(0),
            bytes: Cell::new(0),
            end: Cell::new(None),
            now_ns: Cell::new(0),
            spent: Cell::new(None),
        }
    };
}

impl Means {
    fn spend(&self, what: Spent) {
        if self.spent.get().is_none() {
            self.spent.set(Some(what));
        }
    }

    fn look_at_the_clock(&self) {
        self.unseen.set(0);
        if self.end.get().is_some_and(|end| Instant::now() > end) {
            self.spend(Spent::Time);
        }
    }

    /// One more step. True: go on.
    fn step(&self) -> bool {
        if !self.given.get() {
            return true;
        }
        match self.steps.get().checked_sub(1) {
            None => self.spend(Spent::Steps),
            Some(left) => self.steps.set(left),
        }
        let unseen = self.unseen.get() + 1;
        self.unseen.set(unseen);
        if unseen >= STEPS_A_LOOK {
            self.look_at_the_clock();
        }
        self.spent.get().is_none()
    }

    /// Takes what a built-in is about to make. True: it may.
    fn pay(&self, name: &'static str, bytes: u64) -> bool {
        if !self.given.get() {
            return true;
        }
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => self.bytes.set(left),
            None => self.spend(Spent::Bytes(name)),
        }
        // A step that makes much takes long.
        if bytes >= BYTES_A_LOOK {
            self.look_at_the_clock();
        }
        self.spent.get().is_none()
    }
}

/// Gives this thread the means of one evaluation, until it is dropped.
pub(super) struct Allowance(());

impl Allowance {
    pub fn new(limits: &Limits, now_ns: i64) -> Self {
        static CLOCK: Once = Once::new();
        CLOCK.call_once(|| {
            // Fails only when somebody else has set one; then nothing would be counted, which a test would show.
            let _ = set_time_source(&Counter);
        });
        MEANS.with(|means| {
            means.given.set(true);
            means.steps.set(limits.steps);
            means.unseen.set(0);
            means.bytes.set(limits.bytes);
            // None: further away than the clock goes.
            means.end.set(Instant::now().checked_add(limits.deadline));
            means.now_ns.set(now_ns);
            means.spent.set(None);
        });
        Self(())
    }

    /// What is spent up, if anything is.
    pub fn spent(&self) -> Option<Spent> {
        MEANS.with(|means| {
            means.look_at_the_clock();
            means.spent.get()
        })
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        MEANS.with(|means| means.given.set(false));
    }
}

fn pay(name: &'static str, bytes: u64) -> bool {
    MEANS.with(|means| means.pay(name, bytes))
}

fn left() -> u64 {
    MEANS.with(|means| if means.given.get() { means.bytes.get() } else { u64::MAX })
}

/// The clock that regorus asks.
struct Counter;

impl TimeSource for Counter {
    fn now(&self) -> Option<Duration> {
        // The end of an evaluation's time is looked at here, so regorus needs no other.
        Some(if MEANS.with(Means::step) { Duration::ZERO } else { Duration::MAX })
    }
}

/// Bytes of a value as a tree, however much of it is shared; more than `most`: that is enough to know.
fn size(value: &Value, most: u64) -> u64 {
    let mut sum = VALUE;
    match value {
        Value::Null | Value::Bool(_) | Value::Undefined => {}
        Value::Number(number) => {
            if number.as_i64().is_none() {
                sum = sum.saturating_add(value.to_string().len() as u64);
            }
        }
        Value::String(text) => sum = sum.saturating_add(text.len() as u64),
        Value::Array(items) => {
            for item in items.iter() {
                sum = sum.saturating_add(size(item, most.saturating_sub(sum)));
                if sum > most {
                    break;
                }
            }
        }
        Value::Set(items) => {
            for item in items.iter() {
                sum = sum.saturating_add(size(item, most.saturating_sub(sum)));
                if sum > most {
                    break;
                }
            }
        }
        Value::Object(fields) => {
            for (key, item) in fields.iter() {
                sum = sum.saturating_add(size(key, most.saturating_sub(sum)));
                sum = sum.saturating_add(size(item, most.saturating_sub(sum)));
                if sum > most {
                    break;
                }
            }
        }
    }
    sum
}

fn all(arguments: &[Value]) -> u64 {
    let most = left();
    arguments.iter().fold(0, |sum: u64, value| sum.saturating_add(size(value, most.saturating_sub(sum))))
}

fn text(arguments: &[Value], index: usize) -> &str {
    match arguments.get(index) {
        Some(Value::String(text)) => text,
        _ => "",
    }
}

fn integer(arguments: &[Value], index: usize) -> i64 {
    match arguments.get(index) {
        Some(Value::Number(number)) => number.as_i64().unwrap_or(i64::MAX),
        _ => 0,
    }
}

/// A text in which each `old` becomes `new`.
fn replaced(length: u64, old: u64, new: u64) -> u64 {
    let places = length.checked_div(old).unwrap_or(length).saturating_add(1);
    length.saturating_add(places.saturating_mul(new))
}

/// Numbers that a format names, such as widths.
fn widths(format: &str) -> u64 {
    format
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse::<u64>().unwrap_or(u64::MAX))
        .fold(0, u64::saturating_add)
}

/// Paths from a node of a graph; more than [`PATHS`]: that is enough to know.
fn paths<'v>(graph: &'v Value, node: &'v Value, on: &mut Vec<&'v Value>, seen: &mut u64) {
    *seen += 1;
    if *seen > PATHS || on.len() as u64 > PATHS || on.contains(&node) {
        return;
    }
    on.push(node);
    let next = graph.as_object().ok().and_then(|graph| graph.get(node));
    match next {
        Some(Value::Array(items)) => items.iter().for_each(|item| paths(graph, item, on, seen)),
        Some(Value::Set(items)) => items.iter().for_each(|item| paths(graph, item, on, seen)),
        _ => {}
    }
    on.pop();
}

fn path_bytes(arguments: &[Value]) -> u64 {
    let (Some(graph), Some(from)) = (arguments.first(), arguments.get(1)) else { return 0 };
    let (mut on, mut seen) = (Vec::new(), 0);
    match from {
        Value::Array(items) => items.iter().for_each(|item| paths(graph, item, &mut on, &mut seen)),
        Value::Set(items) => items.iter().for_each(|item| paths(graph, item, &mut on, &mut seen)),
        _ => {}
    }
    if seen > PATHS { u64::MAX } else { seen.saturating_mul(all(arguments)) }
}

/// What a call makes at most, in bytes, from its arguments.
type Price = fn(&[Value]) -> u64;

/// The built-ins that make, copy or walk something that may be large. Others answer with a truth or a number, or with a
/// part of what they were given.
const PRICED: &[(&str, Price)] = &[
    ("array.concat", |a| all(a)),
    ("array.reverse", |a| all(a)),
    ("array.slice", |a| all(a)),
    ("base64.decode", |a| all(a)),
    ("base64.encode", |a| all(a).saturating_mul(2)),
    ("base64url.decode", |a| all(a)),
    ("base64url.encode", |a| all(a).saturating_mul(2)),
    ("base64url.encode_no_pad", |a| all(a).saturating_mul(2)),
    ("bits.lsh", |a| all(a).saturating_add(integer(a, 1).unsigned_abs() / 8)),
    ("concat", |a| {
        let between = text(a, 0).len() as u64;
        let parts = match a.get(1) {
            Some(Value::Array(items)) => items.len(),
            Some(Value::Set(items)) => items.len(),
            _ => 0,
        };
        all(a).saturating_add(between.saturating_mul(parts as u64))
    }),
    ("format_int", |a| all(a).saturating_mul(4)),
    ("glob.quote_meta", |a| all(a).saturating_mul(2)),
    ("graph.reachable", |a| all(a)),
    ("graph.reachable_paths", path_bytes),
    ("hex.decode", |a| all(a)),
    ("hex.encode", |a| all(a).saturating_mul(2)),
    ("indexof_n", |a| all(a).saturating_mul(VALUE)),
    ("json.filter", |a| all(a)),
    ("json.marshal", |a| all(a).saturating_mul(6)),
    ("json.marshal_with_options", |a| all(a).saturating_mul(64)),
    ("json.remove", |a| all(a)),
    ("json.unmarshal", |a| all(a).saturating_mul(VALUE / 2)),
    ("lower", |a| all(a).saturating_mul(2)),
    ("numbers.range", |a| integer(a, 0).abs_diff(integer(a, 1)).saturating_mul(VALUE)),
    ("numbers.range_step", |a| integer(a, 0).abs_diff(integer(a, 1)).saturating_mul(VALUE)),
    ("object.filter", |a| all(a)),
    ("object.keys", |a| all(a)),
    ("object.remove", |a| all(a)),
    ("object.subset", |a| all(a)),
    ("object.union", |a| all(a)),
    ("object.union_n", |a| all(a).saturating_mul(2)),
    // Each factor makes the product longer, and all of it is gone through again.
    ("product", |a| all(a).saturating_mul(all(a) / VALUE)),
    ("regex.find_n", |a| all(a).saturating_mul(VALUE)),
    ("regex.replace", |a| {
        let (length, new) = (text(a, 0).len() as u64, text(a, 2).len() as u64);
        replaced(length, 0, new).saturating_add(length.saturating_mul(new))
    }),
    ("regex.split", |a| all(a).saturating_mul(VALUE)),
    ("replace", |a| replaced(text(a, 0).len() as u64, text(a, 1).len() as u64, text(a, 2).len() as u64)),
    ("sort", |a| all(a)),
    ("split", |a| all(a).saturating_mul(VALUE)),
    ("sprintf", |a| {
        let format = text(a, 0);
        let verbs = format.matches('%').count() as u64;
        let arguments = all(a.get(1..).unwrap_or_default());
        widths(format)
            .saturating_add(format.len() as u64)
            .saturating_add(verbs.saturating_mul(arguments).saturating_mul(4))
    }),
    ("strings.replace_n", |a| {
        let Some(Ok(patterns)) = a.first().map(Value::as_object) else { return 0 };
        patterns.iter().fold(text(a, 1).len() as u64, |length, (old, new)| match (old, new) {
            (Value::String(old), Value::String(new)) => replaced(length, old.len() as u64, new.len() as u64),
            _ => length,
        })
    }),
    ("strings.reverse", |a| all(a)),
    ("substring", |a| all(a)),
    ("trim", |a| all(a)),
    ("trim_left", |a| all(a)),
    ("trim_prefix", |a| all(a)),
    ("trim_right", |a| all(a)),
    ("trim_space", |a| all(a)),
    ("trim_suffix", |a| all(a)),
    ("upper", |a| all(a).saturating_mul(2)),
    ("walk", |a| all(a).saturating_mul(4)),
];

/// Has an engine's built-ins pay, and gives it the clock of the evaluation and what it lacks.
pub(super) fn install(engine: &mut Engine) -> anyhow::Result<()> {
    let source = Source::from_contents("built-in".to_owned(), String::new())?;
    let span = Span { source, line: 1, col: 1, start: 0, end: 0 };
    // Calls are only looked at for where they stand, and messages of this place are dropped.
    let place = Ref::new(Expr::Null { span: span.clone(), value: Value::Null, eidx: 0 });
    for (name, price) in PRICED {
        let Some((run, arguments)) = BUILTINS.get(name).copied() else { continue };
        let (span, places) = (span.clone(), vec![place.clone(); usize::from(arguments)]);
        let call = move |given: Vec<Value>| {
            if !pay(name, price(&given)) {
                anyhow::bail!("{name} makes too much");
            }
            // As OPA: what fails is undefined.
            Ok(run(&span, &places, &given, false).unwrap_or(Value::Undefined))
        };
        engine.add_extension((*name).to_owned(), arguments, Box::new(call))?;
    }
    // An extension is found before the built-in of the same name.
    engine.add_extension("time.now_ns".to_owned(), 0, Box::new(|_| Ok(clock())))?;
    for (name, arguments) in [("net.cidr_is_valid", 1), ("net.cidr_contains", 2), ("net.cidr_expand", 1)] {
        let call = move |given: Vec<Value>| match name {
            "net.cidr_is_valid" => Ok(match given.first() {
                Some(Value::String(text)) => Value::from(network(text).is_some()),
                _ => Value::Undefined,
            }),
            "net.cidr_contains" => Ok(contains(text(&given, 0), text(&given, 1)).unwrap_or(Value::Undefined)),
            _ => expand(text(&given, 0)),
        };
        engine.add_extension(name.to_owned(), arguments, Box::new(call))?;
    }
    Ok(())
}

fn clock() -> Value {
    MEANS.with(|means| match means.given.get() {
        true => Value::from(means.now_ns.get()),
        false => Value::Undefined,
    })
}

/// An address as a number and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

/// The first address of a network, how many bits it has, and how many of them are free.
fn network(text: &str) -> Option<(u128, u32, u32)> {
    let (address, length) = text.split_once('/')?;
    let (address, width) = bits(address.parse().ok()?);
    let length: u32 = length.parse().ok()?;
    let free = width.checked_sub(length)?;
    Some((address.checked_shr(free).unwrap_or(0).checked_shl(free).unwrap_or(0), width, free))
}

fn contains(outer: &str, inner: &str) -> Option<Value> {
    let (from, width, free) = network(outer)?;
    let (first, inner_width, inner_free) = match inner.contains('/') {
        true => network(inner)?,
        false => {
            let (address, width) = bits(inner.parse().ok()?);
            (address, width, 0)
        }
    };
    let same = |address: u128| address.checked_shr(free).unwrap_or(0);
    Some(Value::from(width == inner_width && inner_free <= free && same(from) == same(first)))
}

fn expand(network_text: &str) -> anyhow::Result<Value> {
    let Some((from, width, free)) = network(network_text) else { return Ok(Value::Undefined) };
    if free > ADDRESSES || !pay("net.cidr_expand", VALUE.saturating_mul(2) << free) {
        pay("net.cidr_expand", u64::MAX);
        anyhow::bail!("net.cidr_expand makes too much");
    }
    let texts = (0..1u128 << free).map(|one| from | one).map(|address| match width {
        32 => std::net::Ipv4Addr::from(u32::try_from(address).unwrap_or(u32::MAX)).to_string(),
        _ => std::net::Ipv6Addr::from(address).to_string(),
    });
    let mut addresses = Value::new_set();
    let set = addresses.as_set_mut()?;
    for text in texts {
        set.insert(Value::String(Arc::from(text)));
    }
    Ok(addresses)
}
