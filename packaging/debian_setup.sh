#!/bin/sh
# PostgreSQL's server binaries let the database contract suite run against PostgreSQL too. Where they can't be
# installed the suite runs on SQLite alone and says so.
set -eu
if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get -q update >/dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get -q -y install postgresql >/dev/null 2>&1 ||
        echo "note: PostgreSQL could not be installed; its contract tests will be skipped"
else
    echo "note: PostgreSQL's server is not installed; its contract tests will be skipped"
fi
