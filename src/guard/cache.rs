//! Verdicts by everything they depend on.
//!
//! Invariant: a verdict is found only under the very text, source, catalogue generation, mode and limits
//! that it was made for; an old one is never found again and ages out.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::form;
use super::shape::{Template, shape};
use crate::guard::{Admitted, Context, Effect, Mode, Permit, Step, Verdict, judge};
use crate::ids::{SourceName, StatementClass};
use crate::sql::Limits;

/// Texts longer than this are judged each time: they are rarely sent twice.
const LONGEST_TEXT: usize = 64 << 10;

/// Verdicts, shared by all sessions.
///
/// quick_cache keeps what is used often in spite of scans (S3-FIFO), is sharded, weighs its entries
/// and finds a key by borrowed parts of it, so that a hit allocates nothing.
pub struct VerdictCache {
    cache: Cache<Key, Arc<Verdict>, Weight>,
    /// By the shape of a query in place of its text; only what was admitted as a read without any effect.
    shapes: Cache<Key, Arc<Verdict>, Weight>,
}

/// What one caller was told last, of a text that is often sent again with other numbers.
pub struct Last {
    template: Template,
    verdict: Arc<Verdict>,
    source: SourceName,
    generation: u64,
    mode: Mode,
    limits: Limits,
}

/// Whether the cache has grown by a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Yes,
    No,
}

impl Last {
    /// The verdict on `text`, where that is the last one but for numbers.
    fn verdict(&self, text: &[u8], ctx: &Context<'_>, generation: u64) -> Option<Arc<Verdict>> {
        let Context { catalogue: _, mode, limits, source } = *ctx;
        let same = generation == self.generation
            && mode == self.mode
            && *limits == self.limits
            && *source == self.source
            && text.len() <= limits.bytes;
        let piece = self.template.matches(text).filter(|_| same)?;
        let [Step::Admit(admitted)] = self.verdict.steps.as_slice() else { return None };
        let permit = Permit::new(Bytes::copy_from_slice(text.get(piece.clone())?));
        let admitted = Admitted { permit, offset: piece.start, ..admitted.clone() };
        // Digits do not make another form of it.
        Some(Arc::new(Verdict { form: self.verdict.form, steps: vec![Step::Admit(admitted)] }))
    }
}

/// What an entry takes beside what is in it: the cache's own place for it, and what an allocator adds to four pieces.
const ENTRY: usize = 320;

/// The part of the bytes that shapes get: there are few of them.
const SHAPES: usize = 8;

#[derive(Clone, PartialEq, Eq)]
struct Key {
    text: Box<[u8]>,
    source: SourceName,
    generation: u64,
    mode: Mode,
    limits: Limits,
}

/// A [`Key`], borrowed.
struct Lookup<'k> {
    text: &'k [u8],
    source: &'k SourceName,
    generation: u64,
    mode: Mode,
    limits: &'k Limits,
}

impl<'k> Lookup<'k> {
    fn new(text: &'k [u8], ctx: &Context<'k>, generation: u64) -> Self {
        // Named one by one: what a verdict comes to depend on belongs into the key.
        let Context { catalogue: _, mode, limits, source } = *ctx;
        Self { text, source, generation, mode, limits }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Lookup {
            text: &self.text,
            source: &self.source,
            generation: self.generation,
            mode: self.mode,
            limits: &self.limits,
        }
        .hash(state);
    }
}

impl Hash for Lookup<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
        self.source.hash(state);
        self.generation.hash(state);
        self.mode.hash(state);
        // Seldom different: compared, and left out of the hash.
    }
}

impl Equivalent<Key> for Lookup<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.text == *key.text
            && self.generation == key.generation
            && self.mode == key.mode
            && *self.limits == key.limits
            && self.source == &key.source
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<Verdict>> for Weight {
    fn weight(&self, key: &Key, verdict: &Arc<Verdict>) -> u64 {
        let held: usize = verdict
            .steps
            .iter()
            .map(|step| match step {
                Step::Admit(admitted) => admitted.permit.text().len(),
                Step::Refuse(refusal) => 256 + refusal.message.len(),
            })
            .sum();
        let steps = size_of::<Step>() * verdict.steps.len().max(1);
        let entry = size_of::<Key>() + size_of::<Verdict>() + ENTRY;
        (entry + key.text.len() + steps + held) as u64
    }
}

