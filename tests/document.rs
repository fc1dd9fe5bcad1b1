//! Policy documents as people write them, and as people break them.
//!
//! Invariant: a document is read whole or refused with the place that is wrong, and what is not known is kept.

use fedgate::document::{Document, OneLine};

const LIBRARY: &str = r#""mask_library":{"sha256":{"strength":60},"null":{"strength":100}}"#;

/// What stands in `{}` of a document with one subject, and the error.
const SUBJECTS: &[(&str, &str)] = &[
    (r#""scopes":[]"#, "at subjects.analyst: missing field `kind`"),
    (r#""kind":"person""#, "at subjects.analyst.kind: unknown variant `person`"),
    (
        r#""kind":"role","scopes":[{"catalog":"*","schema":"*"}]"#,
        "at subjects.analyst.scopes[0]: missing field `table`",
    ),
    (
        r#""kind":"role","scopes":[{"catalog":"*","schema":"a*b","table":"*"}]"#,
        "at subjects.analyst.scopes[0].schema: a `*` may stand at the end of a pattern only",
    ),
    (
        r#""kind":"role","masks":[{"catalog":"c","schema":"s","table":"t","column":"a","mask":"sha512"}]"#,
        "at subjects.analyst.masks[0].mask: there is no mask \"sha512\" in mask_library",
    ),
    (
        r#""kind":"role","masks":[{"catalog":"c","schema":"s","table":"","column":"a","mask":"null"}]"#,
        "at subjects.analyst.masks[0].table: is empty",
    ),
    (
        r#""kind":"role","masks":[{"catalog":"c","schema":"s","table":"t","column":"a","mask":"null"},
                                  {"catalog":"c","schema":"s","table":"t","column":"a","mask":"sha256"}]"#,
        "at subjects.analyst.masks[1]: c.s.t.a is masked twice for this subject",
    ),
    (
        r#""kind":"role","masks":[{"catalog":"c","schema":"s","table":"t","column":"a","mask":"null","source":7}]"#,
        "at subjects.analyst.masks[0].source: invalid type",
    ),
];

const TEXTS: &[(&str, &str)] = &[
    ("", "not valid JSON: EOF"),
    ("[]", "it is not an object"),
    ("{} {}", "trailing characters"),
    (r#"{"version":1,"version":1}"#, "\"version\" is said twice in one object at line 1"),
    (r#"{"version":1,"x":[{"y":{"z":1,"z":2}}]}"#, "\"z\" is said twice"),
    ("{}", "at version: is missing"),
    (r#"{"version":2}"#, "at version: this version of fedgate reads version 1"),
    (r#"{"version":"1"}"#, "at version: this version"),
    (r#"{"version":1,"mask_library":{"a":{}}}"#, "at mask_library.a: missing field `strength`"),
    (r#"{"version":1,"mask_library":{"a":{"strength":-1}}}"#, "at mask_library.a.strength: invalid number"),
    (r#"{"version":1,"sources":{"a":{"read_only":true}}}"#, "at sources.a: missing field `catalog`"),
    ("{\"version\":1,\"x\":\"\u{0}\"}", "control character"),
];

#[test]
fn broken_documents_say_where() {
    let texts = TEXTS.iter().map(|(text, want)| ((*text).to_owned(), *want));
    let subjects = SUBJECTS.iter().map(|(subject, want)| {
        (format!(r#"{{"version":1,{LIBRARY},"subjects":{{"analyst":{{{subject}}}}}}}"#), *want)
    });
    for (text, want) in texts.chain(subjects) {
        let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(want), "{text}\n  said {error}\n  not  {want}");
    }
}

#[test]
fn nesting_without_end_is_an_error() {
    for open in ["[", "{\"a\":"] {
        let text = format!("{{\"version\":1,\"x\":{}", open.repeat(100_000));
        assert!(Document::parse(text.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }
}

#[test]
fn what_is_not_known_stays_in_order_and_spelling() {
    let text = r#"{"z":1.50,"version":1,"huge":123456789012345678901234567890,"e":1e+2,"subjects":{"b":{"note":null,"kind":"user"},"a":{"kind":"group"}}}"#;
    let document = Document::parse(text.as_bytes()).unwrap();
    let laid_out = document.to_text();
    let bare: String = laid_out.split_whitespace().collect();
    assert_eq!(bare, text);
    assert_eq!(Document::parse(laid_out.as_bytes()).unwrap().to_text(), laid_out);
}

#[test]
fn names_of_others_stay_on_their_line() {
    let cases = [
        ("plain \u{e9}t\u{e9}", "plain \u{e9}t\u{e9}"),
        ("a\nb\u{2028}c", "a\\u{a}b\\u{2028}c"),
        ("\u{202e}x\u{200b}\u{feff}", "\\u{202e}x\\u{200b}\\u{feff}"),
    ];
    for (name, want) in cases {
        assert_eq!(OneLine(name).to_string(), want);
    }
}
