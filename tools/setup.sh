#!/usr/bin/env bash
# Makes .venv with Python 3.11 and installs requirements.txt and this project into it.
#
#     bash tools/setup.sh [base|dev]
#
# base (the default) is what the binaries need; dev adds what the tests need. Does nothing when that
# is installed and requirements.txt and pyproject.toml are as they were. A .venv that was copied from
# elsewhere or left half-made is made anew.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

readonly python=.venv/bin/python
readonly stamp=.venv/installed     # what is installed: the set and a checksum of its definition
readonly unfinished=.venv/installing  # there while pip works; left behind where it was killed
readonly log=.venv/pip.log

fail() {
  echo "setup: error: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 is missing: install it so that \`python3.11\` runs, then run this again."
}

# Whether .venv is a Python 3.11 with pip, made for this folder: its scripts hold its path.
usable() {
  [[ ! -e $unfinished ]] &&
    "$python" -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null &&
    grep -qF "$PWD/.venv" .venv/bin/activate 2>/dev/null
}

make_venv() {
  local base output
  base=$(find_python) || exit 1
  [[ ! -e .venv ]] || echo "setup: .venv is incomplete or from another folder; making it anew"
  output=$("$base" -m venv --clear .venv 2>&1) ||
    fail "\`$base -m venv .venv\` failed; Debian and Ubuntu need the package python3.11-venv." \
      "It said: $(tail -n 1 <<<"$output")"
}

install() {
  local reason
  : >"$unfinished"
  if ! "$python" -m pip install --quiet --disable-pip-version-check --no-input \
    -r requirements.txt -e "$1" >"$log" 2>&1; then
    rm -f "$unfinished"
    reason=$(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log")
    fail "pip failed: ${reason#ERROR: } (all it said is in $log)"
  fi
  rm -f "$unfinished"
}

wanted=${1:-base}
case $wanted in
  base) project=. ;;
  dev) project=".[dev,jax,huggingface,plot]" ;;
  *) fail "unknown set '$wanted'; there are base and dev." ;;
esac

checksum=$(cat requirements.txt pyproject.toml | cksum)
if usable; then
  installed=$(cat "$stamp" 2>/dev/null || true)
  if [[ $installed == "$wanted $checksum" || $installed == "dev $checksum" ]]; then
    exit 0
  fi
else
  make_venv
fi
echo "setup: installing requirements.txt into .venv; the first time takes some minutes"
rm -f "$stamp"
install "$project"
echo "$wanted $checksum" >"$stamp"
echo "setup: done in $SECONDS s"
