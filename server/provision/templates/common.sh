# What the kit's scripts share. Settings come from settings.sh; a variable of the environment wins over it.
set -euo pipefail
umask 077
cd "$(dirname "$(readlink -f "$0")")"
. ./settings.sh
export PATH="$PWD/.venv/bin:$PATH" FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

fail() { echo "${0##*/}: $*" >&2; exit 1; }

installed() { command -v medmap-client >/dev/null || fail "MedMAP-FL is not installed here: run ./install.sh"; }

# The process that this kit started, if it is alive: its id is in kit.pid, it is the program, and it works in this folder.
running() {
  local id; [ -f kit.pid ] && id=$(cat kit.pid)
  grep -qa "$PROGRAM" "/proc/${id:-none}/cmdline" 2>/dev/null && [ "$(readlink "/proc/$id/cwd")" = "$PWD" ]
}

# Ends the whole process group of what ./start.sh started, also where its leader is gone; by force after 20 s.
end() {
  local group=$1
  kill -TERM -- "-$group" 2>/dev/null || true
  for _ in $(seq 20); do kill -0 -- "-$group" 2>/dev/null || break; sleep 1; done
  kill -KILL -- "-$group" 2>/dev/null || true
  rm -f kit.pid
}

# In the background, as a process group of its own; waits until the log holds the words, or the process ends.
background() {
  local words=$1 log=$2; shift 2
  running && fail "it runs already (process $(cat kit.pid)); ./stop.sh ends it"
  [ -f "$log" ] && mv "$log" "$log.1"
  setsid nohup "$@" >"$log" 2>&1 </dev/null &
  echo $! >kit.pid
  for _ in $(seq "${WAIT_S:-90}"); do
    grep -q "$words" "$log" && return 0
    kill -0 "$(cat kit.pid)" 2>/dev/null || { end "$(cat kit.pid)"; tail -n 30 "$log" >&2; fail "it ended; the lines above are the end of $PWD/$log"; }
    sleep 1
  done
  tail -n 30 "$log" >&2
  echo "${0##*/}: not there after ${WAIT_S:-90} s, it goes on trying: see $PWD/$log" >&2
  return 2
}
