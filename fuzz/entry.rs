//! The entry points of the fuzz targets: bytes in, nothing out, a panic where a promise is broken.
//!
//! Invariant: each holds for any bytes whatever. libFuzzer calls them through `fuzz_targets/`, and
//! `tests/fuzz.rs` calls them with the seeds, with changed seeds and with random bytes.

use std::sync::OnceLock;

use fedgate::app::explain;
use fedgate::guard::{
    Context, Form, Mode, Step, Verdict, VerdictCache, found, judge, judge_function_call,
    judge_parameter_types, settings,
};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::comment::{self, CommentFormat};
use fedgate::sync::catalog::file;
use fedgate::sync::catalog::openmetadata::{Assembly, Reading, event};
use fedgate::wire::frontend::{self, Target};
use fedgate::wire::startup::{self, Opening};
use fedgate::wire::{BufferPool, ReadBuffer, backend, frame};

/// A target's name and its entry point.
pub type Entry = (&'static str, fn(&[u8]));

/// All targets.
pub const ENTRIES: [Entry; 7] = [
    ("frames", frames),
    ("answers", answers),
    ("startup", startup),
    ("guard", guard),
    ("comment", comment),
    ("explain", explain),
    ("catalog", catalog),
];

/// The longest message that the frame targets take.
const LONGEST: usize = 1 << 16;

/// Messages of a client: the same ones whether the bytes come at once or one by one.
pub fn frames(data: &[u8]) {
    let whole = split(data, data.len().max(1));
    let step = usize::from(data.first().copied().unwrap_or(1) % 7) + 1;
    assert_eq!(whole, split(data, step), "chunks make a difference");
    for (kind, body) in &whole {
        match kind {
            b'Q' => {
                if let Ok(sql) = frontend::query(body) {
                    assert_eq!([sql, b"\0"].concat(), *body);
                }
            }
            b'P' => {
                if let Ok(parse) = frontend::parse(body) {
                    assert_eq!([parse.name, b"\0", parse.sql, b"\0", parse.types].concat(), *body);
                    assert_eq!(parse.types.len() % 4, 2);
                    with_context(|ctx| {
                        let judged = judge_parameter_types(parse.types, ctx);
                        assert!(judged.is_ok() || parse.types.len() > 2);
                    });
                }
            }
            b'B' => {
                if let Ok(bind) = frontend::bind(body) {
                    assert!(body.starts_with(&[bind.portal, b"\0", bind.statement, b"\0"].concat()));
                }
            }
            b'D' | b'C' => {
                if let Ok(Target::Statement(name) | Target::Portal(name)) = frontend::target(body) {
                    assert_eq!(name.len() + 2, body.len());
                }
            }
            b'E' => {
                if let Ok(portal) = frontend::execute(body) {
                    assert_eq!(portal.len() + 5, body.len());
                }
            }
            b'F' => {
                if let Ok(permit) = judge_function_call(body) {
                    assert_eq!(permit.body(), &body[..], "another call than the one that was judged");
                }
            }
            _ => {}
        }
    }
}

/// The messages at the front of `data`, read in steps, up to what is none.
fn split(data: &[u8], step: usize) -> Vec<(u8, Vec<u8>)> {
    let mut buffer = ReadBuffer::new(BufferPool::new(16, 1));
    let mut messages = Vec::new();
    for chunk in data.chunks(step) {
        buffer.fill_from(chunk);
        loop {
            match frame::header(buffer.data(), LONGEST) {
                Err(_) => return messages,
                Ok(None) => break,
                Ok(Some(header)) => {
                    assert!(header.size >= frame::HEADER && header.size <= LONGEST);
                    if buffer.data().len() < header.size {
                        buffer.reserve(header.size);
                        break;
                    }
                    messages.push((header.kind, buffer.data()[frame::HEADER..header.size].to_vec()));
                    buffer.consume(header.size);
                }
            }
        }
        // A claimed length does not make the buffer larger than what came.
        assert!(buffer.data().len() + buffer.space().len() <= 2 * data.len().max(16));
    }
    messages
}

/// Messages of a source: what the gateway reads of them, and the one that it changes.
pub fn answers(data: &[u8]) {
    for (kind, body) in split(data, data.len().max(1)) {
        match kind {
            b'E' | b'N' => {
                for field in *b"SVCMDHPpqWstcdnFLR" {
                    if let Some(value) = backend::error_field(&body, field) {
                        assert!(!value.contains(&0));
                    }
                }
                let shift = u32::from(body.first().copied().unwrap_or_default());
                if let Some(shifted) = backend::with_position_shifted(&body, shift) {
                    let header = frame::header(&shifted, usize::MAX >> 1).unwrap().unwrap();
                    assert_eq!((header.kind, header.size), (b'E', shifted.len()));
                    let number = |body: &[u8]| -> u64 {
                        std::str::from_utf8(backend::error_field(body, b'P').unwrap())
                            .unwrap()
                            .parse()
                            .unwrap()
                    };
                    assert_eq!(number(&shifted[frame::HEADER..]), number(&body) + u64::from(shift));
                    assert_eq!(
                        backend::error_field(&body, b'C'),
                        backend::error_field(&shifted[frame::HEADER..], b'C')
                    );
                }
            }
            b'S' => {
                if let Some((name, value)) = backend::parameter(&body) {
                    assert!(body.starts_with([name, "\0", value, "\0"].concat().as_bytes()));
                }
            }
            b'Z' => {
                let _ = body.first().copied().and_then(backend::Status::from_byte);
            }
            _ => {}
        }
    }
}

/// The packet that opens a connection.
pub fn startup(data: &[u8]) {
    if let Some((length, _)) = data.split_first_chunk::<4>()
        && let Ok(length) = startup::body_length(*length)
    {
        assert!((4..startup::MAX_STARTUP).contains(&length));
    }
    match startup::decode(data) {
        Ok(Opening::Startup(startup)) => {
            let mut body = startup.version.number().to_be_bytes().to_vec();
            let mut names: Vec<&str> = startup.parameters.iter().map(|(name, _)| name.as_str()).collect();
            for (name, value) in &startup.parameters {
                body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
                let _ = settings::judge_setting(name, value);
            }
            body.push(0);
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), startup.parameters.len(), "a key that comes twice");
            match startup::decode(&body) {
                Ok(Opening::Startup(again)) => assert_eq!(again.parameters, startup.parameters),
                other => panic!("what was read cannot be read again: {other:?}"),
            }
            if let Ok(settings) = settings::startup_options(startup.get("options").unwrap_or_default()) {
                for (name, value) in settings {
                    assert!(settings::judge_setting(&name, &value).is_ok(), "{name} = {value}");
                }
            }
        }
        Ok(Opening::Cancel(cancel)) => assert!((4..=256).contains(&cancel.secret.len())),
        Ok(Opening::SslRequest | Opening::GssEncRequest) => assert_eq!(data.len(), 4),
        Err(_) => {}
    }
}

