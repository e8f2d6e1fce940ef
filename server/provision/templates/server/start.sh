#!/usr/bin/env bash
# Starts the server: ./start.sh [--nginx] in the background (log: superlink.log), ./start.sh --foreground for systemd.
# --nginx starts the door in front of it as well; systemd has a unit of its own for it.
cd "$(dirname "$(readlink -f "$0")")" || exit
PATH="$PWD/.venv/bin:$PATH"
command -v medmap-client >/dev/null || { echo "start.sh: MedMAP-FL is not installed here: run ./install.sh" >&2; exit 1; }
medmap-client verify . || exit  # before any other script of the kit runs
. ./common.sh
[ "${1:-}" = --foreground ] && exec medmap-server up .
background "the server is up" superlink.log medmap-server up . "$@"
grep -e "certificate until" -e "no certificate yet" superlink.log
echo "the SuperLink runs (process $(cat kit.pid)); ./stop.sh ends it, superlink.log tells what happens"
