#!/usr/bin/env bash
# Starts the SuperLink: ./start.sh in the background (log: superlink.log), ./start.sh --foreground for systemd.
. "$(dirname "$(readlink -f "$0")")/common.sh"
installed
medmap-client verify .
mkdir -p state flower
cat >flower/config.toml <<EOF
[superlink]
default = "medmap"
[superlink.medmap]
address = "127.0.0.1:$SUPERLINK_PORT"
root-certificates = "$PWD/ca.crt"
EOF
command=(flower-superlink --host 127.0.0.1 --port "$SUPERLINK_PORT" --ssl-certfile server.crt --ssl-keyfile server.key
  --ssl-ca-certfile ca.crt --enable-supernode-auth --database state/state.db --isolation subprocess
  --disable-runtime-dependency-installation)
[ "${1:-}" = --foreground ] && exec "${command[@]}"
background "Uvicorn running" superlink.log "${command[@]}"
./admit.sh
echo "the SuperLink runs (process $(cat kit.pid)); ./stop.sh ends it, superlink.log tells what happens"
