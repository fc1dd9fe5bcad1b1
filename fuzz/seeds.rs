//! Seeds of the fuzz targets, made from the cases of this repository.
//!
//! Invariant: nothing here is random, so that a corpus can be made again.

use std::path::Path;

#[derive(serde::Deserialize)]
struct Case {
    sql: String,
}

/// The texts of all tables of `tests/guard`.
pub fn statements() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guard");
    let mut tables: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    tables.sort();
    let mut all = Vec::new();
    for table in tables.iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
        let text = std::fs::read_to_string(table).unwrap();
        let cases: Vec<Case> = serde_yaml_ng::from_str(&text).unwrap();
        all.extend(cases.into_iter().map(|case| case.sql));
    }
    all
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

fn packet(code: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = code.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    body
}

/// The seeds of one target.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frames" => {
            let mut seeds: Vec<Vec<u8>> = statements()
                .into_iter()
                .map(|sql| {
                    let sql = sql.as_bytes();
                    let name = b"s1\0";
                    [
                        message(b'Q', &[sql, b"\0"].concat()),
                        message(b'P', &[name, sql, b"\0\0\x01\0\0\0\x19"].concat()),
                        message(b'B', b"p\0s1\0\0\0\0\x01\0\0\0\x01x\0\0"),
                        message(b'D', b"Ss1\0"),
                        message(b'E', b"p\0\0\0\0\0"),
                        message(b'C', b"Pp\0"),
                        message(b'S', b""),
                    ]
                    .concat()
                })
                .collect();
            seeds.push(message(
                b'F',
                b"\0\0\x03\xb8\0\x01\0\x01\0\x02\0\0\0\x04\0\0\x30\x39\0\0\0\x04\0\x04\0\0\0\x01",
            ));
            seeds.push([message(b'd', b"1\t2\n"), message(b'c', b""), message(b'X', b"")].concat());
            seeds
        }
        "answers" => vec![
            message(
                b'E',
                b"SERROR\0VERROR\0C42703\0Mcolumn \"a\" does not exist\0P8\0Fparse_relation.c\0L3716\0\0",
            ),
            message(b'N', b"SNOTICE\0C00000\0Mhello\0\0"),
            message(b'S', b"client_encoding\0UTF8\0"),
            [
                message(b'1', b""),
                message(b'2', b""),
                message(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"),
                message(b'D', b"\0\x01\0\0\0\x011"),
                message(b'C', b"SELECT 1\0"),
                message(b'Z', b"I"),
            ]
            .concat(),
            [message(b'R', b"\0\0\0\0"), message(b'K', b"\0\0\0\x01\0\0\0\x02"), message(b'Z', b"T")]
                .concat(),
        ],
        "startup" => vec![
            packet(196_608, &[("user", "trino"), ("database", "climscore"), ("application_name", "psql")]),
            packet(196_610, &[("user", "a"), ("_pq_.x", "1"), ("options", "-c statement_timeout=5s")]),
            packet(
                196_608,
                &[("user", "a"), ("options", "-c\\ search_path=x --geqo=off"), ("replication", "0")],
            ),
            packet(196_608, &[("user", "a"), ("user", "b")]),
            80_877_103u32.to_be_bytes().to_vec(),
            80_877_104u32.to_be_bytes().to_vec(),
            [80_877_102u32.to_be_bytes(), 7u32.to_be_bytes(), [1, 2, 3, 4]].concat(),
        ],
        "comment" => {
            let honest = "/*fedgate query=20261123_002213_00000_v3s6c user=bob*/";
            statements()
                .into_iter()
                .flat_map(|sql| {
                    [format!("{sql}{honest}").into_bytes(), format!("{sql} /* {honest} */").into_bytes()]
                })
                .collect()
        }
        "explain" => statements()
            .into_iter()
            .map(|sql| format!("{}\n", serde_json::json!({"id": 1, "sql": sql})).into_bytes())
            .collect(),
        "catalog" => {
            let table = serde_json::json!({"fullyQualifiedName": "pg_lab.shop.public.\"a.b\"", "deleted": false, "columns": [
                {"name": "email", "children": [{"name": "x", "tags": []}],
                 "tags": [{"tagFQN": "PII.Sensitive", "source": "Classification", "state": "Confirmed"}]}]});
            let classification = serde_json::json!({"name": "PII", "disabled": true});
            let event = serde_json::json!({"id": "1", "eventType": "entityUpdated", "entityType": "table",
                "entityFullyQualifiedName": "pg_lab.shop.public.t"});
            let page = |entity: &serde_json::Value, paging: serde_json::Value| {
                serde_json::json!({"data": [entity], "paging": paging}).to_string().into_bytes()
            };
            vec![
                page(&table, serde_json::json!({"total": 1})),
                page(&table, serde_json::json!({"total": 9, "after": "YQ=="})),
                page(&classification, serde_json::json!({"total": 1})),
                page(&event, serde_json::json!({})),
                event.to_string().into_bytes(),
                serde_json::json!([event, event]).to_string().into_bytes(),
                b"catalogs: {c: {s: {t: {email: PII.Sensitive, b: {tags: [A.B], columns: {x: }}}}}}\ndisabled: [PCI]\n"
                    .to_vec(),
                format!("sha256={}", "0".repeat(64)).into_bytes(),
            ]
        }
        _ => statements().into_iter().map(String::into_bytes).collect(),
    }
}
