#!/usr/bin/env bash
# Makes sure that what some tests need of the system is there: a browser for the report, nginx for the door of a federation.
# Where it cannot, it says so in one line and succeeds: those tests then skip, with the reason.
set -uo pipefail
PATH=$PATH:/usr/sbin
log=$(mktemp)
trap 'rm -f "$log"' EXIT
refreshed=

# What it is for, the package, and the commands any of which will do.
need() {
    local use=$1 package=$2 name path; shift 2
    for name; do
        if path=$(command -v "$name"); then echo "$use: uses $path"; return; fi
    done
    local as_root=()
    command -v apt-get >/dev/null || { echo "$use: will skip, there is no $package and no apt-get to install it with"; return; }
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || { echo "$use: will skip, no right to install it (apt-get install $package, as root)"; return; }
        as_root=(sudo -n)
    fi
    [ -n "$refreshed" ] || { "${as_root[@]}" apt-get update -qq >"$log" 2>&1; refreshed=yes; }
    # Ubuntu's chromium is a stub for snap, which a container does not have: whether it answers decides.
    if "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >>"$log" 2>&1 &&
        command -v "$1" >/dev/null && { [ "$1" != chromium ] || chromium --version >/dev/null 2>&1; }; then
        echo "$use: installed $(command -v "$1")"
    else
        echo "$use: will skip, apt-get could not install $package: $(tail -n 1 "$log")"
    fi
}

need "browser test" chromium chromium chromium-browser google-chrome
need "federation behind nginx" nginx-light nginx