impl VerdictCache {
    /// A cache of at most `bytes`, reckoned with what the entries hold.
    pub fn new(bytes: usize) -> Self {
        let items = (bytes / 1024).max(16);
        let (shapes, texts) = (bytes / SHAPES, bytes - bytes / SHAPES);
        Self {
            cache: Cache::with_weighter(items, texts as u64, Weight),
            shapes: Cache::with_weighter((items / SHAPES).max(16), shapes as u64, Weight),
        }
    }

    /// The verdict on `text`, if it was given before; `generation` is that of the context's catalogue.
    pub fn known(&self, text: &[u8], ctx: &Context<'_>, generation: u64) -> Option<Arc<Verdict>> {
        self.cache.get(&Lookup::new(text, ctx, generation))
    }

    /// The same, or by what the same caller was told last, which often is the same text but for a number.
    pub fn known_after(
        &self,
        last: Option<&Last>,
        text: &[u8],
        ctx: &Context<'_>,
        generation: u64,
    ) -> Option<Arc<Verdict>> {
        last.and_then(|last| last.verdict(text, ctx, generation))
            .or_else(|| self.known(text, ctx, generation))
    }

    /// The verdict on `text`.
    pub fn judge(&self, text: &[u8], ctx: &Context<'_>, generation: u64) -> Arc<Verdict> {
        let known = self.known(text, ctx, generation);
        known.unwrap_or_else(|| self.judge_new(text, ctx, generation, &mut None).0)
    }

    /// The verdict on a `text` that is not known, and whether it was kept; `last` becomes what the caller hands to
    /// [`Self::known_after`] next.
    pub fn judge_new(
        &self,
        text: &[u8],
        ctx: &Context<'_>,
        generation: u64,
        last: &mut Option<Box<Last>>,
    ) -> (Arc<Verdict>, Kept) {
        if text.len() > LONGEST_TEXT {
            return (Arc::new(judge(text, ctx)), Kept::No);
        }
        let key = |text: &[u8]| Key {
            text: text.into(),
            source: ctx.source.clone(),
            generation,
            mode: ctx.mode,
            limits: *ctx.limits,
        };
        let shape = shape(text, ctx.limits);
        if let Some(shape) = &shape
            && let Some(first) = self.known_shape(&shape.bytes, ctx, generation)
            && let [Step::Admit(admitted)] = first.steps.as_slice()
            && let Ok(whole) = std::str::from_utf8(text)
            && let Some(piece) = text.get(shape.piece.clone())
        {
            let permit = Permit::new(Bytes::copy_from_slice(piece));
            let admitted = Admitted { permit, offset: shape.piece.start, ..admitted.clone() };
            // Not kept: the next one has other numbers again.
            let verdict = Arc::new(Verdict { form: form(whole), steps: vec![Step::Admit(admitted)] });
            *last = Template::new(text, shape).map(|template| {
                let Context { catalogue: _, mode, limits, source } = *ctx;
                let (verdict, source, limits) = (Arc::clone(&verdict), source.clone(), *limits);
                Box::new(Last { template, verdict, source, generation, mode, limits })
            });
            return (verdict, Kept::No);
        }
        let verdict = Arc::new(judge(text, ctx));
        self.cache.insert(key(text), Arc::clone(&verdict));
        if let Some(shape) = shape
            && let [Step::Admit(Admitted { class: StatementClass::Read, effect: Effect::None, .. })] =
                verdict.steps.as_slice()
        {
            self.shapes.insert(key(&shape.bytes), Arc::clone(&verdict));
        }
        (verdict, Kept::Yes)
    }

    fn known_shape(&self, shape: &[u8], ctx: &Context<'_>, generation: u64) -> Option<Arc<Verdict>> {
        self.shapes.get(&Lookup::new(shape, ctx, generation))
    }

    /// Bytes that the verdicts held now weigh.
    pub fn bytes(&self) -> u64 {
        self.cache.weight() + self.shapes.weight()
    }

    /// Verdicts held now.
    pub fn len(&self) -> usize {
        self.cache.len() + self.shapes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cache.is_empty() && self.shapes.is_empty()
    }
}

