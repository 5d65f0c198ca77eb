#!/usr/bin/env bash
# Sets everything up and runs the tests; further arguments go to pytest:
#
#     bash tools/test.sh tests/tasks/squad_test.py
#     bash tools/test.sh --all
#     bash tools/test.sh --peers
#
# --all, the first argument, runs the slow tests too, as CI does. --peers, the first argument,
# installs PyTorch and transformers and runs the tests that compare with them alone.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0" && exit ;; esac
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "test: $*" >&2
  exit 1
}

packages=dev marker="not slow and not peers"
case ${1:-} in
  --all) marker="not peers" && shift ;;
  --peers) packages=peers marker=peers && shift ;;
esac
bash tools/setup.sh "$packages"

.venv/bin/ruff check --quiet . || fail "\`.venv/bin/ruff check .\` finds the faults above."
.venv/bin/ruff format --check --quiet . || fail "run \`.venv/bin/ruff format .\` on the files above."

# The tests choose backends themselves; whatever the user's shell sets is not theirs.
unset TF_USE_LEGACY_KERAS
export KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
# Two processes, a file to each at a time: most tests wait for other processes or compute on one core.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile -m "$marker" "$@"
