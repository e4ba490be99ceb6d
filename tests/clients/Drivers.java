import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.Properties;

/**
 * Uses a branch through JDBC, by the connection string that `ardent` prints: JDBC takes role and password apart from the URL.
 *
 * <p>{@code java -cp ... Drivers.java URL}; a table users of 2,000 rows is there. Prints the driver's name.
 */
public class Drivers {
    public static void main(String[] arguments) throws Exception {
        var url = new URI(arguments[0]);
        var who = url.getUserInfo().split(":");
        var properties = new Properties();
        properties.put("user", who[0]);
        properties.put("password", who[1]);
        var place = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath() + "?" + url.getRawQuery();
        try (Connection connection = DriverManager.getConnection(place, properties)) {
            try (var statement = connection.prepareStatement("select name from users where id = ?")) {
                for (int number = 1; number <= 20; number++) {
                    statement.setInt(1, number);
                    ResultSet rows = statement.executeQuery();
                    check(rows.next() && rows.getString(1).equals(String.valueOf(number)), "row " + number);
                }
            }
            connection.setAutoCommit(false);
            try (var statement = connection.prepareStatement("insert into users values (?, ?)")) {
                for (int number = 3001; number <= 3100; number++) {
                    statement.setInt(1, number);
                    statement.setString(2, "new");
                    statement.addBatch();
                }
                check(statement.executeBatch().length == 100, "a batch");
            }
            try (var statement = connection.createStatement()) {
                statement.setFetchSize(50);
                int seen = 0;
                for (ResultSet rows = statement.executeQuery("select * from users"); rows.next();) {
                    seen++;
                }
                check(seen == 2100, "rows by pieces: " + seen);
            }
            connection.rollback();
            try (var statement = connection.createStatement()) {
                statement.executeQuery("select nothing from users");
                check(false, "a mistake is no error");
            } catch (SQLException error) {
                check("42703".equals(error.getSQLState()), error.toString());
            }
            connection.rollback();
            check(connection.getMetaData().getTables(null, "public", "users", null).next(), "metadata");
        }
        System.out.println("jdbc");
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
