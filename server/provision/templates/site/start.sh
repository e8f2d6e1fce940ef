#!/usr/bin/env bash
# Joins the federation: ./start.sh in the background (log: node.log), ./start.sh --foreground for systemd.
. "$(dirname "$(readlink -f "$0")")/common.sh"
installed
medmap-client verify .
[ -f node.key ] || fail "there is no node.key yet: medmap-client request @site@, and send @site@.csr to the coordinator"
[ -f site.yaml ] || fail "there is no site.yaml yet: cp site.example.yaml site.yaml, and fill it in"
command=(flower-supernode --superlink "$SUPERLINK" --root-certificates ca.crt --auth-supernode-private-key node.key
  --port "$RUNTIME_PORT" --node-config "site-file=\"$PWD/site.yaml\"")
[ "${1:-}" = --foreground ] && exec "${command[@]}"
background "SuperNode ID" node.log "${command[@]}"
echo "joined as @site@ (process $(cat kit.pid)); ./stop.sh leaves, node.log tells what happens"
