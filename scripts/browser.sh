#!/usr/bin/env bash
# Installs Debian's Chromium where no browser is.
set -euo pipefail

command -v chromium >/dev/null && exit 0
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
echo "installing chromium"
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
