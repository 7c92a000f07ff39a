#!/usr/bin/env bash
# The main job from outside: a report on a real repository ends with status 0, so does a second one on the same data, and
# what is no repository ends with a clear word.
set -euo pipefail

: "${KEIKO:?}" "${PYTHON:?}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
run() {
    ONCE=1 KEIKO=$KEIKO PYTHON=$PYTHON DATA="$folder/data" LISTEN=127.0.0.1:0 REPO="$1" scripts/run.sh
}
passed=0
for round in first second; do
    run "$PWD" >"$folder/$round.txt" 2>"$folder/$round.log" || { cat "$folder/$round.txt" "$folder/$round.log"; echo "error: the $round run failed" >&2; exit 1; }
    commits=$(git rev-list --count HEAD)
    grep -q "\*\*$commits commits\*\*" "$folder/$round.txt" || { cat "$folder/$round.txt"; echo "error: the $round report has not $commits commits" >&2; exit 1; }
    [ -s "$folder/data/report.json" ]
    passed=$((passed + 1))
done
status=0
run "$folder" >"$folder/none.txt" 2>&1 || status=$?
{ [ "$status" = 2 ] && grep -q "No report:" "$folder/none.txt"; } || { cat "$folder/none.txt"; echo "error: no repository ended with $status" >&2; exit 1; }
passed=$((passed + 1))
echo "make run: $passed passed, 0 failed"
