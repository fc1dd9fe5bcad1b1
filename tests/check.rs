//! `fedgate check` against configurations and, with `--live`, against real servers.

mod support;

use std::fs;
use std::path::Path;

use clap::Parser;
use fedgate::app::check::{Answer, CheckArgs, run};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    check: CheckArgs,
}

/// Writes the configuration, checks it, and gives the answer, standard output and standard error.
async fn check(folder: &Path, toml: &str, options: &[&str]) -> (Answer, String, String) {
    let file = folder.join("fedgate.toml");
    fs::write(&file, toml).unwrap();
    let arguments = ["check", "--config", file.to_str().unwrap()];
    let cli = Cli::parse_from(arguments.iter().chain(options));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let answer = run(&cli.check, &mut out, &mut err).await.unwrap();
    (answer, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn toml(method: &str, source: &str) -> String {
    format!(
        r#"
[gateway]
listen = ["127.0.0.1:0"]
[gateway.auth]
method = "{method}"
{source}
"#
    )
}

fn source(host: &str, user: &str, password_file: &str, more: &str) -> String {
    format!(
        r#"
[[source]]
name = "climscore"
hosts = ["{host}"]
database = "climscore"
user = "{user}"
password_file = "{password_file}"
access = [{{ users = ["visitor"] }}]
{more}
"#
    )
}

#[tokio::test]
async fn a_bad_configuration_cannot_be_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (answer, out, err) = check(folder.path(), "[gateway]\nlisten = 1\n", &[]).await;
    assert_eq!((answer.exit_code(), out.as_str()), (2, ""));
    assert!(err.contains("fedgate.toml:2: gateway.listen: must be a list of texts"), "{err}");
    let (_, out, _) = check(folder.path(), "[gateway]\nlisten = 1\n", &["--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["answer"], "unknown");
    assert_eq!(json["problems"][0]["line"], 1);
}

#[tokio::test]
async fn relay_with_tls_on_both_legs_is_answered_with_no() {
    let folder = tempfile::tempdir().unwrap();
    let authority = support::Authority::new("a test");
    let pair = authority.server(&["localhost"]);
    fs::write(folder.path().join("crt"), &pair.certificate).unwrap();
    fs::write(folder.path().join("key"), &pair.private_key).unwrap();
    fs::write(folder.path().join("password"), "x").unwrap();
    let gateway = |required: bool| {
        format!("[gateway.tls]\ncertificate = \"crt\"\nprivate_key = \"key\"\nrequired = {required}\n")
    };
    for (required, tls, host, answer, remark) in [
        (true, "require", "127.0.0.1:1", Answer::No, "problem: tls: relay cannot work here"),
        (
            false,
            "require",
            "127.0.0.1:1",
            Answer::Yes,
            "warning: tls: relay cannot work for clients with TLS:",
        ),
        (
            true,
            "prefer",
            "127.0.0.1:1",
            Answer::Yes,
            "warning: tls: relay cannot work for clients with TLS if",
        ),
        (true, "disable", "127.0.0.1:1", Answer::Yes, "sources: 1"),
        (true, "require", "/run/nowhere", Answer::Yes, "sources: 1"),
    ] {
        let source = source(host, "u", "password", &format!("tls = \"{tls}\""));
        let toml = toml("relay", &format!("{}{source}", gateway(required)));
        let (got, out, err) = check(folder.path(), &toml, &[]).await;
        assert!(got == answer && out.contains(remark), "{required} {tls} {host}: {got:?}\n{out}{err}");
        assert_eq!(out.contains("relay cannot"), remark.contains("relay cannot"), "{out}");
    }
}

#[tokio::test]
async fn a_live_check_knows_a_reader_from_a_writer() {
    let postgres = support::Postgres::climscore(support::Options::default());
    postgres.execute(
        "climscore",
        "CREATE ROLE owner_of_things;
         CREATE TABLE public.\"Odd name\" (a int, b int); CREATE SEQUENCE public.counter;
         ALTER TABLE public.\"Odd name\" OWNER TO owner_of_things;
         CREATE ROLE sneaky LOGIN PASSWORD 'sneaky'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO sneaky;
         CREATE ROLE column_writer NOINHERIT LOGIN PASSWORD 'column_writer';
         GRANT UPDATE (b) ON public.\"Odd name\" TO column_writer; GRANT USAGE ON SEQUENCE public.counter TO column_writer;
         GRANT pg_write_server_files TO column_writer; GRANT CREATE ON DATABASE climscore TO column_writer;
         CREATE ROLE switcher NOINHERIT LOGIN PASSWORD 'switcher'; GRANT owner_of_things TO switcher;",
    );
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    for name in ["sneaky", "column_writer", "switcher"] {
        write(name, name);
    }
    write("akko_readonly", support::READER_PASSWORD);
    write("superuser", support::SUPERUSER_PASSWORD);
    let live = async |user: &str, file: &str, more: &str| {
        let toml = toml("trust", &source(&postgres.address(), user, file, more));
        check(folder.path(), &toml, &["--live"]).await
    };

    for reader in ["akko_readonly", "sneaky"] {
        let (answer, out, err) = live(reader, reader, "").await;
        assert_eq!(answer, Answer::Yes, "{out}{err}");
        assert!(out.contains("live: PostgreSQL 1") && out.contains("the role can only read"), "{out}");
        assert!(!out.contains(support::READER_PASSWORD));
    }

    let (answer, out, _) = live("column_writer", "column_writer", "").await;
    assert_eq!(answer, Answer::No, "{out}");
    for way in [
        "it is a member of pg_write_server_files",
        "tables that it can change: 1 (public.\"Odd name\")",
        "sequences that it can move: 1 (public.counter)",
        "databases that it can create schemas in: 1 (climscore)",
    ] {
        assert!(
            out.contains(&format!("problem: column_writer can do more than read: {way}")),
            "{way}: {out}"
        );
    }

    let (answer, out, _) = live("switcher", "switcher", "").await;
    assert!(answer == Answer::No && out.contains("tables that it can change: 1"), "{out}");

    let (answer, out, _) = live(support::SUPERUSER, "superuser", "").await;
    assert!(answer == Answer::No && out.contains("it is a superuser"), "{out}");
    // Where writes are meant to be, a role that can write is none.
    let (answer, out, _) =
        live(support::SUPERUSER, "superuser", "read_only = false\nwriters = [\"visitor\"]").await;
    assert!(answer == Answer::Yes && out.contains("(OPEN FOR WRITES)"), "{out}");

    let (answer, out, _) = live("sneaky", "superuser", "").await;
    assert!(answer == Answer::Unknown && out.contains("problem: cannot be reached"), "{out}");
    let toml = toml("trust", &source("127.0.0.1:1", "sneaky", "sneaky", ""));
    let (answer, out, _) = check(folder.path(), &toml, &["--live", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(answer == Answer::Unknown && json["sources"][0]["live"]["failed"].is_string(), "{out}");
}

/// Functions that are not what they are marked as, and what else an owner should know of.
#[tokio::test]
async fn a_live_check_points_out_what_stands_behind_names() {
    let postgres = support::Postgres::climscore(support::Options::default());
    postgres.execute(
        "climscore",
        "CREATE TABLE public.visits (id int); CREATE SEQUENCE public.counter;
         CREATE FUNCTION public.vol() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
         CREATE FUNCTION public.liar_text() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN INSERT INTO visits VALUES (1); RETURN 1; END';
         CREATE FUNCTION public.liar_call() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT public.vol()';
         CREATE FUNCTION public.liar_tree() RETURNS int STABLE LANGUAGE sql RETURN public.vol();
         CREATE FUNCTION public.liar_atomic() RETURNS int STABLE LANGUAGE sql
           BEGIN ATOMIC DELETE FROM public.visits; SELECT 1; END;
         CREATE FUNCTION public.honest() RETURNS int STABLE LANGUAGE sql AS 'SELECT count(*)::int FROM public.visits';
         CREATE FUNCTION public.honest_tree() RETURNS bigint STABLE LANGUAGE sql RETURN (SELECT count(*) FROM public.visits);
         CREATE FUNCTION public.definer() RETURNS int STABLE SECURITY DEFINER LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION public.definer_temp() RETURNS int STABLE SECURITY DEFINER SET search_path = public LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION public.definer_good() RETURNS int STABLE SECURITY DEFINER SET search_path = public, pg_temp LANGUAGE sql AS 'SELECT 1';
         CREATE VIEW public.writes AS SELECT public.vol();",
    );
    // file_fdw is a part of contrib, which bare server programs do not have.
    let contrib = postgres
        .value("climscore", "SELECT count(*) FROM pg_available_extensions WHERE name = 'file_fdw'")
        .as_deref()
        == Some("1");
    if contrib {
        postgres.execute(
            "climscore",
            "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
             CREATE FOREIGN TABLE public.lines (line text) SERVER files OPTIONS (filename '/dev/null');
             CREATE FOREIGN TABLE public.piped (line text) SERVER files OPTIONS (program 'true');",
        );
    } else {
        println!("no file_fdw on this machine: foreign tables are not held");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("akko_readonly"), support::READER_PASSWORD).unwrap();
    let toml = toml("trust", &source(&postgres.address(), "akko_readonly", "akko_readonly", ""));
    let (answer, out, err) = check(folder.path(), &toml, &["--live"]).await;
    assert_eq!(answer, Answer::Yes, "{out}{err}");
    let mut wanted = vec![
        "public.liar_text is marked STABLE, but its body has INSERT in it",
        "public.liar_call is marked IMMUTABLE, but its body names public.vol",
        "public.liar_tree is marked STABLE, but its body calls public.vol",
        "public.liar_atomic is marked STABLE, but its body holds a statement other than a query",
        "public.definer is SECURITY DEFINER without a search_path of its own",
        "public.definer_temp is SECURITY DEFINER and its search_path does not end in pg_temp",
        "public.writes is refused by the gateway. It may run the function public.vol",
    ];
    if contrib {
        wanted.extend([
            "public.lines is a foreign table of server files (file_fdw)",
            "public.piped is refused by the gateway. Each read of it runs a program",
        ]);
    }
    for remark in wanted {
        assert!(out.contains(&format!("warning: live: {remark}")), "{remark}: {out}");
    }
    for honest in ["honest ", "honest_tree", "definer_good"] {
        assert!(!out.contains(&format!("public.{honest}")), "{honest}: {out}");
    }
    let (_, out, _) = check(folder.path(), &toml, &["--live", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(json["sources"][0]["live"]["grants"]["remarks"].as_array().unwrap().len() >= 7, "{out}");
}

#[tokio::test]
async fn an_audit_trail_that_cannot_work_is_a_problem_and_a_silent_sink_a_question() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("password"), "secret\n").unwrap();
    fs::write(folder.path().join("a-file"), "").unwrap();
    let base = toml("trust", &source("127.0.0.1:1", "reader", "password", "tls = \"disable\""));
    let with = |audit: &str| format!("{base}\n[audit]\n{audit}\n");
    let (answer, out, _) = check(folder.path(), &base, &[]).await;
    assert!(answer == Answer::Yes && out.contains("audit trail: off"), "{out}");

    let file = with("kind = \"file\"\npath = \"audit.jsonl\"\nspool = \"new/spool\"\nreads = true");
    let (answer, out, _) = check(folder.path(), &file, &[]).await;
    assert!(answer == Answer::Yes && out.contains("reads to the file"), "{out}");
    assert!(
        !folder.path().join("new").exists() && !folder.path().join("audit.jsonl").exists(),
        "it changed something"
    );

    for (audit, why) in [
        ("kind = \"file\"\npath = \"audit.jsonl\"\nspool = \"a-file/spool\"", "folder"),
        ("kind = \"file\"\npath = \"a-file/audit.jsonl\"", "cannot append"),
        ("kind = \"file\"\npath = \"missing/audit.jsonl\"", "cannot append"),
        ("kind = \"file\"\npath = \".\"", "cannot append"),
    ] {
        let (answer, out, _) = check(folder.path(), &with(audit), &[]).await;
        assert!(
            answer == Answer::No && out.contains("problem: audit: ") && out.contains(why),
            "{audit}: {out}"
        );
    }

    // Nobody listens there; without --live nobody asks.
    let logs = with("kind = \"victorialogs\"\nurl = \"http://127.0.0.1:1\"\ntimeout = \"2s\"");
    let (answer, _, _) = check(folder.path(), &logs, &[]).await;
    assert_eq!(answer, Answer::Yes);
    let (answer, out, _) = check(folder.path(), &logs, &["--live"]).await;
    assert!(
        answer == Answer::Unknown
            && out.contains("problem: live: the audit sink cannot be used: VictoriaLogs: cannot connect"),
        "{out}"
    );
}

#[tokio::test]
async fn the_policy_document_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p"), "x").unwrap();
    let with = |document: &str| toml("trust", &format!("{}{document}", source("127.0.0.1:1", "u", "p", "")));
    let file = with("[document]\nkind = \"file\"\npath = \"policy.json\"\n");
    let (answer, out, _) = check(folder.path(), &file, &[]).await;
    assert_eq!(answer, Answer::Unknown);
    assert!(out.contains("problem: the policy document cannot be read: No such file"), "{out}");
    let good = r#"{"version": 1, "mask_library": {"m": {"strength": 1}}, "subjects": {"a": {"kind": "role", "masks": [
        {"catalog": "c", "schema": "s", "table": "t", "column": "x", "mask": "m"}]}}}"#;
    fs::write(folder.path().join("policy.json"), good).unwrap();
    let (answer, out, _) = check(folder.path(), &file, &[]).await;
    assert!(out.contains("policy.json, 1 subjects, 1 masks"), "{out}");
    assert_eq!(answer, Answer::Yes, "{out}");
    fs::write(folder.path().join("policy.json"), good.replace("\"mask\": \"m\"", "\"mask\": \"n\"")).unwrap();
    let (answer, out, _) = check(folder.path(), &file, &[]).await;
    assert!(out.contains("problem: document:") && out.contains("subjects.a.masks[0].mask"), "{out}");
    assert_eq!(answer, Answer::No);
    let unreadable = good.replace("\"strength\": 1", "\"strength\": 1, \"trino\": \"lower({column}\"");
    fs::write(folder.path().join("policy.json"), unreadable).unwrap();
    let (answer, out, _) = check(folder.path(), &file, &[]).await;
    assert!(
        out.contains("problem: document: Trino could not evaluate mask_library.m.trino at byte"),
        "{out}"
    );
    assert_eq!(answer, Answer::No);
    // A ConfigMap is somebody else's to answer for: only with --live.
    let map =
        with("[document]\nkind = \"config-map\"\nnamespace = \"n\"\nname = \"m\"\nkubeconfig = \"none\"\n");
    let (answer, out, _) = check(folder.path(), &map, &[]).await;
    assert!(out.contains("policy document: policy.json of the ConfigMap n/m\n"), "{out}");
    assert_eq!(answer, Answer::Yes);
    let (answer, out, _) = check(folder.path(), &map, &["--live"]).await;
    assert!(
        out.contains("problem: the credentials for the Kubernetes API cannot be used: kubeconfig"),
        "{out}"
    );
    assert_eq!(answer, Answer::Unknown);
}
