//! `[document]` and `[sync]`: where the policy document is kept, and the loop that writes masks into it.
//!
//! Invariant: a loop that is on has a document, a catalog, a map of tags and an audit trail.

use std::collections::BTreeMap;
use std::time::Duration;

use super::files::{certificates, secret_file};
use super::{DAY, Loader, SECOND, base_url};
use toml::de::DeTable;

use crate::config::raw::Section;
use crate::config::{CatalogSection, DocumentPlace, DocumentSection, OpenMetadataSection, SyncSection};

/// Longest name of a Kubernetes object (RFC 1123 subdomain).
const OBJECT_NAME_LIMIT: usize = 253;

impl Loader<'_> {
    pub(super) fn document(&self, mut section: Section<'_, '_>) -> Option<DocumentSection> {
        #[derive(Clone, Copy)]
        enum Kind {
            File,
            ConfigMap,
        }
        if !section.has("kind") {
            section.missing("kind", "one of file, config-map");
        }
        let kind = section
            .word("kind", &[("file", Kind::File), ("config-map", Kind::ConfigMap)])
            .map(|found| found.value);
        let others: &[&'static str] = match kind {
            Some(Kind::File) => &["namespace", "name", "key", "kubeconfig", "lease"],
            Some(Kind::ConfigMap) => &["path"],
            None => &[],
        };
        for key in others {
            if section.has(key) {
                section.problem(key, "does not go with this kind");
            }
        }
        let place = match kind {
            Some(Kind::File) => {
                if !section.has("path") {
                    section.missing("path", "the file that holds the policy document");
                }
                section.path_of_file("path", self.base).map(|found| DocumentPlace::File { path: found.value })
            }
            Some(Kind::ConfigMap) => self.config_map(&mut section),
            None => None,
        };
        let look_every = section.duration("look_every", SECOND * 2, SECOND / 10, SECOND * 600);
        let mask_key = secret_file(&mut section, "mask_key_file", self.base);
        section.finish();
        Some(DocumentSection { place: place?, look_every, mask_key })
    }

    fn config_map(&self, section: &mut Section<'_, '_>) -> Option<DocumentPlace> {
        let namespace = object_name(section, "namespace", "the namespace of the ConfigMap");
        let name = object_name(section, "name", "the name of the ConfigMap");
        let key = match section.has("key") {
            true => section.text("key").map(|found| found.value),
            false => Some("policy.json".to_owned()),
        };
        if key.as_ref().is_some_and(|key| !is_data_key(key)) {
            section.problem("key", "must be letters, digits, -, _ and . only, as keys of a ConfigMap are");
        }
        let kubeconfig = section.path_of_file("kubeconfig", self.base).map(|found| found.value);
        let lease = match section.has("lease") {
            true => Some(object_name(section, "lease", "")?),
            false => None,
        };
        Some(DocumentPlace::ConfigMap { namespace: namespace?, name: name?, key: key?, kubeconfig, lease })
    }

    /// None only after a problem was noted.
    pub(super) fn sync<'r, 't>(
        &self,
        root: &mut Section<'r, 't>,
        empty: &'r DeTable<'t>,
    ) -> Option<SyncSection> {
        let (has_document, has_audit) = (root.has("document"), root.has("audit"));
        let mut section = root.or_empty("sync", empty)?;
        let enabled = section.boolean_or("enabled", false);
        let interval = section.duration("interval", SECOND * 1800, SECOND, DAY);
        let admin_subjects = match section.texts("admin_subjects") {
            Some(found) => found.value.into_iter().map(|found| found.value).collect(),
            None => vec!["akko-admin".to_owned(), "AD_admin".to_owned()],
        };
        let tag_to_mask: BTreeMap<String, String> = section
            .texts_by_name("tag_to_mask")
            .unwrap_or_default()
            .into_iter()
            .map(|(tag, mask)| {
                if tag.is_empty() || mask.value.is_empty() {
                    section.reader.problem(&mask.place, "a tag and its mask must not be empty");
                }
                (tag, mask.value)
            })
            .collect();
        let enforce_suggested = section.boolean_or("enforce_suggested", false);
        let max_removal = section.share("max_removal", 0.2);
        let removal_delay = section.duration("removal_delay", Duration::ZERO, Duration::ZERO, DAY * 3650);
        let webhook_secret = secret_file(&mut section, "webhook_secret_file", self.base);
        let webhook_debounce =
            section.duration("webhook_debounce", SECOND / 10, Duration::ZERO, Duration::from_secs(60));
        let history = match section.path_of_file("history", self.base) {
            Some(found) => found.value,
            None => self.base.join("policy-history"),
        };
        let history_limit = section.count("history_limit", 1000, 2, 1_000_000);
        let had_catalog = section.has("catalog");
        let catalog = section.section("catalog").and_then(|section| self.catalog(section));
        if enabled {
            let wants = |there: bool, key: &str, what: &str| {
                if !there {
                    section.missing(key, what);
                }
            };
            wants(had_catalog, "catalog", "write [sync.catalog] with kind = \"file\" or \"openmetadata\"");
            wants(
                !tag_to_mask.is_empty(),
                "tag_to_mask",
                "write [sync.tag_to_mask] with a mask for each tag",
            );
            if !has_document {
                section.problem("enabled", "the loop has nowhere to write: there is no [document]");
            }
            if !has_audit {
                section.problem("enabled", "each run of the loop is recorded, and there is no [audit]");
            }
        }
        section.finish();
        Some(SyncSection {
            enabled,
            interval,
            admin_subjects,
            tag_to_mask,
            enforce_suggested,
            max_removal,
            removal_delay,
            webhook_secret,
            webhook_debounce,
            history,
            history_limit,
            catalog,
        })
    }

    fn catalog(&self, mut section: Section<'_, '_>) -> Option<CatalogSection> {
        #[derive(Clone, Copy)]
        enum Kind {
            File,
            OpenMetadata,
        }
        if !section.has("kind") {
            section.missing("kind", "one of file, openmetadata");
        }
        let kind = section
            .word("kind", &[("file", Kind::File), ("openmetadata", Kind::OpenMetadata)])
            .map(|found| found.value);
        let catalog = match kind {
            Some(Kind::File) => {
                if !section.has("path") {
                    section.missing("path", "the YAML file of classifications");
                }
                section
                    .path_of_file("path", self.base)
                    .map(|found| CatalogSection::File { path: found.value })
            }
            Some(Kind::OpenMetadata) => self.openmetadata(&mut section).map(CatalogSection::OpenMetadata),
            None => None,
        };
        section.finish();
        catalog
    }

    fn openmetadata(&self, section: &mut Section<'_, '_>) -> Option<OpenMetadataSection> {
        let base_url = base_url(section, "base_url", "where OpenMetadata listens, without /api");
        if !section.has("token_file") {
            section.missing("token_file", "the file with the bot's JWT");
        }
        let token = secret_file(section, "token_file", self.base);
        let ca = section.path_of_file("tls_ca", self.base);
        if let Some(found) = &ca {
            certificates(section.reader, found);
        }
        if !section.has("services") {
            section.missing(
                "services",
                "which of OpenMetadata's services is which catalog of the policy document",
            );
        }
        let services = section
            .texts_by_name("services")
            .unwrap_or_default()
            .into_iter()
            .map(|(service, catalog)| (service, catalog.value))
            .collect();
        let glossaries = section.boolean_or("glossaries", false);
        let page_size = section.count("page_size", 500, 1, 1000);
        let timeout = section.duration("timeout", SECOND * 10, SECOND / 10, SECOND * 600);
        let retries = section.count("retries", 3, 0, 10);
        Some(OpenMetadataSection {
            base_url: base_url?,
            token: token?,
            ca: ca.map(|found| found.value),
            services,
            glossaries,
            page_size,
            timeout,
            retries,
        })
    }
}

fn object_name(section: &mut Section<'_, '_>, key: &'static str, what: &str) -> Option<String> {
    if !section.has(key) {
        section.missing(key, what);
    }
    let found = section.text(key)?;
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let well = !found.value.is_empty()
        && found.value.len() <= OBJECT_NAME_LIMIT
        && found.value.bytes().all(|byte| letter(byte) || matches!(byte, b'-' | b'.'))
        && found.value.bytes().next().is_some_and(letter)
        && found.value.bytes().last().is_some_and(letter);
    if !well {
        section
            .reader
            .problem(&found.place, "must be a Kubernetes name: lower-case letters, digits, - and .");
        return None;
    }
    Some(found.value)
}

fn is_data_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= OBJECT_NAME_LIMIT
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && !matches!(key, "." | "..")
}
