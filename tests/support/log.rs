//! What a PostgreSQL log says arrived.
//!
//! Invariant: a text that the server was sent is found, whichever protocol carried it and whether or not
//! it ran. It holds for the `log_line_prefix` and logging settings of `Postgres`.

/// One text that the server logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub pid: u32,
    pub application: String,
    pub user: String,
    pub database: String,
    pub text: String,
}

/// Takes the statements out of a log: simple queries, parse, bind and execute of the extended
/// protocol, fast-path calls, replication commands, and the statements of errors.
pub fn logged_statements(log: &str) -> Vec<Logged> {
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        // Lines that go on begin with a tab; all others begin with the prefix.
        match (line.strip_prefix('\t'), entries.last_mut()) {
            (Some(more), Some(entry)) => {
                entry.push('\n');
                entry.push_str(more);
            }
            _ => entries.push(line.to_owned()),
        }
    }
    entries.iter().filter_map(|entry| logged(entry)).collect()
}

fn logged(entry: &str) -> Option<Logged> {
    let (head, rest) = entry.split_once("] app=")?;
    let pid = head.rsplit_once('[')?.1.parse().ok()?;
    let (application, rest) = rest.split_once(" user=")?;
    let (user, rest) = rest.split_once(" db=")?;
    let (database, rest) = rest.split_once(' ')?;
    let (level, message) = rest.split_once(":  ")?;
    let text = match level {
        "STATEMENT" => message,
        "LOG" => {
            let message = match message.strip_prefix("duration: ") {
                Some(timed) => timed.split_once(" ms")?.1.trim_start(),
                None => message,
            };
            if let Some(text) = message.strip_prefix("statement: ") {
                text
            } else if message.starts_with("fastpath function call: ") {
                message
            } else if let Some(text) = message.strip_prefix("received replication command: ") {
                text
            } else if ["parse ", "bind ", "execute "].iter().any(|kind| message.starts_with(kind)) {
                message.split_once(": ")?.1
            } else {
                return None;
            }
        }
        _ => return None,
    };
    Some(Logged {
        pid,
        application: application.to_owned(),
        user: user.to_owned(),
        database: database.to_owned(),
        text: text.to_owned(),
    })
}
