#!/bin/sh
# Gives akko_readonly its password, read from a file and kept out of the statement log.
set -eu
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set=password="$(cat /secrets/reader-password)" <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
ALTER ROLE akko_readonly PASSWORD :'password';
SQL
