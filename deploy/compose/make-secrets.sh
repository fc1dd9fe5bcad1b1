#!/bin/sh
# Makes the tour's passwords once: the source's superuser and reader, Trino's login at the gateway, and the
# gateway's users file. The volume is the tour's own; a production set-up gives each part only its own secret.
set -eu
cd /secrets
umask 022
for name in superuser reader trino; do
    if [ ! -s "$name-password" ]; then
        head -c 24 /dev/urandom | base64 | tr -d '+/=\n' >"$name-password"
    fi
done
fedgate users verifier trino <trino-password >users.txt
