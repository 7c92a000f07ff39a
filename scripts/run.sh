#!/usr/bin/env bash
# Starts the server on $DATA, lets the demonstration fleet report on the Git repository $REPO, prints where to look, and
# stays until Ctrl-C. With ONCE=1 it ends after the report.
set -euo pipefail

: "${KEIKO:?}" "${DATA:?}" "${LISTEN:?}" "${PYTHON:?}"
REPO=${REPO:-$PWD}
mkdir -p "$DATA"
out=$(mktemp)
cleanup() {
    kill "$server" 2>/dev/null && wait "$server" || true
    rm -f "$out"
}

# The password of the demonstration's administrator is made once and kept where only its owner can read it.
password_file="$DATA/demo-password"
if [ ! -e "$DATA/FORMAT" ] && [ -z "${KEIKO_ADMIN_PASSWORD:-}" ]; then
    (umask 077 && od -An -N12 -tx1 /dev/urandom | tr -d ' \n' >"$password_file")
fi
if [ -z "${KEIKO_ADMIN_PASSWORD:-}" ] && [ -e "$password_file" ]; then
    KEIKO_ADMIN_PASSWORD=$(cat "$password_file")
fi
if [ -z "${KEIKO_ADMIN_PASSWORD:-}" ]; then
    echo "error: $DATA was not made by 'make run'; set KEIKO_ADMIN_PASSWORD, or choose another folder with DATA=" >&2
    exit 1
fi
export KEIKO_ADMIN_PASSWORD

"$KEIKO" serve --data-dir "$DATA" --listen "$LISTEN" --log-level warn >"$out" &
server=$!
trap cleanup EXIT
for _ in $(seq 100); do
    url=$(sed -n 's/^listening on //p' "$out")
    [ -n "$url" ] && break
    kill -0 "$server" 2>/dev/null || exit 1
    sleep 0.1
done
[ -n "$url" ] || { echo "error: the server did not start within 10 s" >&2; exit 1; }
echo "Keiko listens on $url, data in $DATA"

status=0
KEIKO_SERVER="$url" KEIKO_USERNAME=admin KEIKO_PASSWORD="$KEIKO_ADMIN_PASSWORD" \
    "$PYTHON" demo/report.py --repo "$REPO" --markdown "$DATA/report.md" --json "$DATA/report.json" || status=$?
echo
[ "$status" = 2 ] || echo "Report:          $DATA/report.md, $DATA/report.json"
echo "Console:         $url/   (name: admin, password: $([ -e "$password_file" ] && echo "in $password_file" || echo "the one you gave"))"
echo "API for people:  $url/docs"
if [ -n "${ONCE:-}" ]; then
    exit "$status"
fi
echo "The server stays until Ctrl-C."
wait "$server"
