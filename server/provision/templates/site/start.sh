#!/usr/bin/env bash
# Joins the federation: ./start.sh in the background; ./start.sh --foreground [gate|worker] for systemd and containers.
# The gate (log: node.log) has the key and the way out; the worker (log: worker.log) has the data and trains.
cd "$(dirname "$(readlink -f "$0")")" || exit
unset PYTHONPATH  # the gate runs what is installed here, nothing else
PATH="$PWD/.venv/bin:$PATH"
command -v medmap-client >/dev/null || { echo "start.sh: MedMAP-FL is not installed here: run ./install.sh" >&2; exit 1; }
medmap-client verify . || exit  # before any other script of the kit runs
. ./common.sh
[ -f node.key ] || fail "there is no node.key yet: medmap-client request @site@, and send @site@.csr to the coordinator"
[ -f site.yaml ] || fail "there is no site.yaml yet: cp site.example.yaml site.yaml, and fill it in"
mkdir -p -m 700 gate cache ledger flower  # the worker's unit opens or shuts them by name, and does not start before they are there
[ -s worker.secret ] || head -c 32 /dev/urandom >worker.secret

gate=(medmap-client node site.yaml --superlink "$SUPERLINK" --root-certificates ca.crt --key node.key --port "$RUNTIME_PORT"
  --worker-secret worker.secret)
worker=(env -i "PATH=$PATH" "HOME=$HOME" "FLWR_HOME=$FLWR_HOME" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1)
for name in $WORKER_VARIABLES; do [ -z "${!name:-}" ] || worker+=("$name=${!name}"); done
worker+=(flower-superexec --insecure --runtime-api-address "127.0.0.1:$RUNTIME_PORT" --superexec-auth-secret-file worker.secret)

# Flower runs a bundle as it was once unpacked, without a second look: half, or changed by the work of another bundle.
fresh() { rm -rf "$FLWR_HOME/apps"; }

# Both, until one of them ends or a signal comes. Each is told to end once: Flower takes a second time as "at once", and the
# server would think this site online for a minute more.
both() {
  local code=0 signalled=
  fresh
  trap 'signalled=yes' TERM INT
  "${gate[@]}" &
  "${worker[@]}" >>worker.log 2>&1 &
  wait -n || code=$?
  [ -n "$signalled" ] && [ "$1" = --group ] || kill -TERM $(jobs -pr) 2>/dev/null || true
  while [ -n "$(jobs -pr)" ]; do wait || true; done
  exit "$code"
}

case "${1:-} ${2:-}" in
  "--foreground gate") exec "${gate[@]}" ;;
  "--foreground worker") fresh; exec "${worker[@]}" ;;
  "--foreground " | "--group ") both "$1" ;;  # --group: what ./stop.sh sends reaches all of them
esac
background "SuperNode ID" node.log ./start.sh --group
echo "joined as @site@ (process $(cat kit.pid)); ./stop.sh leaves, node.log and worker.log tell what happens"
