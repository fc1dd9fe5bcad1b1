//! Disks that are full: the log's and the audit trail's.
//!
//! Invariant: the gateway goes on serving as docs/audit.md says, loses no count of what it could not write down, and
//! writes again when there is room.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::house::{self, House, MODES, PASSWORD, Plan, SOURCE, USER};
use crate::load::{Door, Habits, Load, PATIENCE};
use crate::support::{Gateway, Postgres, fedgate};

const HABITS: Habits = Habits { clients: 6, churn: 8 };

/// From now on no file of the gateway grows beyond so many bytes, as on a full disk; `None`: there is room again.
fn limit_files(gateway: &Gateway, bytes: Option<u64>) {
    let pid = Pid::from_raw(gateway.pid() as i32);
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: bytes.or(maximum), maximum };
    prlimit(pid, Resource::Fsize, limit).expect("a process of ours");
}

fn in_each_mode(job: fn(&Arc<Postgres>, &'static str)) {
    let shared = house::shared();
    let shared = &shared;
    crate::all(MODES.iter().map(|mode| {
        let job: Box<dyn FnOnce() + Send> = Box::new(move || job(shared, mode));
        ((*mode).to_owned(), job)
    }));
}

#[test]
fn the_disk_of_the_log_is_full() {
    in_each_mode(|shared, mode| {
        let house = House::build(Some(shared), mode, Plan::PLAIN, |setup| setup.log_file());
        let load = house.load(HABITS);
        load.wait_for_each(2);
        limit_files(&house.gateway, Some(1));
        // What was written before the limit held is read first.
        load.wait_for_each(1);
        let full = house.gateway.log_mark();
        // Sessions begin and end, each with lines of its own.
        load.wait_for_each(10);
        assert!(house.gateway.log_mark() <= full + 1, "lines were written all the same");
        assert!(house.metric("fedgate_log_lines_lost_total") > 2.0);
        assert_eq!(load.errors(), Default::default());
        limit_files(&house.gateway, None);
        house.gateway.wait_for_line_after(full, "session began");
        house.gateway.wait_for_line_after(full, "log lines were lost");
        load.wait_for_each(2);
        assert_eq!(load.errors(), Default::default());
        load.end();
        house.settles();
        house.end();
    });
}

/// Addresses on which a process listens, by what the kernel says.
fn listening(pid: u32) -> Vec<SocketAddr> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: HashSet<String> = links
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .filter_map(|target| {
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (*state == "0A" && sockets.contains(*inode)).then_some(SocketAddr::from(([127, 0, 0, 1], port)))
    });
    rows.collect()
}

/// The process, killed when the test fails.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn standard_error_takes_nothing_from_the_start() {
    in_each_mode(|shared, mode| {
        // Only its configuration and its files are wanted of this one.
        let house = House::build(Some(shared), mode, Plan::PLAIN, |setup| setup);
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        // A device that is full, and a pipe that nobody reads.
        for (format, piped) in [("text", false), ("json", false), ("text", true)] {
            let config = house.gateway.folder().join("other.toml");
            let text = std::fs::read_to_string(house.gateway.config_file()).unwrap();
            std::fs::write(&config, format!("{text}\n[log]\nformat = \"{format}\"\nlevel = \"trace\"\n"))
                .unwrap();
            let mut command = Command::new(fedgate());
            command.arg("run").arg("--config").arg(config).stdin(Stdio::null()).stdout(full());
            if piped {
                command.stderr(Stdio::piped());
            } else {
                command.stderr(full());
            }
            let mut child = Child(command.process_group(0).spawn().expect("it starts"));
            let deadline = Instant::now() + PATIENCE;
            let addresses = loop {
                let addresses = listening(child.0.id());
                if addresses.len() >= 2 {
                    break addresses;
                }
                assert!(Instant::now() < deadline, "it does not listen: {:?}", child.0.try_wait());
                std::thread::sleep(Duration::from_millis(10));
            };
            let is_http = |address: &&SocketAddr| {
                crate::support::http_get(**address, "/healthz").is_ok_and(|(status, _)| status == 200)
            };
            let http = *addresses.iter().find(is_http).expect("one is for HTTP");
            let address = *addresses.iter().find(|address| **address != http).expect("one is for clients");
            let door = Door { address, user: USER, password: PASSWORD, database: SOURCE, tls: None };
            let load = Load::start(&door, HABITS);
            load.wait_for_each(10);
            let lost = || {
                let (_, metrics) = crate::support::http_get(http, "/metrics").unwrap();
                !metrics.lines().any(|line| line == "fedgate_log_lines_lost_total 0")
            };
            load.wait_until("lines are lost", |_| lost());
            load.wait_for_each(2);
            assert_eq!(load.errors(), Default::default());
            let (_, metrics) = crate::support::http_get(http, "/metrics").unwrap();
            assert!(metrics.lines().any(|line| line == "fedgate_panics_total 0"), "{metrics}");
            load.end();
            let pid = Pid::from_raw(child.0.id() as i32).unwrap();
            kill_process(pid, Signal::TERM).unwrap();
            let deadline = Instant::now() + PATIENCE;
            let status = loop {
                if let Some(status) = child.0.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < deadline, "it does not end");
                std::thread::sleep(Duration::from_millis(10));
            };
            assert!(status.success(), "it ended with {status}");
        }
        house.end();
    });
}

