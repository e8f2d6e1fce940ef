#!/usr/bin/env bash
# Makes sure that Chromium is there for the report's browser test; where it cannot, says so in one line and succeeds.
set -uo pipefail

for name in chromium chromium-browser google-chrome; do
    if path=$(command -v "$name"); then
        echo "browser test: uses $path"
        exit 0
    fi
done
skip() { echo "browser test: will skip, $1"; exit 0; }
command -v apt-get >/dev/null || skip "there is no Chromium and no apt-get to install it with"
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    skip "there is no Chromium and no right to install it (apt-get install chromium, as root)"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Debian calls it chromium. Ubuntu's package of that name is a stub for snap, which a container does not have: `command -v` decides.
if "${as_root[@]}" apt-get update -qq >"$log" 2>&1 &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >>"$log" 2>&1 &&
    command -v chromium >/dev/null && chromium --version >/dev/null 2>&1; then
    echo "browser test: installed $(command -v chromium)"
else
    skip "apt-get could not install Chromium: $(tail -n 1 "$log")"
fi