/// All that a verdict promises.
pub fn guard(data: &[u8]) {
    static CACHE: OnceLock<VerdictCache> = OnceLock::new();
    let cache = CACHE.get_or_init(|| VerdictCache::new(1 << 20));
    with_context(|ctx| {
        let verdict = judge(data, ctx);
        holds(data, &verdict);
        // Whatever the cache has learnt from texts before, it says the same.
        let cached = cache.judge(data, ctx, 1);
        assert_eq!(format!("{verdict:?}"), format!("{:?}", *cached), "the cache says something else");
        // The next text of the same shape.
        let other: Vec<u8> = data
            .iter()
            .map(|byte| if byte.is_ascii_digit() { b'1' + (byte - b'0') % 9 } else { *byte })
            .collect();
        let cached = cache.judge(&other, ctx, 1);
        assert_eq!(
            format!("{:?}", judge(&other, ctx)),
            format!("{:?}", *cached),
            "the shape says something else"
        );
        let writer = judge(data, &Context { mode: Mode::ReadWrite, ..*ctx });
        holds(data, &writer);
        // A writer may do all that a reader may.
        if verdict.steps.iter().all(|step| matches!(step, Step::Admit(_))) {
            assert!(writer.steps.iter().all(|step| matches!(step, Step::Admit(_))));
        }
        for name in found(data, ctx.limits).names {
            assert!(name.offset.is_none_or(|offset| offset < data.len()));
        }
    });
}

