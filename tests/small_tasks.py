"""Small tasks that one word decides, a model for them, and experiments that learn them."""

import json
import random

import keras

from convbert_tf.config import FinetuningExperiment, ModelConfig, TaskConfig, finetuning_defaults
from convbert_tf.modeling.encoder import ConvBertEncoder

WORDS = [
    "cat",
    "dog",
    "hen",
    "cow",
    "pig",
    "fox",
    "owl",
    "bee",
    "ant",
    "rat",
    "sees",
    "likes",
    "hears",
    "meets",
    "finds",
    "keeps",
]
NAMES = ["ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hal", "ivy", "jon", "kim", "leo"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "good", "bad", "who", "winner", "is"]
VOCAB += [*WORDS, *NAMES, ".", "?"]
MODEL = ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    embedding_size=32,
    max_position_embeddings=32,
    conv_kernel_size=3,
    initializer_range=0.1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def make_preset(folder):
    """An encoder with random weights, the same each time; returns its directory."""
    keras.utils.set_random_seed(0)
    (folder / "pieces.txt").write_text("\n".join(VOCAB) + "\n")
    encoder = ConvBertEncoder(MODEL)
    encoder.save_to_preset(str(folder / "encoder"), str(folder / "pieces.txt"))
    return str(folder / "encoder")


def make_cola(folder, words=WORDS):
    """Sentences that are acceptable if the word "good" is in them; returns their directory.

    The others are drawn from `words`.
    """
    rng = random.Random(0)
    for name, count in (("train", 128), ("dev", 40)):
        rows = []
        for _ in range(count):
            label = int(rng.random() < 0.4)
            drawn = rng.choices(words, k=5)
            drawn.insert(rng.randrange(6), "good" if label else "bad")
            rows.append(f"me\t{label}\t\t{' '.join(drawn)}\n")
        (folder / f"{name}.tsv").write_text("".join(rows))
    return str(folder)


def make_squad(folder):
    """Contexts in which "winner is" stands before the answer; returns their directory."""
    rng = random.Random(0)
    for split, count in (("train", 192), ("dev", 32)):
        paragraphs = []
        for i in range(count):
            answer = rng.choice(NAMES)
            before = " ".join(rng.choices(WORDS + NAMES, k=rng.randint(1, 6)))
            context = f"{before} winner is {answer} {' '.join(rng.choices(WORDS + NAMES, k=3))}."
            start = len(before) + len(" winner is ")
            qa = {"id": f"{split}{i}", "question": "who is the winner?"}
            qa["answers"] = [{"text": answer, "answer_start": start}]
            paragraphs.append({"context": context, "qas": [qa]})
        content = {"version": "1.1", "data": [{"paragraphs": paragraphs}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return str(folder)


def make_experiment(preset, data_dir, model_dir, name="cola", epochs=6.0, training=None, **task):
    return FinetuningExperiment(
        TaskConfig(
            name=name,
            data_dir=data_dir,
            init_from=preset,
            max_seq_length=32,
            max_query_length=8,
            num_train_epochs=epochs,
            beam_size=4,
            **task,
        ),
        finetuning_defaults(
            **{
                "model_dir": str(model_dir),
                "batch_size": 16,
                "learning_rate": 3e-3,
                "layerwise_lr_decay": 0.9,
                "steps_per_loop": 20,
                "keep_checkpoints": 5,
            }
            | (training or {})
        ),
    )
