#!/usr/bin/env bash
# Installs MedMAP-FL into .venv of this folder, in the versions of constraints.txt. Needs Python 3.11 or later, and pip's index.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "install.sh: $PYTHON is older than 3.11: PYTHON=/path/to/python3.11 ./install.sh" >&2; exit 1; }
"$PYTHON" -m venv .venv || { echo "install.sh: no venv module: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
.venv/bin/python -m pip install -q --upgrade "pip>=25"
.venv/bin/python -m pip install -q -c constraints.txt "@package@"
.venv/bin/medmap-client --help >/dev/null
echo "installed: $PWD/.venv"
