#!/usr/bin/env bash
# From nothing to an answered question: sets everything up, then pre-trains a tiny ConvBERT on the
# documentation that is on this machine, fine-tunes it on two tasks, and serves both.
#
#     bash tools/quickstart.sh [--corpus=PATH] [--output_dir=runs/quickstart]
#
# --corpus takes your own text: a plain file, a sentence or a paragraph a line, blank lines between
# documents. What an earlier run with the same output_dir has finished is kept.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0" && exit ;; esac
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

corpus="" out=runs/quickstart
for argument in "$@"; do
  case $argument in
    --corpus=*) corpus=${argument#*=} ;;
    --output_dir=*) out=${argument#*=} ;;
    *)
      echo "quickstart: error: unknown argument '$argument'; there are --corpus=PATH, --output_dir=DIR." >&2
      exit 2
      ;;
  esac
done
if [[ -n $corpus && ! -f $corpus ]]; then
  echo "quickstart: error: $corpus is not a file; --corpus takes a text file." >&2
  exit 1
fi
if [[ -n $corpus && $out == runs/quickstart ]]; then
  out=runs/quickstart-$(basename "$corpus")
fi

bash tools/setup.sh base
export TF_CPP_MIN_LOG_LEVEL=3
readonly python=.venv/bin/python began=$SECONDS
number=0

# stage TITLE RESULT COMMAND...: runs the command unless its result is there.
stage() {
  local title=$1 result=$2 started=$SECONDS
  shift 2
  number=$((number + 1))
  printf '\n[%d/11] %s\n' "$number" "$title"
  if [[ -e $result ]]; then
    echo "kept from an earlier run: $result"
    return
  fi
  printf '  $ %s\n' "$*"
  "$python" "$@" || exit $?
  echo "  took $((SECONDS - started)) s"
}

data=$out/data records=$out/records
pretrained=$out/pretrained cola=$out/acceptability qa=$out/questions

documentation=(tools/make_documentation_data.py "--output_dir=$data")
[[ -z $corpus ]] || documentation+=("--corpus_file=$corpus")
stage "Text and two labelled tasks, made from documentation on this machine" \
  "$data/manifest.json" "${documentation[@]}"
stage "A WordPiece vocabulary" "$out/vocab.txt" tools/train_vocabulary.py \
  "--input=$data/corpus/train.txt" "--output_file=$out/vocab.txt" --vocab_size=6000 --max_megabytes=6
stage "TFRecords to train on" "$records/train/manifest.json" tools/build_pretraining_data.py \
  "--input=$data/corpus/train.txt" "--vocab_file=$out/vocab.txt" "--output_dir=$records/train"
stage "TFRecords of held-out documents" "$records/heldout/manifest.json" \
  tools/build_pretraining_data.py "--input=$data/corpus/heldout.txt" \
  "--vocab_file=$out/vocab.txt" "--output_dir=$records/heldout" --num_workers=1
stage "Pre-training a tiny ConvBERT (replaced token detection)" "$pretrained/preset/config.json" \
  tools/pretrain.py --config=configs/pretrain_tiny.py "--config.data.train_dir=$records/train" \
  "--config.data.eval_dir=$records/heldout" "--config.training.model_dir=$pretrained" \
  --config.training.deterministic=True

# finetune TITLE CONFIG DATA RUN [FLAG]...
finetune() {
  local title=$1 config=$2 task_data=$3 run=$4
  shift 4
  stage "$title" "$run/preset/config.json" tools/finetune.py "--config=$config" \
    "--config.task.init_from=$pretrained/preset" "--config.task.data_dir=$task_data" \
    "--config.training.model_dir=$run" --config.training.deterministic=True "$@"
}
finetune "Is this sentence intact? Fine-tuning" \
  configs/quickstart.py:cola "$data/acceptability" "$cola"
finetune "The same without pre-training, for comparison" \
  configs/quickstart.py:cola "$data/acceptability" "$cola-scratch" --config.task.from_scratch=True
finetune "What does this argument do? Fine-tuning" \
  configs/quickstart.py:squad_v1 "$data/qa" "$qa"

stage "A SavedModel of the classifier" "$out/models/acceptability/1" tools/export_model.py \
  "--preset=$cola/preset" "--output_dir=$out/models/acceptability/1" --max_seq_length=128
stage "A SavedModel of the question answerer" "$out/models/questions/1" \
  tools/export_model.py "--preset=$qa/preset" "--output_dir=$out/models/questions/1" \
  --max_seq_length=128
stage "A picture of its attention and its convolution's kernels, on held-out documents" \
  "$out/attention.png" tools/plot_attention.py "--preset=$pretrained/preset" \
  "--text=$data/corpus/heldout.txt" "--output_file=$out/attention.png"

printf '\nScores on held-out documents\n'
"$python" tools/compare_runs.py "--run=$cola" "--run=$cola-scratch" "--run=$qa"

printf '\nOne question each\n'
"$python" tools/ask.py "--saved_model=$out/models/acceptability/1" \
  --text="The size the of image must be positive."
"$python" tools/ask.py "--saved_model=$out/models/questions/1" \
  --question="What does resize return?" \
  --context="resize changes the size of an image. The argument image is the picture to change. size is the new height and width in pixels. It returns the resized image. It raises ValueError if size is negative."

cat <<END

Done in $((SECONDS - began)) s. Next:
  see what it looks at $out/attention.png
  see the run          .venv/bin/tensorboard --logdir $out
  ask something else   .venv/bin/python tools/ask.py --saved_model=$out/models/questions/1 --question=... --context=...
  use your own text    bash tools/quickstart.sh --corpus=PATH
  train a real one     docs/pretraining.md, "The published sizes"
END