fn holds(data: &[u8], verdict: &Verdict) {
    for (at, step) in verdict.steps.iter().enumerate() {
        match step {
            Step::Admit(admitted) => {
                let text = admitted.permit.text();
                let part = data.get(admitted.offset..admitted.offset + text.len());
                assert_eq!(part, Some(text), "a permit for what was not sent");
                assert!(std::str::from_utf8(text).is_ok() && !text.contains(&0));
            }
            Step::Refuse(refusal) => {
                assert_eq!(at + 1, verdict.steps.len(), "a step behind a refusal");
                assert!(refusal.offset.is_none_or(|offset| offset <= data.len()));
                assert!(refusal.message.len() < 400, "{}", refusal.message);
                let rest = [&refusal.detail, &refusal.hint];
                assert!(rest.into_iter().flatten().all(|text| text.len() < 2000));
            }
        }
    }
    if verdict.form == Form::Whole {
        assert!(verdict.steps.len() <= 1, "several statements in one Query");
    }
}

/// An engine's comment behind any text: it names the engine's user or nobody.
pub fn comment(data: &[u8]) {
    static FORMAT: OnceLock<CommentFormat> = OnceLock::new();
    let format = FORMAT.get_or_init(|| CommentFormat::parse("fedgate query=$QUERY_ID user=$USER").unwrap());
    if let Some(named) = comment::end_user(data, format) {
        assert!(data.ends_with(format!("user={}*/", named.user).as_bytes()));
        assert!(!named.user.is_empty() && named.user.len() <= 256);
    }
    let honest = [data, b"/*fedgate query=20261123_q user=alice*/"].concat();
    if let Some(named) = comment::end_user(&honest, format) {
        assert_eq!((&*named.user, &*named.query), ("alice", "20261123_q"));
    }
}

/// `fedgate explain`, line by line and for people.
pub fn explain(data: &[u8]) {
    with_context(|ctx| {
        let mut out = Vec::new();
        let _ = explain::jsonl(data, &mut out, ctx);
        for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert!(line["verdict"].is_string(), "{line}");
        }
        if let Ok(sql) = std::str::from_utf8(data) {
            let mut out = Vec::new();
            explain::text(sql, &mut out, ctx).unwrap();
            assert!(!out.is_empty() && out.len() < 64 * (data.len() + 100));
        }
    });
}

fn with_context(ask: impl FnOnce(&Context<'_>)) {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    let catalogue = CATALOGUE.get_or_init(|| Catalogue::stock(15).unwrap());
    let (limits, source) = (Limits::default(), SourceName::new("climscore"));
    ask(&Context { catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source });
}

/// Answers and pushes of a catalog, and the file that may stand in for it.
pub fn catalog(data: &[u8]) {
    let fits = |words: String| {
        assert!(words.len() < 4000, "{} bytes are said of {} bytes", words.len(), data.len());
        assert!(!words.contains('\n'), "{words}");
    };
    let reading = Reading { catalogs: [("pg_lab".to_owned(), "climscore".into())].into(), glossaries: true };
    let mut assembly = Assembly::new(&reading);
    match assembly.tables(data) {
        Ok(Some(cursor)) => {
            // The same page cannot follow itself.
            assert!(!cursor.is_empty() && assembly.tables(data).is_err());
        }
        Ok(None) => match assembly.finish(1) {
            Ok(picture) => {
                assert!(!picture.tables.is_empty(), "no table where there were some is no picture")
            }
            Err(error) => fits(error.to_string()),
        },
        Err(error) => fits(error.to_string()),
    }
    if let Err(error) = Assembly::new(&reading).classifications(data) {
        fits(error.to_string());
    }
    match event::hint(data) {
        Ok(hint) => {
            assert!(hint.tables.len() <= 100 && !(hint.whole && !hint.tables.is_empty()));
            assert!(hint.tables.iter().all(|name| !name.is_empty() && name.len() <= 4096));
        }
        Err(error) => fits(error.to_string()),
    }
    assert!(!event::verify(b"secret", data, b"body") || data.len() == "sha256=".len() + 64);
    if let Ok(text) = std::str::from_utf8(data)
        && let Err(error) = file::parse(text)
    {
        fits(error.to_string());
    }
}
