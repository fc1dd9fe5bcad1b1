import java.sql.DriverManager;
import java.sql.SQLException;

/** Logs in by PgJDBC, whatever the number of SCRAM rounds; one line. */
public class Rounds {
    public static void main(String[] arguments) throws Exception {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/climscore";
        try (var connection = DriverManager.getConnection(url, System.getenv("PGUSER"), System.getenv("PGPASSWORD"));
                var statement = connection.createStatement();
                var rows = statement.executeQuery("SELECT 7")) {
            rows.next();
            System.out.println("pgjdbc: " + (rows.getInt(1) == 7 ? "yes" : "no"));
        } catch (SQLException error) {
            Throwable cause = error;
            while (cause.getCause() != null) cause = cause.getCause();
            System.out.println("pgjdbc: " + error.getMessage() + " / " + cause);
        }
    }
}
