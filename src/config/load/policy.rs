//! `[policy]` and `[[workload]]`: where configuration policies and what they choose from are, and who clients are to them.
//!
//! Invariant: a client is of one workload or of none; what stands in the files is read by those who use it.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use super::Loader;
use crate::config::raw::{Found, Section, quoted};
use crate::config::users::check_user_name;
use crate::config::{PolicySection, Workload};
use crate::ids::ClientUser;

impl Loader<'_> {
    pub(super) fn policy(&self, mut section: Section<'_, '_>) -> PolicySection {
        if !section.has("folders") {
            section.missing("folders", "the folders of *.rego, such as [\"policies/out-of-the-box\"]");
        }
        let folders = self.paths(&mut section, "folders");
        for folder in &folders {
            if !folder.value.is_dir() {
                let message = format!("{} is no folder", folder.value.display());
                section.reader.problem(&folder.place, message);
            }
        }
        let mut file = |key: &'static str| {
            let found = section.path_of_file(key, self.base)?;
            regular(&section, &found);
            Some(found.value)
        };
        let (infrastructure, taxonomy) = (file("infrastructure"), file("taxonomy"));
        let mut files = |key: &'static str| {
            let found = self.paths(&mut section, key);
            found.iter().for_each(|found| regular(&section, found));
            found.into_iter().map(|found| found.value).collect()
        };
        let (modules, clusters) = (files("modules"), files("clusters"));
        let storage_accounts = files("storage_accounts");
        section.finish();
        PolicySection {
            folders: folders.into_iter().map(|found| found.value).collect(),
            infrastructure,
            taxonomy,
            modules,
            clusters,
            storage_accounts,
        }
    }

    fn paths(&self, section: &mut Section<'_, '_>, key: &'static str) -> Vec<Found<PathBuf>> {
        let mut paths = Vec::new();
        let named = section.texts(key).map(|found| found.value);
        if key == "folders" && named.as_ref().is_some_and(Vec::is_empty) {
            section.problem(key, "must name at least one folder");
        }
        for found in named.unwrap_or_default() {
            if found.value.is_empty() || found.value.contains('\0') {
                section.reader.problem(&found.place, "must be the path of a file or folder");
            } else {
                paths.push(found.map(|path| self.base.join(path)));
            }
        }
        paths
    }
}

fn regular(section: &Section<'_, '_>, found: &Found<PathBuf>) {
    // A pipe would hang.
    if !found.value.is_file() {
        section.reader.problem(&found.place, format!("{} is no regular file", found.value.display()));
    }
}

pub(super) fn workloads(root: &mut Section<'_, '_>, has_policy: bool) -> Vec<Workload> {
    let mut workloads = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    for mut section in root.sections("workload") {
        if !has_policy {
            section
                .reader
                .problem(&section.place, "says who a client is for policies, and there is no [policy]");
        }
        for (key, what) in [("users", "the client users that it is"), ("cluster", "where it runs")] {
            if !section.has(key) {
                section.missing(key, what);
            }
        }
        let mut users = Vec::new();
        let named = section.texts("users").map(|found| found.value);
        if named.as_ref().is_some_and(Vec::is_empty) {
            section.problem("users", "must name at least one user");
        }
        for found in named.unwrap_or_default() {
            if let Err(message) = check_user_name(&found.value) {
                section.reader.problem(&found.place, message);
            } else if !seen.insert(found.value.clone()) {
                let message = format!("{} is of two workloads", quoted(&found.value));
                section.reader.problem(&found.place, message);
            } else {
                users.push(ClientUser::new(found.value.as_str()));
            }
        }
        let cluster = section.text("cluster").map(|found| found.value).unwrap_or_default();
        let properties: BTreeMap<String, serde_json::Value> = section
            .scalars_by_name("properties")
            .unwrap_or_default()
            .into_iter()
            .map(|(name, found)| (name, found.value))
            .collect();
        let policy_set_id = section.text("policySetID").map(|found| found.value).unwrap_or_default();
        let interface = section.text("interface").and_then(|found| {
            let (protocol, format) = found.value.split_once(':').unwrap_or((&found.value, ""));
            let sane = |part: &str| part.chars().all(|c| c.is_ascii_graphic() && c != ':');
            if protocol.is_empty() || !sane(protocol) || !sane(format) {
                let message = "must be a protocol, such as postgres, or one and a data format, such as fybrik-arrow-flight:arrow";
                section.reader.problem(&found.place, message);
                return None;
            }
            Some((protocol.to_owned(), format.to_owned()))
        });
        section.finish();
        workloads.push(Workload { users, cluster, properties, policy_set_id, interface });
    }
    workloads
}