#[test]
fn the_disk_of_the_audit_trail_is_full() {
    in_each_mode(|shared, mode| {
        let plan = Plan {
            sections: "[audit]\nkind = \"file\"\npath = \"{dir}/audit.jsonl\"\nspool = \"{dir}/spool\"\nspool_limit = \"8MiB\"\n\
                       spool_reserve = \"1MiB\"\nreads = true\nwindow = \"100ms\"",
            ..Plan::PLAIN
        };
        let mut house = House::build(Some(shared), mode, plan, |setup| setup.log_file());
        // The trail opens its files with its first event.
        house.wait_until_metric("fedgate_audit_delivered_total", |delivered| delivered > 0.0);
        house.count_anew();
        let load = house.load(HABITS);
        load.wait_for_each(2);
        let refuse = || {
            crate::support::blocking(async {
                let session = house.door.open().await.expect("a session");
                let refused =
                    session.client.batch_execute("DELETE FROM nothing").await.expect_err("no write");
                assert_eq!(refused.code().map(|code| code.code()), Some("25006"));
                session.end().await;
            });
        };
        refuse();
        let until = |what: &str, reached: &dyn Fn() -> bool| {
            let deadline = Instant::now() + PATIENCE;
            while !reached() {
                assert!(Instant::now() < deadline, "never: {what}");
                load.check();
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let delivered = || house.metric("fedgate_audit_delivered_total");
        until("events are delivered", &|| delivered() > 0.0);

        // Neither the spool nor the file nor the log takes a byte more.
        limit_files(&house.gateway, Some(1));
        until("the disk has failed", &|| {
            house.metric("fedgate_audit_spool_failures_total") > 0.0
                || house.metric("fedgate_audit_delivery_failures_total{reason=\"disk\"}") > 0.0
        });
        refuse();
        load.wait_for_each(8);
        assert_eq!(load.errors(), Default::default(), "reads go on");
        limit_files(&house.gateway, None);
        let before = delivered();
        until("events are delivered again", &|| delivered() > before);
        load.wait_for_each(2);
        assert_eq!(load.errors(), Default::default(), "reads go on");
        load.end();
        house.settles();

        // Each statement that was judged is in the file, or counted as lost.
        let folder = house.gateway.folder().to_owned();
        let kept = tempfile::tempdir_in(folder.parent().unwrap()).unwrap();
        std::fs::hard_link(folder.join("audit.jsonl"), kept.path().join("audit.jsonl")).unwrap();
        let refused = house.metric("fedgate_refusals_total{source=\"rows\",class=\"write\"}")
            + house.metric("fedgate_refusals_total{class=\"write\",source=\"rows\"}");
        let lost = house.metric("fedgate_audit_lost_total{what=\"refusals\"}");
        house.end();
        let text = std::fs::read_to_string(kept.path().join("audit.jsonl")).unwrap();
        let mut seen = HashSet::new();
        let mut told = 0;
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line).expect("no line is torn");
            // One that was delivered twice carries the same id.
            if seen.insert(event["metadata"]["uid"].to_string()) && event["status_code"] == "25006" {
                told += event["count"].as_u64().unwrap_or(1);
            }
        }
        assert_eq!(refused, 2.0);
        assert_eq!(told as f64 + lost, refused, "{text}");
    });
}
