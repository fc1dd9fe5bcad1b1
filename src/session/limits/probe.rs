//! The breaker's look at a source, on a connection of the gateway's own.
//!
//! Invariant: one look at a time, each with an end; a source that does not answer in time counts as one that suffers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::Restraints;
use super::breaker::Reading;
use crate::config::BreakerLimits;
use crate::metrics::Outcome;
use crate::upstream::Source;

/// Sessions of clients at work, less this one; and how far a standby is behind.
///
/// A standby that has replayed all that it received is not behind, however long ago its primary last wrote, as long as
/// it still receives; one that has replayed no transaction yet is behind since it started. Whether this role sees the sessions of others is asked too: without `pg_read_all_stats` it does
/// not, and counts its own.
const ASK: &str = "
SELECT (SELECT pg_catalog.count(*)::int4 FROM pg_catalog.pg_stat_activity
         WHERE backend_type = 'client backend' AND state = 'active' AND pid <> pg_catalog.pg_backend_pid()),
       CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN NULL
            WHEN pg_catalog.pg_last_wal_receive_lsn() = pg_catalog.pg_last_wal_replay_lsn()
             AND EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver) THEN 0
            ELSE pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - COALESCE(
                 pg_catalog.pg_last_xact_replay_timestamp(), pg_catalog.pg_postmaster_start_time()))
       END::float8,
       pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')";

struct Own {
    client: Client,
    _driven: AbortOnDropHandle<()>,
}

/// Looks again and again, until it is aborted.
pub(super) async fn watch(
    source: Arc<Source>,
    restraints: Arc<Restraints>,
    limits: BreakerLimits,
    most: Option<u32>,
) {
    let mut ticks = interval(limits.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut own: Option<Own> = None;
    let mut told = false;
    loop {
        ticks.tick().await;
        let looked = timeout(limits.timeout, look(&source, &mut own, &limits, &mut told)).await;
        let reading = match looked {
            Ok(Some(reading)) => reading,
            Ok(None) | Err(_) => {
                own = None;
                Reading::default()
            }
        };
        let metrics = &restraints.metrics;
        metrics.sampled(if reading.latency.is_some() { Outcome::Ok } else { Outcome::Failed });
        if let Some(latency) = reading.latency {
            metrics.latency.set(latency.as_secs_f64());
            metrics.active_sessions.set(reading.active_sessions.unwrap_or_default().into());
            metrics.replication_lag.set(reading.replication_lag.unwrap_or_default().as_secs_f64());
        }
        restraints.sampled(source.name(), &reading, &limits, most);
    }
}

/// Nothing: it did not answer.
async fn look(
    source: &Source,
    own: &mut Option<Own>,
    limits: &BreakerLimits,
    told: &mut bool,
) -> Option<Reading> {
    let working = match own {
        Some(working) if !working.client.is_closed() => working,
        _ => own.insert(open(source).await?),
    };
    let asked = Instant::now();
    working.client.simple_query("SELECT 1").await.ok()?;
    let latency = asked.elapsed();
    let mut reading = Reading { latency: Some(latency), ..Reading::default() };
    if limits.active_sessions.is_some() || limits.replication_lag.is_some() {
        let row = working.client.query_one(ASK, &[]).await.ok()?;
        reading.active_sessions = row.try_get::<_, i32>(0).ok().and_then(|count| u32::try_from(count).ok());
        let lag = row.try_get::<_, Option<f64>>(1).ok()?;
        reading.replication_lag = lag.and_then(|lag| Duration::try_from_secs_f64(lag.max(0.0)).ok());
        let sees_all = row.try_get::<_, bool>(2).unwrap_or_default();
        if !sees_all && limits.active_sessions.is_some() && !std::mem::replace(told, true) {
            tracing::warn!(
                source = %source.name(),
                "limits.breaker.active_sessions counts the gateway's own sessions only: its role is no member of pg_read_all_stats"
            );
        }
    }
    Some(reading)
}

async fn open(source: &Source) -> Option<Own> {
    let (client, connection) = match source.client().await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(source = %source.name(), %error, "no connection to look at the source by");
            return None;
        }
    };
    let driven = AbortOnDropHandle::new(tokio::spawn(async move {
        // What ended it shows in the next look.
        let _ = connection.await;
    }));
    Some(Own { client, _driven: driven })
}
