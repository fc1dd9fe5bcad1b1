//! fedgate: a PostgreSQL gateway that sends only reads on and answers everything else itself.
//!
//! The map of the rooms, lowest rank first. A room imports only rooms of a lower rank, and rooms of
//! one rank do not know each other; `tests/architecture.rs` holds this table against the code.
//!
//! | rank | room | what happens there |
//! | --- | --- | --- |
//! | 6 | [`app`] (and `main`) | arguments, exit codes, the wiring, the order of draining |
//! | 5 | [`http`] | health, metrics, API; sees receivers and handles only |
//! | 4 | [`session`] | one client's life: startup, TLS, authentication, relay, cancel |
//! | 4 | [`sync`] | the PII loop: catalog picture and policy document to a plan of masks |
//! | 3 | [`upstream`] | dial, authenticate, pin, lease; every query method asks for a permit |
//! | 2 | [`guard`] | a parsed statement in, permit or refusal out |
//! | 2 | [`tls`] | the server's side of TLS, for listeners; what a client's certificate says |
//! | 2 | [`policy`] | the policy document as Rego data and a bundle for Trino's OPA |
//! | 1 | [`sql`], [`wire`], [`config`] | text to tree; bytes to frames; settings to validated types |
//! | 1 | [`audit`] | events, their OCSF form, the spool on disk |
//! | 0 | [`document`] | the policy document as people and the loop write it |
//! | 0 | [`client`] | HTTP clients: what they trust, and what bounds them |
//! | 0 | [`ids`], [`sqlstate`], [`metrics`], [`status`], [`timestamp`] | names, codes, handles, times as JSON |

pub mod app;
pub mod audit;
pub mod client;
pub mod config;
pub mod document;
pub mod guard;
pub mod http;
pub mod ids;
pub mod metrics;
pub mod policy;
pub mod session;
pub mod sql;
pub mod sqlstate;
pub mod status;
pub mod sync;
pub mod timestamp;
pub mod tls;
pub mod upstream;
pub mod wire;
