#!/bin/sh
# Makes what deploy/compose.yaml mounts as secrets: random passwords and a token, in deploy/secrets, which Git ignores.
# A file that is there stays as it is, so this may run again at any time.
set -eu
cd "$(dirname "$0")"
# Nobody else may enter the folder. The files are readable, because the users inside the containers are not this one.
mkdir -p secrets
chmod 0700 secrets
umask 0022

random() { od -An -N 24 -t x1 /dev/urandom | tr -d ' \n'; }
keep() { [ -s "secrets/$1" ] || printf '%s\n' "$2" > "secrets/$1"; }

keep postgres_password "$(random)"
keep owner_dsn "postgresql://cfo:$(cat secrets/postgres_password)@postgres:5432/invoicing"
keep consumer_dsn "postgresql://cfo_sync_consumer:$(random)@postgres:5432/invoicing"
keep api_dsn "postgresql://cfo_sync_api:$(random)@postgres:5432/invoicing"
keep debezium_password "$(random)"
keep api_token "$(random)"
keep grafana_password "$(random)"
