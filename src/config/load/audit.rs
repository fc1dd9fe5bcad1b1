//! `[audit]`: where events go, and what is kept of them until they are there.
//!
//! Invariant: the reserve for policy events is a part of the spool, never all of it.

use std::time::Duration;

use super::files::{certificates, secret_file};
use super::{Loader, SECOND, base_url};
use crate::config::raw::Section;
use crate::config::{AuditSection, AuditSink, VictoriaLogsSink};

impl Loader<'_> {
    pub(super) fn audit(&self, mut section: Section<'_, '_>) -> Option<AuditSection> {
        #[derive(Clone, Copy, PartialEq)]
        enum Kind {
            File,
            VictoriaLogs,
        }
        if !section.has("kind") {
            section.missing("kind", "one of file, victorialogs");
        }
        let kind = section
            .word("kind", &[("file", Kind::File), ("victorialogs", Kind::VictoriaLogs)])
            .map(|found| found.value);
        let path = section.path_of_file("path", self.base);
        let sink = match kind {
            Some(Kind::File) => {
                if path.is_none() && !section.has("path") {
                    section.missing("path", "the file that lines are appended to");
                }
                for key in ["url", "account_id", "project_id", "token_file", "tls_ca", "timeout"] {
                    if section.has(key) {
                        section.problem(key, "is only read with kind = \"victorialogs\"");
                    }
                }
                path.map(|found| AuditSink::File { path: found.value })
            }
            Some(Kind::VictoriaLogs) => {
                if path.is_some() {
                    section.problem("path", "is only read with kind = \"file\"");
                }
                self.victorialogs(&mut section).map(AuditSink::VictoriaLogs)
            }
            None => None,
        };
        let spool = match section.path_of_file("spool", self.base) {
            Some(found) => found.value,
            None => self.base.join("audit-spool"),
        };
        let limit = section.size("spool_limit", 256 << 20, 1 << 20, 64 << 30);
        let reserve = section.size("spool_reserve", 16 << 20, 64 << 10, 64 << 30);
        if reserve.value > limit.value / 2 {
            section.reader.problem(&reserve.place, "must not be more than half of spool_limit");
        }
        let reads = section.boolean_or("reads", false);
        let entity_management = section
            .word("class", &[("data-access-management", false), ("entity-management", true)])
            .is_some_and(|found| found.value);
        let window = section.duration("window", SECOND, SECOND / 10, Duration::from_secs(3600));
        section.finish();
        Some(AuditSection {
            sink: sink?,
            spool,
            spool_limit: limit.value as u64,
            spool_reserve: reserve.value as u64,
            reads,
            entity_management,
            window,
        })
    }

    fn victorialogs(&self, section: &mut Section<'_, '_>) -> Option<VictoriaLogsSink> {
        let url =
            base_url(section, "url", "where VictoriaLogs listens, such as \"http://victorialogs:9428\"");
        let account_id = section.count("account_id", 0, 0, u32::MAX as usize);
        let project_id = section.count("project_id", 0, 0, u32::MAX as usize);
        let token = secret_file(section, "token_file", self.base);
        let ca = section.path_of_file("tls_ca", self.base);
        if let Some(found) = &ca {
            certificates(section.reader, found);
        }
        let timeout = section.duration("timeout", SECOND * 10, SECOND / 10, SECOND * 600);
        Some(VictoriaLogsSink {
            url: url?,
            account_id: u32::try_from(account_id).unwrap_or(0),
            project_id: u32::try_from(project_id).unwrap_or(0),
            token,
            ca: ca.map(|found| found.value),
            timeout,
        })
    }
}
