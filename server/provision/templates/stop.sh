#!/usr/bin/env bash
# Ends what ./start.sh started, and waits until it has ended.
. "$(dirname "$(readlink -f "$0")")/common.sh"
running || { rm -f kit.pid; echo "it does not run"; exit 0; }
end "$(cat kit.pid)"
echo "stopped"
