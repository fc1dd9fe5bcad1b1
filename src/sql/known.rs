//! What is known of functions beyond their volatility, each with its reason.
//!
//! Invariant: "harmless" is said of functions in pg_catalog only, where nobody but a superuser can put
//! another in their place; "denied" is said of a name in any schema.

/// Volatile functions of pg_catalog that read or compute and change nothing that outlives the session.
const HARMLESS: &[(&str, &str)] = &[
    ("clock_timestamp", "reads the clock"),
    ("timeofday", "reads the clock"),
    ("random", "computes"),
    ("random_normal", "computes"),
    ("setseed", "sets this session's own random sequence"),
    ("array_sample", "computes"),
    ("array_shuffle", "computes"),
    ("timezone", "computes from the clock; volatile before version 15"),
    ("gen_random_uuid", "computes"),
    ("uuidv4", "computes"),
    ("uuidv7", "computes"),
    ("current_query", "reads this session's own text"),
    ("currval", "reads what this session drew before"),
    ("lastval", "reads what this session drew before"),
    ("pg_sequence_last_value", "reads a sequence; the view pg_sequences uses it"),
    ("pg_get_sequence_data", "reads a sequence; pg_dump 18 uses it"),
    ("currtid2", "reads a row's newest place; the ODBC driver uses it"),
    ("pg_advisory_unlock", "gives back a lock of this session"),
    ("pg_advisory_unlock_shared", "gives back a lock of this session"),
    ("pg_advisory_unlock_all", "gives back this session's locks; asyncpg sends it at each release"),
    ("lo_get", "reads a large object"),
    ("pg_blocking_pids", "reads the lock table"),
    ("pg_safe_snapshot_blocking_pids", "reads the lock table"),
    ("pg_lock_status", "reads the lock table; the view pg_locks"),
    ("pg_isolation_test_session_is_blocked", "reads the lock table"),
    ("pg_prepared_xact", "reads; the view pg_prepared_xacts"),
    ("pg_collation_actual_version", "asks the operating system"),
    ("pg_database_collation_actual_version", "asks the operating system"),
    ("pg_control_checkpoint", "reads the control file"),
    ("pg_control_init", "reads the control file"),
    ("pg_control_recovery", "reads the control file"),
    ("pg_control_system", "reads the control file"),
    ("pg_current_logfile", "reads a name"),
    ("pg_current_wal_flush_lsn", "reads a position"),
    ("pg_current_wal_insert_lsn", "reads a position"),
    ("pg_current_wal_lsn", "reads a position"),
    ("pg_last_wal_receive_lsn", "reads a position"),
    ("pg_last_wal_replay_lsn", "reads a position"),
    ("pg_last_xact_replay_timestamp", "reads a time"),
    ("pg_last_committed_xact", "reads"),
    ("pg_is_in_recovery", "reads a flag; drivers look for a primary with it"),
    ("pg_is_wal_replay_paused", "reads a flag"),
    ("pg_get_wal_replay_pause_state", "reads a flag"),
    ("pg_get_wal_resource_managers", "reads a list"),
    ("pg_jit_available", "reads a flag"),
    ("pg_backend_pid", "reads a number"),
    ("pg_get_backend_memory_contexts", "reads this session's own memory"),
    ("pg_get_shmem_allocations", "reads"),
    ("pg_get_shmem_allocations_numa", "reads"),
    ("pg_get_multixact_members", "reads"),
    ("pg_get_wait_events", "reads a list"),
    ("pg_get_loaded_modules", "reads a list"),
    ("pg_get_aios", "reads"),
    ("pg_get_wal_summarizer_state", "reads"),
    ("pg_available_wal_summaries", "reads a list"),
    ("pg_is_in_backup", "reads a flag"),
    ("pg_notification_queue_usage", "reads"),
    ("pg_show_replication_origin_status", "reads; the view pg_replication_origin_status"),
    ("pg_partition_ancestors", "reads the catalogue"),
    ("pg_partition_tree", "reads the catalogue"),
    ("pg_database_size", "adds up file sizes"),
    ("pg_indexes_size", "adds up file sizes"),
    ("pg_relation_size", "adds up file sizes"),
    ("pg_table_size", "adds up file sizes"),
    ("pg_tablespace_size", "adds up file sizes"),
    ("pg_total_relation_size", "adds up file sizes"),
    ("pg_stat_clear_snapshot", "drops this session's own copy of the statistics"),
    ("pg_stat_have_stats", "reads statistics"),
    ("pg_xact_commit_timestamp", "reads"),
    ("pg_xact_commit_timestamp_origin", "reads"),
    ("pg_xact_status", "reads"),
    ("txid_status", "reads"),
    ("bernoulli", "TABLESAMPLE reads a part of a table"),
    ("system", "TABLESAMPLE reads a part of a table"),
];

/// Beginnings of names in pg_catalog that are harmless altogether.
const HARMLESS_PREFIXES: &[(&str, &str)] =
    &[("pg_stat_get_", "reads statistics; resetting is pg_stat_reset…")];

