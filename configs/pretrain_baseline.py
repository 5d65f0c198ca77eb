r"""The paper's baselines, and in between: configs/pretrain_baseline.py:NAME.

Data, batch, learning rate and steps are those of ConvBERT of the same size (section 5.1), so that
only what a name says differs: ELECTRA and BERT have no convolution and keep all their heads
(Clark et al., 2020, table 6; Devlin et al., 2019); bert and convbert_mlm are trained by masked
language modelling alone, without discriminator. With the generator, where there is one:

    electra_small        14,196,219 parameters
    electra_base        119,386,427 parameters
    bert_small           13,546,682 parameters
    bert_base           109,514,298 parameters
    convbert_mlm_small   13,207,442 parameters
    convbert_mlm_base   106,303,170 parameters

    python tools/pretrain.py --config=configs/pretrain_baseline.py:electra_small \
        --config.data.train_dir=data/train --config.data.eval_dir=data/heldout \
        --config.training.model_dir=runs/electra_small
"""

from convbert_tf import config

# Size -> its ModelConfig, batch and learning rate.
SIZES = {
    "small": (config.ModelConfig.small, 128, 3e-4),
    "base": (config.ModelConfig.base, 256, 2e-4),
}
ATTENTION_ALONE = {"conv_type": "noconv", "head_ratio": 1}
# Kind -> what differs in the model, and the objective.
KINDS = {
    "electra": (ATTENTION_ALONE, "electra"),
    "bert": (ATTENTION_ALONE, "mlm"),
    "convbert_mlm": ({}, "mlm"),
}


def get_config(name="electra_small"):
    kind, _, size = name.rpartition("_")
    if kind not in KINDS or size not in SIZES:
        raise ValueError(f"no baseline {name!r}: {', '.join(KINDS)}, each with _small or _base.")
    (make_model, batch_size, learning_rate), (changes, objective) = SIZES[size], KINDS[kind]
    return config.to_config_dict(
        config.PretrainingExperiment(
            model=make_model(mask_convolution=True, **changes),
            pretraining=config.PretrainingConfig(objective=objective),
            data=config.DataConfig(max_seq_length=128),
            training=config.TrainingConfig(
                batch_size=batch_size,
                learning_rate=learning_rate,
                num_train_steps=1_000_000,
                warmup_steps=10_000,
                eval_interval=10_000,
                num_eval_steps=100,
            ),
        )
    )
