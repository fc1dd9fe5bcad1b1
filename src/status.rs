//! What the gateway knows of its sources, for health checks and the API.
//!
//! Invariant: a status is a copy; reading one never blocks a session.
