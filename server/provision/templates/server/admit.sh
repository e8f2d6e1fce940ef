#!/usr/bin/env bash
# Admits the sites whose certificates in nodes/ hold, and shuts out every other one. Run after each change of nodes/, and hourly.
. "$(dirname "$(readlink -f "$0")")/common.sh"
installed
exec medmap-server admit .
