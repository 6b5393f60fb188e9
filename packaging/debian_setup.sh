#!/bin/sh
# What some tests use from Debian: PostgreSQL's server binaries, with which the database contract suite runs against
# PostgreSQL too, and Poppler's pdfsig with NSS's certutil, with which a PDF reader looks at a signed report. Where they
# can't be installed those tests are skipped and say so.
set -eu
wanted=""
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || wanted="postgresql"
command -v pdfsig >/dev/null 2>&1 || wanted="$wanted poppler-utils"
command -v certutil >/dev/null 2>&1 || wanted="$wanted libnss3-tools"
if [ -z "$wanted" ]; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086 - a list of packages
    apt-get -q update >/dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get -q -y install $wanted >/dev/null 2>&1 ||
        echo "note: $wanted could not be installed; the tests that need it will be skipped"
else
    echo "note: $wanted is not installed; the tests that need it will be skipped"
fi
