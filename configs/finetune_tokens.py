r"""Fine-tuning on tagged words: parts of speech, named entities, chunks.

data_dir holds train.txt and dev.txt, a word and its tag a line and a blank line between sentences,
or files in another form of CoNLL's (docs/fine-tuning.md). Ten epochs, windows of 128 tokens every
64, batch 32, learning rate 3e-4 for small and medium-small; for base add
--config.training.learning_rate=1e-4.

    python tools/finetune.py --config=configs/finetune_tokens.py \
        --config.task.init_from=PRESET --config.task.data_dir=DATA \
        --config.training.model_dir=runs/tags
"""

from convbert_tf import config


def get_config():
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(name="tokens", doc_stride=64, num_train_epochs=10.0),
            training=config.finetuning_defaults(),
        )
    )
