//! Many clients on few sessions, each of which knows what its answers must be.

use super::*;

struct Client<'s> {
    stand: &'s Stand,
    number: usize,
    state: u64,
    raw: Raw,
    zone: String,
    name: String,
    prepared: bool,
    vanished: usize,
    checked: usize,
}

impl<'s> Client<'s> {
    fn new(stand: &'s Stand, number: usize) -> Self {
        let state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let raw = Self::connect(stand, number);
        let mut client = Self {
            stand,
            number,
            state,
            raw,
            zone: "UTC".to_owned(),
            name: String::new(),
            prepared: false,
            vanished: 0,
            checked: 0,
        };
        client.began();
        client
    }

    fn connect(stand: &Stand, number: usize) -> Raw {
        let user = ["visitor", "greedy", "modest"][number % 3];
        // Two kinds, so that sessions are replaced by others, too.
        let whom = stand.whom(user);
        let whom = if number % 10 == 9 { whom.with("DateStyle", "German") } else { whom };
        whom.with("application_name", &format!("begins {number}")).connect().0
    }

    fn began(&mut self) {
        self.zone = "UTC".to_owned();
        self.name = format!("begins {}", self.number);
        self.prepared = false;
    }

    fn random(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % below as u64) as usize
    }

    fn is(&mut self, what: &str, answer: &[String], wanted: &[&str]) {
        self.checked += 1;
        assert_eq!(answer, wanted, "client {}: {what}", self.number);
    }

    fn step(&mut self) {
        let (me, id) = (self.number, 1 + self.random(1000));
        match self.random(13) {
            0 => {
                let answer = self.raw.query(&format!(
                    "SELECT {me}, name, current_setting('TimeZone') FROM probe WHERE id = {id}"
                ));
                let row = format!("D {me} name {id} {}", self.zone);
                self.is("simple", &answer, &["T ?column? name current_setting", &row, "C SELECT 1", "Z I"]);
            }
            1 => {
                let answer = ask(
                    &mut self.raw,
                    &format!(
                        "P \"\" \"SELECT $1::int, name FROM probe WHERE id = $2\" [23, 23] / B \"\" \"\" [\"{me}\", \"{id}\"] / E \"\" 0 / S"
                    ),
                );
                self.is("extended", &answer, &["1", "2", &format!("D {me} name {id}"), "C SELECT 1", "Z I"]);
            }
            2 | 3 => {
                let parse = if self.prepared {
                    ""
                } else {
                    "P S_1 \"SELECT {me}, $1::int, current_setting('TimeZone')\" [23] / "
                };
                let parse = parse.replace("{me}", &me.to_string());
                let answer = ask(&mut self.raw, &format!("{parse}B \"\" S_1 [\"{id}\"] / E \"\" 0 / S"));
                let row = format!("D {me} {id} {}", self.zone);
                let wanted = ["1", "2", &row, "C SELECT 1", "Z I"];
                self.is("prepared", &answer, &wanted[usize::from(self.prepared)..]);
                self.prepared = true;
            }
            4 => {
                self.raw.query("BEGIN");
                self.raw.query(&format!(
                    "DECLARE c CURSOR FOR SELECT {me}, id FROM probe WHERE id >= {id} ORDER BY id"
                ));
                let answer = self.raw.query("FETCH 1 c");
                self.is("cursor", &answer, &["T ?column? id", &format!("D {me} {id}"), "C FETCH 1", "Z T"]);
                let answer = self.raw.query("COMMIT");
                self.is("cursor", &answer, &["C COMMIT", "Z I"]);
            }
            5 => {
                let answer = self.raw.query(&format!("COPY (SELECT {me}, id FROM probe WHERE id BETWEEN {id} AND {id} + 1 ORDER BY id) TO STDOUT"));
                let rows: Vec<&String> = answer.iter().filter(|line| line.starts_with("d ")).collect();
                assert_eq!(*rows[0], format!("d {me}\\t{id}\\n"), "client {me}: COPY");
                self.checked += 1;
            }
            6 => {
                self.zone = format!("Etc/GMT+{}", id % 12);
                let answer = self.raw.query(&format!("SET TimeZone = '{}'", self.zone));
                assert_eq!(answer.last().map(String::as_str), Some("Z I"));
            }
            7 => {
                self.name = format!("named {me} {id}");
                self.raw.query(&format!("SET application_name = '{}'", self.name));
                let shown = value(&mut self.raw, "SHOW application_name");
                assert!(shown.starts_with("fedgate/") && shown.ends_with(&self.name), "client {me}: {shown}");
                self.checked += 1;
            }
            8 => {
                self.raw.query("BEGIN");
                self.raw.query("SET LOCAL TimeZone = 'Asia/Tokyo'");
                assert_eq!(value(&mut self.raw, "SHOW TimeZone"), "Asia/Tokyo");
                self.raw.query("SELECT 1/0");
                let answer = self.raw.query("ROLLBACK");
                assert!(answer.contains(&"C ROLLBACK".to_owned()), "client {me}: {answer:?}");
                assert_eq!(value(&mut self.raw, "SHOW TimeZone"), self.zone, "client {me}");
                self.checked += 2;
            }
            9 => {
                self.raw.query("DISCARD ALL");
                self.began();
                assert_eq!(value(&mut self.raw, "SHOW TimeZone"), self.zone, "client {me}");
            }
            10 => {
                let answer = self.raw.query(&format!("PREPARE q AS SELECT {me}"));
                assert_eq!(answer, ["C PREPARE", "Z I"], "client {me}");
                assert_eq!(value(&mut self.raw, "EXECUTE q"), me.to_string());
                self.raw.query("DEALLOCATE q");
                self.checked += 1;
            }
            11 => {
                let answer = self.raw.query("DELETE FROM written");
                self.is("a write", &answer, &["E 25006", "Z I"]);
            }
            _ => {
                // Goes, in the middle of something, and comes again.
                match self.random(5) {
                    0 => {
                        send_query(&mut self.raw, "SELECT repeat('x', 1000) FROM generate_series(1, 3000000)")
                    }
                    1 => drop(self.raw.query("BEGIN; SET TimeZone = 'Asia/Tokyo'")),
                    2 => send(&mut self.raw, "P S_9 \"SELECT 'left'\" / B \"\" S_9"),
                    3 => send(&mut self.raw, "P S_9 \"SELECT 'left'\" / S"),
                    _ => drop(self.raw.query("DECLARE h CURSOR WITH HOLD FOR SELECT 1")),
                }
                let new = Self::connect(self.stand, self.number);
                let old = std::mem::replace(&mut self.raw, new);
                if self.random(2) == 0 {
                    reset(old)
                } else {
                    drop(old)
                }
                self.began();
                self.vanished += 1;
            }
        }
    }
}

#[test]
fn each_of_many_clients_sees_its_own_rows_and_settings() {
    let seconds = std::env::var("POOL_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(6);
    let stand = Stand::new("mode = \"transaction\", size = 3, min_idle = 2, wait = \"60s\"");
    let (checked, vanished) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..40)
            .map(|number| {
                let stand = &stand;
                scope.spawn(move || {
                    let mut client = Client::new(stand, number);
                    let end = Instant::now() + Duration::from_secs(seconds);
                    while Instant::now() < end {
                        client.step();
                    }
                    (client.checked, client.vanished)
                })
            })
            .collect();
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        (done.iter().map(|one| one.0).sum::<usize>(), done.iter().map(|one| one.1).sum::<usize>())
    });
    eprintln!("{checked} answers checked, {vanished} clients vanished");
    assert!(checked > 500 && vanished > 20);
    eventually("all are given back", || stand.metric("fedgate_upstream_connections{", "leased") == 0.0);
    assert!(stand.pids("true").len() <= 3);
    assert!(stand.pids("state <> 'idle'").is_empty());
    stand.end();
}