const RUNS_SQL: &str = "it runs SQL from a text or reads tables by name";
const TRANSACTION_ID: &str = "it assigns a transaction id, which is a write";
const WAITS: &str = "it only holds a session of the source";
const FILES: &str = "it reads the server's files";
const LARGE_OBJECTS: &str =
    "it works on large objects, which read-only transactions did not protect before version 16";
const LOCKS: &str = "it takes a lock that others wait for";
const SIGNALS: &str = "it acts on other sessions or on the server";
const OUTSIDE: &str = "it reaches other servers";
const SESSION: &str = "it changes settings";

/// Names that are never called through the gateway, however the server marks them.
const DENIED: &[(&str, &str)] = &[
    ("txid_current", TRANSACTION_ID),
    ("pg_current_xact_id", TRANSACTION_ID),
    ("pg_export_snapshot", TRANSACTION_ID),
    ("pg_notify", SIGNALS),
    ("pg_logical_emit_message", "it writes to the log of changes"),
    ("pg_cancel_backend", SIGNALS),
    ("pg_terminate_backend", SIGNALS),
    ("pg_log_backend_memory_contexts", SIGNALS),
    ("pg_reload_conf", SIGNALS),
    ("pg_rotate_logfile", SIGNALS),
    ("pg_promote", SIGNALS),
    ("pg_switch_wal", SIGNALS),
    ("set_config", SESSION),
    ("ts_stat", RUNS_SQL),
    ("ts_rewrite", RUNS_SQL),
    ("xpath_table", RUNS_SQL),
    ("pg_input_is_valid", "it runs the input function of a type that a text names"),
    ("pg_input_error_info", "it runs the input function of a type that a text names"),
    ("loread", LARGE_OBJECTS),
    ("lowrite", LARGE_OBJECTS),
    ("pg_stat_file", FILES),
    ("nextval", "it draws from a sequence"),
    ("setval", "it sets a sequence"),
];

const DENIED_PREFIXES: &[(&str, &str)] = &[
    ("query_to_xml", RUNS_SQL),
    ("cursor_to_xml", RUNS_SQL),
    ("table_to_xml", RUNS_SQL),
    ("schema_to_xml", RUNS_SQL),
    ("database_to_xml", RUNS_SQL),
    ("crosstab", RUNS_SQL),
    ("connectby", RUNS_SQL),
    ("dblink", OUTSIDE),
    ("postgres_fdw_", OUTSIDE),
    ("pg_sleep", WAITS),
    ("lo_c", LARGE_OBJECTS),
    ("lo_e", LARGE_OBJECTS),
    ("lo_from", LARGE_OBJECTS),
    ("lo_i", LARGE_OBJECTS),
    ("lo_l", LARGE_OBJECTS),
    ("lo_m", LARGE_OBJECTS),
    ("lo_o", LARGE_OBJECTS),
    ("lo_p", LARGE_OBJECTS),
    ("lo_t", LARGE_OBJECTS),
    ("lo_u", LARGE_OBJECTS),
    ("pg_read_", FILES),
    ("pg_ls_", FILES),
    ("pg_file_", FILES),
    ("pg_advisory_lock", LOCKS),
    ("pg_advisory_xact_lock", LOCKS),
    ("pg_try_advisory", LOCKS),
    ("pg_replication_", SIGNALS),
    ("pg_logical_slot_", SIGNALS),
    ("pg_create_", SIGNALS),
    ("pg_drop_", SIGNALS),
    ("pg_copy_", SIGNALS),
    ("pg_backup_", SIGNALS),
    ("pg_start_backup", SIGNALS),
    ("pg_stop_backup", SIGNALS),
    ("pg_wal_replay_", SIGNALS),
    ("pg_stat_reset", SIGNALS),
    ("pg_restore_", SIGNALS),
    ("pg_clear_", SIGNALS),
    ("binary_upgrade_", SIGNALS),
];

fn reason(
    exact: &[(&str, &'static str)],
    prefixes: &[(&str, &'static str)],
    name: &str,
) -> Option<&'static str> {
    exact
        .iter()
        .find(|(known, _)| *known == name)
        .or_else(|| prefixes.iter().find(|(prefix, _)| name.starts_with(prefix)))
        .map(|(_, reason)| *reason)
}

/// Why a volatile function is harmless all the same.
pub fn harmless(schema: &str, name: &str) -> Option<&'static str> {
    if schema != "pg_catalog" {
        return None;
    }
    reason(HARMLESS, HARMLESS_PREFIXES, name)
}

/// Why a function of this name is refused whatever its volatility.
pub fn denied(name: &str) -> Option<&'static str> {
    reason(DENIED, DENIED_PREFIXES, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_both() {
        assert!(HARMLESS.iter().all(|(name, _)| denied(name).is_none()));
        assert!(DENIED.iter().all(|(name, _)| harmless("pg_catalog", name).is_none()));
        assert!(harmless("public", "random").is_none());
    }
}
