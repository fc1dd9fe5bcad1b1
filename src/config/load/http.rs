//! `[http]`: where the API listens and whom it believes.
//!
//! Invariant: an API that asks nobody who they are listens on a loopback that is ours alone.

use super::{Loader, socket_address};
use crate::config::Http;
use crate::config::raw::Section;

impl Loader<'_> {
    pub(super) fn http(&self, mut section: Section<'_, '_>) -> Option<Http> {
        if !section.has("listen") {
            section.missing("listen", "write listen = \"127.0.0.1:8080\"");
        }
        let text = section.text("listen");
        let listen = text.as_ref().and_then(|text| socket_address(section.reader, text));
        if section.has("auth") {
            // A table is how tokens will be configured; the only word is "none".
            if section.is_table("auth") {
                section.problem("auth", "is not supported by this version");
            } else {
                section.word("auth", &[("none", ())]);
            }
        }
        if let (Some(address), Some(text)) = (listen, &text) {
            if !address.ip().to_canonical().is_loopback() {
                section.reader.problem(
                    &text.place,
                    format!("{address} is not a loopback address, and this version asks nobody who they are on HTTP"),
                );
            }
            if self.host_network {
                section.reader.problem(
                    &text.place,
                    "HTTP asks nobody who they are, and with fedgate_host_network = true the node's loopback is not only ours",
                );
            }
        }
        section.finish();
        Some(Http { listen: listen? })
    }
}
