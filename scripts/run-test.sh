#!/usr/bin/env bash
# The main job from outside: `make run ONCE=1` ends with status 0, and so does a second one on the same data.
set -euo pipefail

: "${KEIKO:?}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for round in first second; do
    ONCE=1 KEIKO=$KEIKO DATA="$folder/data" LISTEN=127.0.0.1:0 scripts/run.sh >"$folder/$round.txt"
    grep -q 'Cargo.toml .*completed' "$folder/$round.txt" || { cat "$folder/$round.txt"; echo "error: the $round run has no result" >&2; exit 1; }
done
lines=$(awk 'END { print NR }' Cargo.toml)
grep -Eq "Cargo.toml +$lines " "$folder/first.txt" || { echo "error: the count of Cargo.toml is wrong" >&2; exit 1; }
echo "make run: 2 passed, 0 failed"
