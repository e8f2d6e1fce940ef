#!/usr/bin/env bash
# Prints a systemd unit of this kit with the folder and user of this machine: ./service.sh UNIT | sudo tee /etc/systemd/system/UNIT
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
[ -f "systemd/${1:-}" ] || { echo "service.sh: name one of: $(ls systemd | tr '\n' ' ')" >&2; exit 1; }
case $PWD in *[[:space:]\|\&]*) echo "service.sh: move the kit to a folder without spaces in its path" >&2; exit 1 ;; esac
sed -e "s|KIT_FOLDER|$PWD|g" -e "s|KIT_USER|$(id -un)|g" "systemd/$1"
