#!/usr/bin/env bash
# Flower's command line, pointed at this SuperLink: ./flwr.sh run CHECKOUT medmap, ./flwr.sh list medmap
CALLED_FROM=$PWD
. "$(dirname "$(readlink -f "$0")")/common.sh"
installed
cd "$CALLED_FROM"
exec flwr "$@"
