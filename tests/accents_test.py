"""Accents that are kept in a vocabulary are kept in all that is made with it."""

import numpy as np
import tensorflow as tf

from convbert_tf import (
    ModelConfig,
    TextClassifier,
    TextPreprocessor,
    WordPieceTokenizer,
    conversion,
    serving,
)
from convbert_tf.config import (
    DataConfig,
    FinetuningExperiment,
    PretrainingExperiment,
    TaskConfig,
    TrainingConfig,
)
from convbert_tf.data import corpus
from convbert_tf.modeling import presets
from convbert_tf.text import vocabulary, vocabulary_training
from convbert_tf.training import loop, monitoring
from convbert_tf.workflows import finetuning, pretraining

LINES = ["Café olé mañana.", "The cafe, a canon.", "Señor Núñez über naïve Ångström."] * 9
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "embedding_size": 16,
    "max_position_embeddings": 32,
    "conv_kernel_size": 3,
}


def pretrain(folder, vocab):
    path = str(folder / "text.txt")
    (folder / "text.txt").write_text("\n".join(LINES) + "\n", "utf-8")
    records = str(folder / "records")
    options = {"max_seq_length": 32, "num_workers": 1, "strip_accents": False}
    corpus.build(path, records, str(folder / "vocab.txt"), **options)
    experiment = PretrainingExperiment(
        model=ModelConfig(vocab_size=len(vocab), **MODEL),
        data=DataConfig(train_dir=records, max_seq_length=32),
        training=TrainingConfig(model_dir=str(folder / "run"), batch_size=2, num_train_steps=1),
    )
    pretraining.run(experiment)
    return str(folder / "run" / "preset")


def fine_tune(folder, preset):
    task = folder / "task"
    task.mkdir()
    for name in ("train", "dev"):
        (task / f"{name}.tsv").write_text("me\t1\t\tcafé\nme\t0\t\tcafe\n" * 8, "utf-8")
    finetuning.run(
        FinetuningExperiment(
            TaskConfig(name="cola", data_dir=str(task), init_from=preset, max_seq_length=32),
            TrainingConfig(model_dir=str(folder / "tuned"), batch_size=8),
        )
    )
    return str(folder / "tuned" / "preset")


def test_accents_are_kept_the_whole_way(tmp_path, monkeypatch):

    def fit(*_, evaluator=None, **__):  # all but the training
        return evaluator.evaluate() if evaluator else {}

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(monitoring, "write_scores", lambda *_: None)  # of a step that there is not
    vocab = vocabulary_training.train_vocab(LINES, 120, strip_accents=False)
    vocabulary.save_vocab(tmp_path / "vocab.txt", vocab)
    pretrained = pretrain(tmp_path, vocab)
    tuned = fine_tune(tmp_path, pretrained)
    directories = [pretrained, tuned, str(tmp_path / "huggingface"), str(tmp_path / "back")]
    conversion.convert(tuned, directories[2])
    conversion.convert(directories[2], directories[3])
    for directory in directories:
        assert presets.vocabulary(directory) == (f"{directory}/vocab.txt", True, False)

    serving.export(tuned, str(tmp_path / "served"), max_seq_length=32)
    serve = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    texts, model = tf.constant(["CAFÉ mañana", "über Ångström"]), TextClassifier.from_preset(tuned)
    served = serve(text=texts)["logits"]
    kept, stripped = (
        model(TextPreprocessor(WordPieceTokenizer(f"{tuned}/vocab.txt", True, strip), 32)(texts))
        for strip in (False, True)
    )
    np.testing.assert_allclose(served, kept, atol=1e-5)
    assert np.abs(kept - stripped).max() > 1e-3
    # Where lower_case is given, it is the default of strip_accents.
    conversion.convert(tuned, str(tmp_path / "stripped"), "preset", lower_case=True)
    assert presets.vocabulary(str(tmp_path / "stripped")).strip_accents is True
