#!/usr/bin/env bash
# ConvBERT's GLUE table again: the published weights through all tasks with the original's recipe.
#
#     bash tools/reproduce_glue.sh --data_dir=tfds:glue [--output_dir=runs/glue] [SIZE=MODEL ...]
#
# SIZE is small, medium-small or base. By default all three come from Hugging Face's hub; base=DIR
# takes a preset or a Hugging Face directory of your own instead, and the sizes that are named are
# the only ones. --data_dir is a folder with GLUE's folders, or tfds:glue to download them. What is
# behind -- goes to tools/glue.py (-- --strategy=mirrored). What an earlier run with the same
# output_dir has finished is kept. Figures to compare with, and their sources: docs/results.md.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0" && exit ;; esac
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "reproduce_glue: error: $1" >&2
  exit "$2"
}

data="" out=runs/glue models=() more=()
while (($#)); do
  case $1 in
    --data_dir=*) data=${1#*=} ;;
    --output_dir=*) out=${1#*=} ;;
    small=?* | medium-small=?* | base=?*) models+=("$1") ;;
    --)
      shift
      more=("$@")
      break
      ;;
    *) fail "unknown argument '$1'; there are --data_dir=DIR, --output_dir=DIR, small=MODEL, medium-small=MODEL, base=MODEL." 2 ;;
  esac
  shift
done
[[ -n $data ]] || fail "set --data_dir, a folder with GLUE's folders or tfds:glue." 2
if ((${#models[@]} == 0)); then
  for size in small medium-small base; do
    models+=("$size=hf://YituTech/conv-bert-$size")
  done
fi

# What reads the hub is among what the tests need.
[[ ${models[*]} == *hf://* ]] && needed=dev || needed=base
bash tools/setup.sh "$needed"
export TF_CPP_MIN_LOG_LEVEL=3
for each in "${models[@]}"; do
  size=${each%%=*}
  printf '\n=== ConvBERT-%s: %s\n' "$size" "${each#*=}"
  .venv/bin/python tools/glue.py "--preset=${each#*=}" "--data_dir=$data" \
    "--model_dir=$out/$size" "--published=$size" ${more[@]+"${more[@]}"}
done