impl std::fmt::Debug for VerdictCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerdictCache").field("verdicts", &self.cache.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::catalogue::Catalogue;

    #[test]
    fn a_verdict_is_found_under_all_that_it_depends_on() {
        let (old, new) = (Catalogue::default(), Catalogue::stock(15).unwrap());
        let (one, other, limits) = (SourceName::new("one"), SourceName::new("other"), Limits::default());
        let ctx = Context { catalogue: &old, mode: Mode::ReadOnly, limits: &limits, source: &one };
        let cache = VerdictCache::new(1 << 20);
        let sql = b"SELECT lower('a')";
        let first = cache.judge(sql, &ctx, 1);
        assert!(matches!(first.steps.as_slice(), [Step::Refuse(_)]));
        assert!(Arc::ptr_eq(&first, &cache.judge(sql, &ctx, 1)));
        // The next generation knows the function; the old verdict is not found.
        let ctx = Context { catalogue: &new, ..ctx };
        let second = cache.judge(sql, &ctx, 2);
        assert!(matches!(second.steps.as_slice(), [Step::Admit(_)]));
        assert!(!Arc::ptr_eq(&second, &cache.judge(sql, &Context { source: &other, ..ctx }, 2)));
        assert!(!Arc::ptr_eq(&second, &cache.judge(sql, &Context { mode: Mode::ReadWrite, ..ctx }, 2)));
        assert!(!Arc::ptr_eq(&second, &cache.judge(b"SELECT lower('b')", &ctx, 2)));
        assert!(Arc::ptr_eq(&second, &cache.judge(sql, &ctx, 2)));
        // Other limits of the same generation, which nobody makes, would not be answered wrongly either.
        let narrow = Limits { bytes: 5, ..limits };
        let narrowed = cache.judge(sql, &Context { limits: &narrow, ..ctx }, 2);
        assert!(matches!(narrowed.steps.as_slice(), [Step::Refuse(_)]));
    }

    /// The same for shapes: nothing learnt in one context is told in another.
    #[test]
    fn a_shape_is_found_under_all_that_it_depends_on() {
        let (knows, knows_not) = (Catalogue::stock(15).unwrap(), Catalogue::default());
        let (one, other, limits) = (SourceName::new("one"), SourceName::new("other"), Limits::default());
        let ctx = Context { catalogue: &knows, mode: Mode::ReadOnly, limits: &limits, source: &one };
        let cache = VerdictCache::new(1 << 20);
        let mut number = 0;
        let mut next = |ctx: &Context<'_>, generation| {
            number += 1;
            let sql = format!("SELECT abs({number}), pg_sleep({number})");
            let read = format!("SELECT abs({number})");
            let same = |sql: &str| {
                let cached = format!("{:?}", cache.judge(sql.as_bytes(), ctx, generation));
                assert_eq!(cached, format!("{:?}", Arc::new(judge(sql.as_bytes(), ctx))), "{sql}");
            };
            same(&sql);
            same(&read);
        };
        for _ in 0..2 {
            next(&ctx, 1);
            next(&Context { catalogue: &knows_not, ..ctx }, 2);
            next(&Context { source: &other, ..ctx }, 1);
            next(&Context { mode: Mode::ReadWrite, ..ctx }, 1);
            next(&Context { limits: &Limits { tokens: 3, ..limits }, ..ctx }, 1);
        }
    }

    /// And for what a session remembers of its last text.
    #[test]
    fn the_last_text_counts_under_all_that_its_verdict_depends_on() {
        let catalogue = Catalogue::stock(15).unwrap();
        let (one, other, limits) = (SourceName::new("one"), SourceName::new("other"), Limits::default());
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &one };
        let cache = VerdictCache::new(1 << 20);
        let mut last = None;
        cache.judge_new(b"SELECT abs(1)", &ctx, 1, &mut last);
        assert!(last.is_none(), "it had to be judged");
        cache.judge_new(b"SELECT abs(2)", &ctx, 1, &mut last);
        let last = last.as_deref();
        let known = |text: &[u8], ctx: &Context<'_>, generation| {
            let verdict = cache.known_after(last, text, ctx, generation);
            verdict.map(|verdict| format!("{verdict:?}"))
        };
        let text = b"SELECT abs(345);";
        assert_eq!(known(text, &ctx, 1), None, "another text");
        let text = b"SELECT abs(345)";
        assert_eq!(known(text, &ctx, 1), Some(format!("{:?}", judge(text, &ctx))));
        assert_eq!(known(text, &ctx, 2), None);
        assert_eq!(known(text, &Context { mode: Mode::ReadWrite, ..ctx }, 1), None);
        assert_eq!(known(text, &Context { source: &other, ..ctx }, 1), None);
        assert_eq!(known(text, &Context { limits: &Limits { tokens: 3, ..limits }, ..ctx }, 1), None);
    }

    #[test]
    fn a_flood_of_new_texts_does_not_drive_out_what_is_asked_often() {
        let catalogue = Catalogue::default();
        let (source, limits) = (SourceName::new("s"), Limits::default());
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        let cache = VerdictCache::new(256 << 10);
        let often: Vec<String> = (0..20).map(|number| format!("SELECT 'often {number}'")).collect();
        let mut missed = 0;
        for number in 0..20_000 {
            let sql = &often[number % often.len()];
            missed += usize::from(cache.known(sql.as_bytes(), &ctx, 1).is_none());
            cache.judge(sql.as_bytes(), &ctx, 1);
            cache.judge(format!("SELECT 'flood {number}'").as_bytes(), &ctx, 1);
        }
        assert!(missed < 400, "{missed} of 20000 misses");
        assert!(cache.bytes() <= 256 << 10);
    }

    #[test]
    fn a_read_with_other_numbers_is_not_parsed_again_and_is_itself_what_is_permitted() {
        let (catalogue, limits) = (Catalogue::stock(15).unwrap(), Limits::default());
        let source = SourceName::new("s");
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        let cache = VerdictCache::new(1 << 20);
        for (sql, text, whole) in [
            ("SELECT abs(1)", "SELECT abs(1)", true),
            ("/* x */ SELECT abs(-27) ;", "SELECT abs(-27)", true),
            ("SELECT abs(1), ';'", "SELECT abs(1), ';'", false),
            ("SELECT abs(2), ';'", "SELECT abs(2), ';'", false),
        ] {
            let verdict = cache.judge(sql.as_bytes(), &ctx, 1);
            let [Step::Admit(admitted)] = verdict.steps.as_slice() else { panic!("{sql}") };
            let fresh = judge(sql.as_bytes(), &ctx);
            let [Step::Admit(of_fresh)] = fresh.steps.as_slice() else { panic!("{sql}") };
            assert_eq!(admitted.permit.text(), of_fresh.permit.text(), "{sql}");
            assert_eq!((admitted.offset, admitted.class), (of_fresh.offset, of_fresh.class), "{sql}");
            assert_eq!(verdict.form, fresh.form, "{sql}");
            assert_eq!(verdict.form == crate::guard::Form::Whole, whole, "{sql}");
            assert!(String::from_utf8_lossy(admitted.permit.text()).contains(text), "{sql}");
        }
        // A refusal is worked out each time, with its own place.
        for number in 1..3 {
            let sql = format!("SELECT {number}, pg_sleep({number})");
            let verdict = cache.judge(sql.as_bytes(), &ctx, 1);
            assert!(matches!(verdict.steps.as_slice(), [Step::Refuse(_)]), "{sql}");
        }
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let catalogue = Catalogue::default();
        let (source, limits) = (SourceName::new("s"), Limits::default());
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        let cache = VerdictCache::new(256 << 10);
        for number in 0..5_000 {
            cache.judge(format!("SELECT '{number}'").as_bytes(), &ctx, 1);
            cache.judge(format!("SELECT a{number}, 1").as_bytes(), &ctx, 1);
        }
        assert!(cache.bytes() <= 256 << 10);
        assert!(cache.len() < 5_000 && !cache.is_empty());
        // Too long to be kept at all.
        let before = cache.len();
        cache.judge(format!("SELECT '{}'", "x".repeat(LONGEST_TEXT)).as_bytes(), &ctx, 1);
        assert_eq!(cache.len(), before);
    }
}
