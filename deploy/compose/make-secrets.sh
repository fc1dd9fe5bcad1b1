#!/bin/sh
# Makes the tour's secrets once: the source's superuser and reader, Trino's login at the gateway, the
# gateway's users file, OPA's token. The volume is the tour's own; a production set-up gives each part only its own secret.
set -eu
cd /secrets
umask 022
for name in superuser reader trino; do
    if [ ! -s "$name-password" ]; then
        head -c 24 /dev/urandom | base64 | tr -d '+/=\n' >"$name-password"
    fi
done
# OPA's token at the gateway, and the keys of an issuer of API tokens: the tour has none.
[ -s fedgate-opa-token ] || head -c 32 /dev/urandom | base64 | tr -d '+/=\n' >fedgate-opa-token
echo '{"keys": []}' >jwks.json
fedgate users verifier trino <trino-password >users.txt
