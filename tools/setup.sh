#!/usr/bin/env bash
# Makes .venv with Python 3.11, 3.12 or 3.13 and installs requirements.txt and this project into it.
#
#     bash tools/setup.sh [base|dev|peers]
#
# base (the default) is what the binaries need; dev adds what the tests need, peers what
# `tools/test.sh --peers` compares with. Does nothing when that is installed and requirements.txt and
# pyproject.toml are as they were. A .venv of this script's that was copied from elsewhere or left
# half-made is made anew; one that something else made is left as it is.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0" && exit ;; esac
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=${PATH//"$PWD/.venv/bin:"/} # not the Python that may be replaced

readonly python=.venv/bin/python
readonly stamp=.venv/installed     # what is installed: the set and a checksum of its definition
readonly unfinished=.venv/installing  # there while pip works; left behind where it was killed
readonly log=.venv/pip.log
readonly supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

fail() {
  echo "setup: error: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c "$supported" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11, 3.12 or 3.13 is missing: install one, so that \`python3\` or, for example," \
    "\`python3.12\` runs, then run this again."
}

# Whether .venv is such a Python with pip, made for this folder: its scripts hold its path.
usable() {
  [[ ! -e $unfinished ]] && "$python" -c "import pip; $supported" 2>/dev/null &&
    grep -qF "$PWD/.venv" .venv/bin/activate 2>/dev/null
}

make_venv() {
  local base output package
  base=$(find_python) || exit 1
  if [[ -e .venv || -L .venv ]]; then
    [[ ! -L .venv ]] || fail ".venv is a link to an environment of another folder: remove the link."
    [[ -e $stamp || -e $unfinished || -e $log ]] ||
      fail ".venv was not made by this script, or has no pip: move it away, then run this again."
    echo "setup: .venv is incomplete or from another folder; making it anew"
    rm -rf .venv
  fi
  mkdir .venv
  : >"$unfinished"
  echo "setup: making .venv with $("$base" --version)"
  package=$base-venv
  [[ $base != python ]] || package=python3-venv
  output=$("$base" -m venv .venv 2>&1) ||
    fail "\`$base -m venv .venv\` failed; Debian and Ubuntu need the package $package." \
      "It said: $(tail -n 1 <<<"$output")"
}

# What pip is at, from its log and the packages that are there: "downloading keras (1.5 MB)".
stage() {
  local last_file installed=0
  for last_file in .venv/lib/python3*/site-packages/*.dist-info/INSTALLER; do
    [[ ! $last_file -nt $unfinished ]] || installed=$((installed + 1))
  done
  awk -v installed="$installed" '
    /^ *Downloading [^ ]+\.whl \(/ || /^ *Downloading [^ ]+\.tar\.gz \(/ {
      name = $2; sub(/.*\//, "", name); sub(/-[0-9].*/, "", name)
      size = $0; sub(/.*\(/, "(", size)
      stage = "downloading " name " " size
    }
    /^Collecting / { stage = "resolving " $2 }
    /^Building wheel/ || /^ *Building wheel for [^ ]+ / { stage = "building wheels" }
    /^Installing collected packages: / {
      count = split(substr($0, index($0, ":") + 2), names, ", ")
      stage = installed < count ? "installing " names[installed + 1] : "finishing"
      stage = stage " (" installed " of " count " packages are there)"
    }
    END { print stage == "" ? "starting pip" : stage }' "$log"
}

# Says every few seconds what pip is at: on a terminal in one line, else in a line each. Ends when it
# is told to, or when this script is gone.
watch() {
  local every=5 begin="" end="\n"
  [[ ! -t 1 ]] || every=1 begin="\r\033[K" end=""
  trap 'kill $!; exit' INT TERM
  while kill -0 $$; do
    sleep "$every" >/dev/null &
    wait $!
    printf "${begin}setup: %d s, %s$end" "$SECONDS" "$(stage | cut -c 1-70)"
  done
}

stop_watching() {
  [[ -n $watcher ]] || return 0
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  watcher=""
  [[ ! -t 1 ]] || printf '\r\033[K'
}

install() {
  local reason status=0
  : >"$unfinished"
  : >"$log"
  watch 2>/dev/null &
  watcher=$!
  "$python" -m pip install --disable-pip-version-check --no-input \
    -r requirements.txt -e "$1" >"$log" 2>&1 || status=$?
  stop_watching
  rm -f "$unfinished"
  if [[ $status != 0 ]]; then
    reason=$(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log")
    fail "pip failed: ${reason#ERROR: } (all it said is in $log)"
  fi
}

wanted=${1:-base}
case $wanted in
  base) project=. satisfied="base dev peers" ;;
  dev) project=".[dev]" satisfied="dev peers" ;;
  peers) project=".[dev,peers]" satisfied="peers" ;;
  *) fail "unknown set '$wanted'; there are base, dev and peers." ;;
esac

checksum=$(cat requirements.txt pyproject.toml | cksum)
if usable; then
  installed=$(cat "$stamp" 2>/dev/null || true)
  for larger in $satisfied; do
    [[ $installed != "$larger $checksum" ]] || exit 0
  done
else
  make_venv
fi
echo "setup: installing requirements.txt into .venv; the first time takes some minutes"
rm -f "$stamp"
watcher=""
trap stop_watching EXIT
trap 'exit 130' INT
install "$project"
echo "$wanted $checksum" >"$stamp"
echo "setup: done in $SECONDS s"
