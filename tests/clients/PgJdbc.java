// PgJDBC: metadata calls, fetch size, named statements, batches, cancel, savepoints; then every write.
//
// Run by the Java launcher from source. Prints the transcript that transcript.py describes.

import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.ParameterMetaData;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PSQLException;

public class PgJdbc {
    static final String MARK = "fedgate_trace_marker";
    static final String INSERT = "INSERT INTO survey.scratch VALUES (1, '" + MARK + "')";
    static final String PART = System.getenv().getOrDefault("FEDGATE_PART", "all");
    static final boolean DIRECT = System.getenv().getOrDefault("FEDGATE_TARGET", "direct").equals("direct");

    interface Call {
        Object run() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        if (PART.equals("tls")) {
            tls();
            return;
        }
        if (!PART.equals("writes")) {
            metadata();
            reads();
        }
        if (!PART.equals("reads")) {
            writes();
        }
    }

    static Connection connect(String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv().getOrDefault("PGPASSWORD", ""));
        properties.setProperty("connectTimeout", "20");
        for (int i = 0; i < options.length; i += 2) {
            properties.setProperty(options[i], options[i + 1]);
        }
        return DriverManager.getConnection("jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"),
            properties);
    }

    /** FEDGATE_CA is the file of the authority that signed the gateway's certificate. */
    static void tls() {
        String ca = System.getenv("FEDGATE_CA");
        for (String[] options : new String[][] {
            {"sslmode", "verify-full"},
            {"sslmode", "verify-full", "channelBinding", "require"},
            {"sslmode", "verify-full", "sslNegotiation", "direct"},
            {"sslmode", "require"},
        }) {
            read(String.join(" ", options), () -> {
                String[] all = java.util.Arrays.copyOf(options, options.length + 2);
                all[options.length] = "sslrootcert";
                all[options.length + 1] = ca;
                try (Connection db = connect(all)) {
                    return List.of(query(db, "SELECT count(*) FROM survey.building"), attempt(() -> cancel(db)));
                }
            });
        }
    }

    static void metadata() throws Exception {
        try (Connection db = connect()) {
            DatabaseMetaData about = db.getMetaData();
            read("product", () -> List.of(about.getDatabaseProductVersion(), about.getDatabaseMajorVersion(), about.getDefaultTransactionIsolation()));
            read("catalog and schema", () -> List.of(db.getCatalog(), db.getSchema(), db.isReadOnly()));
            read("getSchemas", () -> rows(about.getSchemas()));
            read("getSchemas like", () -> rows(about.getSchemas(null, "sur%")));
            read("getCatalogs", () -> rows(about.getCatalogs()).contains(List.of(db.getCatalog())));
            read("getTableTypes", () -> rows(about.getTableTypes()));
            read("getTables", () -> rows(about.getTables(null, "survey", "%", null)));
            read("getTables of types", () -> rows(about.getTables(null, null, "b%", new String[] {"TABLE", "VIEW", "PARTITIONED TABLE", "FOREIGN TABLE"})));
            read("getTables of system", () -> rows(about.getTables(null, "pg_catalog", "pg_cl%", new String[] {"SYSTEM TABLE"})));
            read("getColumns", () -> rows(about.getColumns(null, "survey", "%", "%")));
            read("getColumns of one", () -> rows(about.getColumns(db.getCatalog(), "survey", "building", "Lab%")));
            read("getPrimaryKeys", () -> rows(about.getPrimaryKeys(null, "survey", "visit")));
            read("getPrimaryUniqueKeys", () -> rows(about.getBestRowIdentifier(null, "survey", "building", DatabaseMetaData.bestRowSession, true)));
            read("getIndexInfo", () -> rows(about.getIndexInfo(null, "survey", "building", false, true)));
            read("getIndexInfo unique", () -> rows(about.getIndexInfo(null, "survey", "district", true, false)));
            read("getImportedKeys", () -> rows(about.getImportedKeys(null, "survey", "building")));
            read("getExportedKeys", () -> rows(about.getExportedKeys(null, "survey", "district")));
            read("getCrossReference", () -> rows(about.getCrossReference(null, "survey", "district", null, "survey", "building")));
            read("getFunctions", () -> rows(about.getFunctions(null, "survey", "%")));
            read("getFunctionColumns", () -> rows(about.getFunctionColumns(null, "survey", "%", "%")));
            read("getProcedures", () -> rows(about.getProcedures(null, "survey", "%")));
            read("getProcedureColumns", () -> rows(about.getProcedureColumns(null, "survey", "%", "%")));
            read("getTypeInfo", () -> rows(about.getTypeInfo()).size() > 50);
            read("getUDTs", () -> rows(about.getUDTs(null, "survey", "%", null)));
            read("getTablePrivileges", () -> rows(about.getTablePrivileges(null, "survey", "district")));
            read("getColumnPrivileges", () -> rows(about.getColumnPrivileges(null, "survey", "district", "%")));
            read("getVersionColumns", () -> rows(about.getVersionColumns(null, "survey", "district")));
            read("getClientInfoProperties", () -> rows(about.getClientInfoProperties()));
            read("getSQLKeywords", () -> about.getSQLKeywords().length() > 100);
            read("getMaxColumnNameLength", () -> about.getMaxColumnNameLength());
            read("getMaxIndexKeys", () -> about.getMaxColumnsInIndex());
            read("getPseudoColumns", () -> rows(about.getPseudoColumns(null, "survey", "%", "%")));
        }
    }

    static void reads() throws Exception {
        try (Connection db = connect()) {
            read("statement", () -> query(db, "SELECT id, code, name FROM survey.district ORDER BY id"));
            read("all types", () -> query(db, "SELECT * FROM survey.building WHERE id IN (1, 2)"));
            read("several statements", () -> several(db, "SELECT 1; SELECT 2; SELECT 3"));
            read("empty", () -> several(db, ""));
            read("escape", () -> query(db, "SELECT {fn ucase('a')}, {d '2024-01-01'}, {fn now()} IS NOT NULL"));
            read("prepared, until it is named", () -> named(db));
            read("parameters", () -> parameters(db));
            read("binary transfer", () -> binary(db));
            read("parameter metadata", () -> described(db));
            read("result metadata", () -> columns(db));
            read("isValid", () -> List.of(db.isValid(5), db.isValid(0)));
            read("warnings", () -> String.valueOf(db.getWarnings()));
            read("setSchema", () -> { db.setSchema("survey"); Object got = List.of(db.getSchema(), query(db, "SELECT count(*) FROM district")); db.setSchema("public"); return got; });
            read("client info", () -> { db.setClientInfo("ApplicationName", "survey tool"); return db.getClientInfo("ApplicationName"); });
            read("cancel", () -> cancel(db));
            read("query timeout", () -> timeout(db));
            read("after cancel", () -> query(db, "SELECT 1"));
            read("batch of reads", () -> batchOfReads(db));
            read("copy out", () -> copyOut(db));
            read("array", () -> array(db));
            read("enum", () -> enumerated(db));
            read("large object", () -> query(db, "SELECT length(lo_get(54321))"));
            read("max rows", () -> maxRows(db));
            read("call of a function", () -> call(db));
            read("error", () -> query(db, "SELECT 1 / 0"));
            read("unknown column", () -> query(db, "SELECT no_such_column"));
            read("after the errors", () -> query(db, "SELECT 2"));
        }
        read("fetch size", PgJdbc::fetchSize);
        read("fetch size with a cursor left open", PgJdbc::leftOpen);
        read("read only", PgJdbc::readOnly);
        read("isolation levels", PgJdbc::isolation);
        read("savepoints", PgJdbc::savepoints);
        read("autosave always", PgJdbc::autosave);
        read("autosave conservative", () -> prefer("autosave", "conservative"));
        for (String mode : List.of("simple", "extended", "extendedForPrepared", "extendedCacheEverything")) {
            read("query mode " + mode, () -> prefer("preferQueryMode", mode));
        }
        read("prepare threshold 1", () -> prefer("prepareThreshold", "1"));
        read("prepare threshold -1, binary at once", () -> prefer("prepareThreshold", "-1"));
        read("statement cache of 2", () -> cache());
        read("current schema", () -> { try (Connection db = connect("currentSchema", "survey")) { return query(db, "SELECT count(*) FROM district"); } });
        read("application name", () -> { try (Connection db = connect("ApplicationName", "x y")) { return query(db, "SELECT 1"); } });
        read("assume minimum version", () -> { try (Connection db = connect("assumeMinServerVersion", "9.0")) { return query(db, "SELECT 1"); } });
        read("read only connection", () -> { try (Connection db = connect("readOnly", "true", "readOnlyMode", "always")) { return query(db, "SHOW transaction_read_only"); } });
        read("ssl modes", () -> { try (Connection db = connect("sslmode", "disable", "gssEncMode", "disable")) { return query(db, "SELECT 1"); } });
        read("options", () -> { try (Connection db = connect("options", "-c search_path=survey -c statement_timeout=60000")) { return query(db, "SHOW search_path"); } });
    }

    static Object named(Connection db) throws SQLException {
        List<Object> got = new ArrayList<>();
        try (PreparedStatement statement = db.prepareStatement("SELECT name FROM survey.district WHERE id = ?")) {
            for (int i = 1; i < 13; i++) {
                statement.setInt(1, i);
                try (ResultSet found = statement.executeQuery()) {
                    found.next();
                    got.add(found.getString(1));
                }
            }
        }
        got.add(query(db, "SELECT count(*) > 0 FROM pg_prepared_statements"));
        return got;
    }

    static Object parameters(Connection db) throws SQLException {
        List<Object> got = new ArrayList<>();
        String sql = "SELECT ?::text, ?::int8, ?::numeric, ?::date, ?::timestamptz, ?::bytea, ?::bool, ?::float8";
        try (PreparedStatement statement = db.prepareStatement(sql)) {
            for (int i = 0; i < 7; i++) {
                statement.setString(1, i == 0 ? null : "ü'" + i);
                statement.setLong(2, 1L << 40);
                statement.setBigDecimal(3, new java.math.BigDecimal("12.50"));
                statement.setDate(4, java.sql.Date.valueOf("2024-02-29"));
                statement.setObject(5, java.time.OffsetDateTime.parse("2024-02-29T12:00:00Z"));
                statement.setBytes(6, new byte[] {0, 1, -1});
                statement.setBoolean(7, true);
                statement.setDouble(8, 0.1);
                got.add(rows(statement.executeQuery()));
            }
        }
        return got;
    }

    static Object binary(Connection db) throws SQLException {
        org.postgresql.PGStatement pg;
        try (PreparedStatement statement = db.prepareStatement("SELECT id, height, uid, seen, built FROM survey.building WHERE id <= ? ORDER BY id")) {
            pg = statement.unwrap(org.postgresql.PGStatement.class);
            pg.setPrepareThreshold(1);
            statement.setInt(1, 5);
            statement.executeQuery().close();
            return rows(statement.executeQuery());
        }
    }

    static Object described(Connection db) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement("SELECT * FROM survey.building WHERE id = ? AND \"Label\" LIKE ?")) {
            ParameterMetaData parameters = statement.getParameterMetaData();
            ResultSetMetaData result = statement.getMetaData();
            return List.of(parameters.getParameterCount(), parameters.getParameterTypeName(1), parameters.getParameterTypeName(2), result.getColumnCount());
        }
    }

    static Object columns(Connection db) throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Statement statement = db.createStatement();
             ResultSet found = statement.executeQuery("SELECT b.*, d.name FROM survey.building b JOIN survey.district d ON d.id = district_id LIMIT 1")) {
            ResultSetMetaData about = found.getMetaData();
            for (int i = 1; i <= about.getColumnCount(); i++) {
                got.add(List.of(about.getColumnLabel(i), about.getColumnTypeName(i), about.getTableName(i), about.isNullable(i), about.isAutoIncrement(i),
                    about.getPrecision(i)));
            }
        }
        return got;
    }

    static final String LONG = "SELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value > 3 AND a.remark <> b.remark";

    static Object cancel(Connection db) throws Exception {
        ScheduledExecutorService later = Executors.newScheduledThreadPool(1);
        try (Statement statement = db.createStatement()) {
            later.schedule(() -> { statement.cancel(); return null; }, 300, TimeUnit.MILLISECONDS);
            return rows(statement.executeQuery(LONG));
        } finally {
            later.shutdown();
            later.awaitTermination(10, TimeUnit.SECONDS);
        }
    }

    static Object timeout(Connection db) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.setQueryTimeout(1);
            return rows(statement.executeQuery(LONG));
        }
    }

    static Object batchOfReads(Connection db) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.addBatch("SET TIME ZONE 'UTC'");
            statement.addBatch("SET search_path = public");
            return statement.executeBatch().length;
        }
    }

    static Object copyOut(Connection db) throws Exception {
        StringWriter out = new StringWriter();
        CopyManager copy = db.unwrap(PGConnection.class).getCopyAPI();
        long count = copy.copyOut("COPY (SELECT id, code FROM survey.district ORDER BY id) TO STDOUT", out);
        return List.of(count, out.toString());
    }

    static Object array(Connection db) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement("SELECT id FROM survey.building WHERE id = ANY(?) ORDER BY id")) {
            statement.setArray(1, db.createArrayOf("int8", new Object[] {4L, 5L, 6L}));
            return rows(statement.executeQuery());
        }
    }

    static Object enumerated(Connection db) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement("SELECT count(*) FROM survey.visit WHERE state = ?::survey.state")) {
            statement.setString(1, "done");
            return rows(statement.executeQuery());
        }
    }

    static Object maxRows(Connection db) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.setMaxRows(7);
            return rows(statement.executeQuery("SELECT id FROM survey.reading ORDER BY id"));
        }
    }

    static Object call(Connection db) throws SQLException {
        try (java.sql.CallableStatement statement = db.prepareCall("{? = call lower(?)}")) {
            statement.registerOutParameter(1, java.sql.Types.VARCHAR);
            statement.setString(2, "ABC");
            statement.execute();
            return statement.getString(1);
        }
    }

    static Object fetchSize() throws SQLException {
        try (Connection db = connect()) {
            db.setAutoCommit(false);
            long sum = 0;
            try (PreparedStatement statement = db.prepareStatement("SELECT id, remark FROM survey.reading WHERE id <= ? ORDER BY id")) {
                statement.setFetchSize(333);
                for (int run = 0; run < 7; run++) {
                    statement.setInt(1, 5000);
                    try (ResultSet found = statement.executeQuery()) {
                        while (found.next()) {
                            sum += found.getInt(1);
                        }
                    }
                }
            }
            db.commit();
            return sum;
        }
    }

    static Object leftOpen() throws SQLException {
        try (Connection db = connect()) {
            db.setAutoCommit(false);
            Statement one = db.createStatement();
            Statement two = db.createStatement();
            one.setFetchSize(10);
            two.setFetchSize(20);
            ResultSet left = one.executeQuery("SELECT id FROM survey.reading ORDER BY id");
            ResultSet right = two.executeQuery("SELECT id FROM survey.reading ORDER BY id DESC");
            long sum = 0;
            for (int i = 0; i < 55; i++) {
                left.next();
                right.next();
                sum += left.getInt(1) + right.getInt(1);
            }
            left.close();
            for (int i = 0; i < 55; i++) {
                right.next();
                sum += right.getInt(1);
            }
            db.rollback();
            return sum;
        }
    }

    static Object readOnly() throws SQLException {
        try (Connection db = connect()) {
            db.setReadOnly(true);
            Object first = query(db, "SHOW transaction_read_only");
            db.setAutoCommit(false);
            Object second = query(db, "SHOW transaction_read_only");
            db.commit();
            return List.of(first, second, db.isReadOnly());
        }
    }

    static Object isolation() throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Connection db = connect()) {
            for (int level : new int[] {Connection.TRANSACTION_SERIALIZABLE, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_READ_COMMITTED}) {
                db.setTransactionIsolation(level);
                db.setAutoCommit(false);
                got.add(query(db, "SHOW transaction_isolation"));
                got.add(db.getTransactionIsolation());
                db.rollback();
                db.setAutoCommit(true);
            }
        }
        return got;
    }

    static Object savepoints() throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Connection db = connect()) {
            db.setAutoCommit(false);
            got.add(query(db, "SELECT 1"));
            Savepoint here = db.setSavepoint("here");
            got.add(attempt(() -> query(db, "SELECT 1 / 0")));
            got.add(attempt(() -> query(db, "SELECT 2")));
            db.rollback(here);
            got.add(query(db, "SELECT 3"));
            db.releaseSavepoint(here);
            db.commit();
        }
        return got;
    }

    static Object autosave() throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Connection db = connect("autosave", "always")) {
            db.setAutoCommit(false);
            for (int i = 0; i < 8; i++) {
                got.add(query(db, "SELECT " + i));
                got.add(attempt(() -> query(db, "SELECT no_such_column")));
            }
            got.add(query(db, "SELECT 'still'"));
            db.commit();
        }
        return got;
    }

    static Object prefer(String key, String value) throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Connection db = connect(key, value)) {
            for (int i = 0; i < 8; i++) {
                got.add(query(db, "SELECT code FROM survey.district WHERE id = 3"));
                try (PreparedStatement statement = db.prepareStatement("SELECT code FROM survey.district WHERE id = ? AND name <> ?")) {
                    statement.setInt(1, i + 1);
                    statement.setString(2, "x'");
                    got.add(rows(statement.executeQuery()));
                }
            }
            got.add(several(db, "SELECT 1; SELECT 2"));
        }
        return got;
    }

    static Object cache() throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Connection db = connect("preparedStatementCacheQueries", "2", "prepareThreshold", "1")) {
            for (int round = 0; round < 3; round++) {
                for (int i = 1; i < 6; i++) {
                    try (PreparedStatement statement = db.prepareStatement("SELECT code, " + i + " FROM survey.district WHERE id = ?")) {
                        statement.setInt(1, i);
                        got.add(rows(statement.executeQuery()));
                    }
                }
            }
        }
        return got;
    }

    // name, statement, SQLSTATE, guarded: as in transcript.py
    static final String[][] WRITES = {
        {"insert", INSERT, "25006", ""},
        {"update", "UPDATE survey.building SET \"Label\" = '" + MARK + "' WHERE id = 1", "25006", ""},
        {"delete", "DELETE FROM survey.scratch WHERE body <> '" + MARK + "'", "25006", ""},
        {"truncate", "TRUNCATE survey.scratch /* " + MARK + " */", "25006", ""},
        {"create table", "CREATE TABLE survey." + MARK + " (id integer)", "25006", ""},
        {"create table as", "CREATE TABLE survey." + MARK + " AS SELECT 1 AS id", "25006", ""},
        {"create temporary table", "CREATE TEMP TABLE " + MARK + " (id integer)", "25006", "guarded"},
        {"drop table", "DROP TABLE survey.scratch /* " + MARK + " */", "25006", ""},
        {"comment", "COMMENT ON TABLE survey.scratch IS '" + MARK + "'", "25006", ""},
        {"data-modifying with", "WITH w AS (INSERT INTO survey.scratch VALUES (1, '" + MARK + "') RETURNING id) SELECT * FROM w", "25006", ""},
        {"row lock", "SELECT id FROM survey.building WHERE id = 1 FOR UPDATE /* " + MARK + " */", "25006", ""},
        {"volatile function", "SELECT survey.store('" + MARK + "')", "42501", "guarded"},
        {"nextval", "SELECT nextval('survey.ticket') /* " + MARK + " */", "42501", "guarded"},
        {"leave read-only", "SET default_transaction_read_only = off /* " + MARK + " */", "25006", "guarded"},
        {"notify", "NOTIFY " + MARK, "25006", "guarded"},
        {"do block", "DO $$ BEGIN INSERT INTO survey.scratch VALUES (1, '" + MARK + "'); END $$", "25006", ""},
        {"call", "CALL survey.clear_scratch() /* " + MARK + " */", "25006", ""},
        {"stacked", "SELECT 1; " + INSERT, "25006", ""},
        {"stacked behind a commit", "COMMIT; " + INSERT, "25006", ""},
    };

    static void writes() throws Exception {
        for (String mode : List.of("extended", "simple")) {
            try (Connection db = connect("preferQueryMode", mode)) {
                for (String[] write : WRITES) {
                    refused(mode + ": " + write[0], write[2], !write[3].isEmpty(), () -> several(db, write[1]));
                }
                read(mode + ": after all that", () -> query(db, "SELECT 1"));
            }
        }
        try (Connection db = connect()) {
            refused("prepared insert", "25006", false, () -> insert(db, "INSERT INTO survey.scratch VALUES (?, ?)"));
            for (int i = 0; i < 7; i++) {
                refused("prepared insert, time " + i, "25006", false, () -> insert(db, "INSERT INTO survey.scratch VALUES (?, ?)"));
            }
            refused("generated keys", "25006", false, () -> {
                try (PreparedStatement statement = db.prepareStatement("INSERT INTO survey.scratch VALUES (?, ?)", Statement.RETURN_GENERATED_KEYS)) {
                    statement.setInt(1, 1);
                    statement.setString(2, MARK);
                    return statement.executeUpdate();
                }
            });
            refused("metadata of an insert", "25006", true, () -> {
                try (PreparedStatement statement = db.prepareStatement("INSERT INTO survey.scratch VALUES (?, '" + MARK + "') RETURNING id")) {
                    return statement.getMetaData().getColumnCount();
                }
            });
            refused("batch", "25006", false, () -> batch(db));
            refused("statement batch", "25006", false, () -> statementBatch(db));
            refused("copy in", "25006", false, () -> db.unwrap(PGConnection.class).getCopyAPI()
                .copyIn("COPY survey.scratch FROM STDIN", new java.io.StringReader("1\t" + MARK + "\n")));
            refused("updatable result set", "25006", false, () -> updatable(db));
            refused("large object API", null, true, () -> {
                db.setAutoCommit(false);
                try {
                    return db.unwrap(PGConnection.class).getLargeObjectAPI().createLO();
                } finally {
                    db.rollback();
                    db.setAutoCommit(true);
                }
            });
            read("after all that", () -> query(db, "SELECT 1"));
            read("refused inside a transaction", () -> inTransaction(db));
            read("refused, rolled back to a savepoint", () -> inSavepoint(db));
        }
        try (Connection db = connect("reWriteBatchedInserts", "true")) {
            refused("rewritten batch", "25006", false, () -> batch(db));
            db.setAutoCommit(false);
            refused("rewritten batch in a transaction", "25006", false, () -> batch(db));
            read("after it", () -> attempt(() -> query(db, "SELECT 1")));
            db.rollback();
            read("after the rollback", () -> query(db, "SELECT 1"));
        }
        try (Connection db = connect("autosave", "always")) {
            db.setAutoCommit(false);
            read("autosave and a refused insert", () -> {
                Object before = query(db, "SELECT 1");
                Object failed = attempt(() -> several(db, INSERT));
                Object after = query(db, "SELECT 2");
                db.commit();
                return List.of(before, failed, after);
            });
        }
        try (Connection db = connect()) {
            refused("setReadOnly(false) and an insert", "25006", false, () -> {
                db.setReadOnly(false);
                return several(db, INSERT);
            });
        }
        refused("options that open a transaction for writes", null, true, () -> {
            try (Connection db = connect("options", "-c default_transaction_read_only=off")) {
                return query(db, "SELECT 1");
            }
        });
    }

    static Object insert(Connection db, String sql) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement(sql)) {
            statement.setInt(1, 1);
            statement.setString(2, MARK);
            return statement.executeUpdate();
        }
    }

    static Object batch(Connection db) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement("INSERT INTO survey.scratch VALUES (?, ?)")) {
            for (int i = 0; i < 20; i++) {
                statement.setInt(1, i);
                statement.setString(2, MARK);
                statement.addBatch();
            }
            return statement.executeBatch().length;
        }
    }

    static Object statementBatch(Connection db) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.addBatch("SET TIME ZONE 'UTC'");
            statement.addBatch(INSERT);
            statement.addBatch("UPDATE survey.scratch SET body = '" + MARK + "'");
            return statement.executeBatch().length;
        }
    }

    static Object updatable(Connection db) throws SQLException {
        try (Statement statement = db.createStatement(ResultSet.TYPE_SCROLL_SENSITIVE, ResultSet.CONCUR_UPDATABLE);
             ResultSet found = statement.executeQuery("SELECT id, name FROM survey.district WHERE id = 1")) {
            found.next();
            found.updateString("name", MARK);
            found.updateRow();
            return "updated";
        }
    }

    static Object inTransaction(Connection db) throws SQLException {
        List<Object> got = new ArrayList<>();
        db.setAutoCommit(false);
        got.add(query(db, "SELECT 1"));
        got.add(attempt(() -> several(db, INSERT)));
        got.add(attempt(() -> query(db, "SELECT 2")));
        got.add(attempt(() -> insert(db, "INSERT INTO survey.scratch VALUES (?, ?)")));
        db.rollback();
        got.add(query(db, "SELECT 3"));
        got.add(attempt(() -> several(db, INSERT)));
        got.add(attempt(() -> { db.commit(); return "committed"; }));
        got.add(attempt(() -> { db.rollback(); return "rolled back"; }));
        db.setAutoCommit(true);
        got.add(query(db, "SELECT 4"));
        return got;
    }

    static Object inSavepoint(Connection db) throws SQLException {
        List<Object> got = new ArrayList<>();
        db.setAutoCommit(false);
        Savepoint here = db.setSavepoint();
        got.add(attempt(() -> several(db, INSERT)));
        db.rollback(here);
        got.add(query(db, "SELECT 5"));
        db.commit();
        db.setAutoCommit(true);
        return got;
    }

    // From here on: how a transcript is written.

    static Object query(Connection db, String sql) throws SQLException {
        try (Statement statement = db.createStatement()) {
            return rows(statement.executeQuery(sql));
        }
    }

    static Object several(Connection db, String sql) throws SQLException {
        List<Object> got = new ArrayList<>();
        try (Statement statement = db.createStatement()) {
            boolean isRows = statement.execute(sql);
            while (isRows || statement.getUpdateCount() >= 0) {
                got.add(isRows ? rows(statement.getResultSet()) : statement.getUpdateCount());
                isRows = statement.getMoreResults();
            }
        }
        return got;
    }

    static List<Object> rows(ResultSet found) throws SQLException {
        List<Object> got = new ArrayList<>();
        try (found) {
            int width = found.getMetaData().getColumnCount();
            while (found.next()) {
                List<Object> row = new ArrayList<>();
                for (int i = 1; i <= width; i++) {
                    byte[] raw = found.getMetaData().getColumnType(i) == java.sql.Types.BINARY ? found.getBytes(i) : null;
                    row.add(raw == null ? found.getString(i) : java.util.HexFormat.of().formatHex(raw));
                }
                got.add(row);
            }
        }
        return got;
    }

    static SQLException cause(Exception error) {
        for (Throwable at = error; at != null; at = at.getCause()) {
            if (at instanceof java.sql.BatchUpdateException batch && batch.getNextException() != null) {
                return batch.getNextException();
            }
            if (at instanceof PSQLException found) {
                return found;
            }
        }
        return error instanceof SQLException found ? found : null;
    }

    static String message(Exception error) {
        SQLException found = cause(error);
        if (found instanceof PSQLException server && server.getServerErrorMessage() != null) {
            return server.getServerErrorMessage().getMessage();
        }
        return String.valueOf(error.getMessage()).split("\n")[0];
    }

    static Object attempt(Call call) throws SQLException {
        try {
            return call.run();
        } catch (Exception error) {
            SQLException found = cause(error);
            return List.of(found == null ? error.getClass().getName() : String.valueOf(found.getSQLState()), message(error));
        }
    }

    static void read(String step, Call call) {
        StringBuilder out = new StringBuilder("{\"step\": ").append(json(step));
        finish(out, call);
    }

    static void refused(String step, String want, boolean guarded, Call call) {
        if (guarded && DIRECT) {
            return;
        }
        StringBuilder out = new StringBuilder("{\"step\": ").append(json(step)).append(", \"want\": ").append(json(want))
            .append(", \"guarded\": ").append(guarded);
        finish(out, call);
    }

    static void finish(StringBuilder out, Call call) {
        try {
            Object value = call.run();
            out.append(", \"value\": ").append(json(value));
        } catch (Exception error) {
            SQLException found = cause(error);
            String code = found == null ? error.getClass().getName() : String.valueOf(found.getSQLState());
            out.append(", \"error\": ").append(json(code)).append(", \"message\": ").append(json(message(error)));
        }
        java.io.PrintStream standard = new java.io.PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), true, java.nio.charset.StandardCharsets.UTF_8);
        standard.println(out.append("}"));
    }

    static String json(Object value) {
        if (value == null) {
            return "null";
        }
        if (value instanceof Number || value instanceof Boolean) {
            return value.toString();
        }
        StringBuilder out = new StringBuilder();
        if (value instanceof Iterable<?> items) {
            out.append('[');
            for (Object item : items) {
                out.append(out.length() > 1 ? ", " : "").append(json(item));
            }
            return out.append(']').toString();
        }
        out.append('"');
        for (char c : value.toString().toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }
}
