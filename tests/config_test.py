"""Settings: what is refused, overriding as the binaries do it, the files of configs/, saving."""

import dataclasses
import importlib.util
import math
import pathlib
import re

import keras
import pytest
from absl import flags

from convbert_tf import config, files
from convbert_tf.console import UserError
from convbert_tf.modeling import pretraining

ROOT = pathlib.Path(__file__).parents[1]
CONFIG_FILES = sorted((ROOT / "configs").glob("*.py"))
ModelConfig = config.ModelConfig


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (ModelConfig, {"hidden_size": 250}, "hidden_size 250 is not divisible by num_attention_"),
        (ModelConfig, {"hidden_size": 0}, "hidden_size must be a whole number above 0, got 0."),
        (ModelConfig, {"vocab_size": -1}, "vocab_size must be a whole number above 0, got -1."),
        (ModelConfig, {"num_hidden_layers": 1.5}, "num_hidden_layers must be a whole number"),
        (ModelConfig, {"vocab_size": "many"}, "vocab_size must be a whole number, got 'many'."),
        (ModelConfig, {"conv_kernel_size": 8}, "conv_kernel_size must be odd, got 8."),
        (ModelConfig, {"linear_groups": 3}, "linear_groups 3 must divide hidden_size 256 and int"),
        (ModelConfig, {"intermediate_size": 1023, "linear_groups": 2}, "intermediate_size 1023."),
        (
            ModelConfig,
            {"conv_type": "conv"},
            "conv_type must be one of sdconv, dconv, noconv, got 'conv'",
        ),
        (ModelConfig, {"head_ratio": 0.5}, "head_ratio must be at least 1, got 0.5."),
        (ModelConfig, {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be in [0, 1), got"),
        (ModelConfig, {"attention_probs_dropout_prob": -0.1}, "must be in [0, 1), got -0.1."),
        (config.PretrainingConfig, {"objective": "clm"}, "must be 'electra' or 'mlm', got 'clm'."),
        (config.PretrainingConfig, {"mask_prob": 0}, "mask_prob must be in (0, 1), got 0."),
        (config.PretrainingConfig, {"mask_prob": 1.0}, "mask_prob must be in (0, 1), got 1.0."),
        (
            config.PretrainingConfig,
            {"whole_word_masking": True, "masking_with_replacement": True},
            "whole_word_masking draws words without replacement: not with "
            "masking_with_replacement.",
        ),
        (config.PretrainingConfig, {"temperature": 0.0}, "temperature must be positive, got 0.0."),
        (config.TrainingConfig, {"strategy": "gpus"}, "strategy must be one of one_device, mirr"),
        (config.TrainingConfig, {"precision": "fp16"}, "precision must be one of float32, mixed"),
        (config.TrainingConfig, {"batch_size": 0}, "batch_size must be at least 1, got 0."),
        (config.TrainingConfig, {"num_train_steps": -1}, "num_train_steps must not be negative"),
        (config.TrainingConfig, {"num_train_steps": "9"}, "must be a whole number, got '9'."),
        (config.TrainingConfig, {"seed": True}, "seed must be a whole number, got True."),
        (config.TrainingConfig, {"jit_compile": "no"}, "jit_compile must be true or false, got 'n"),
        (config.TrainingConfig, {"clip_norm": None}, "clip_norm must be a number, got None."),
        (config.TrainingConfig, {"clip_norm": math.inf}, "clip_norm must be finite, got inf."),
        (config.TrainingConfig, {"clip_norm": math.nan}, "clip_norm must not be negative, got nan"),
        (config.TrainingConfig, {"batch_size": math.nan}, "batch_size must be a whole number, got"),
        (config.TrainingConfig, {"model_dir": 3}, "model_dir must be a string, got 3."),
        (config.TaskConfig, {"num_train_epochs": 1e30}, "must be at most 1,000,000, got 1e+30."),
        (config.TaskConfig, {"kind": "class"}, "kind must be one of classes, labels, score, got"),
        (config.TaskConfig, {"held_out": 1.0}, "held_out must be in (0, 1), got 1.0."),
        (config.TaskConfig, {"min_score": 2, "max_score": 1}, "min_score 2.0 must be below max_s"),
        (config.TaskConfig, {"max_score": math.inf}, "min_score 0.0 must be below max_score inf"),
        (config.TaskConfig, {"name": ["cola"]}, "name must be a string, got ['cola']."),
        (config.DataConfig, {"shards_per_round": 0}, "shards_per_round must be at least 1, got 0."),
        (ModelConfig, {"head_ratio": math.inf}, "head_ratio must be at least 1, got inf."),
        (
            config.PretrainingExperiment,
            {"training": config.TrainingConfig()},
            "num_train_steps must be at least 1: a pre-training has no epochs to end by.",
        ),
        (config.TrainingConfig, {"steps_per_loop": -2}, "steps_per_loop must be at least 1"),
        (config.TrainingConfig, {"checkpoint_interval": 0}, "checkpoint_interval must be at"),
        (config.TrainingConfig, {"learning_rate": 0.0}, "learning_rate must be positive, got 0."),
        (config.TrainingConfig, {"learning_rate": float("inf")}, "must be positive, got inf."),
        (config.TrainingConfig, {"seed": 1 << 32}, "seed must be below 2**32, got 4294967296."),
        (config.TrainingConfig, {"model_dir": "runs/lr[1]"}, "model_dir 'runs/lr[1]' has one of"),
        (config.TrainingConfig, {"init_from": "runs/*"}, "init_from 'runs/*' has one of the"),
        (ModelConfig, {"initializer_range": -1.0}, "initializer_range must be positive, got -1."),
        (
            config.PretrainingExperiment,
            {"training": config.TrainingConfig(num_train_steps=9, layerwise_lr_decay=0.8)},
            "layerwise_lr_decay is for fine-tuning",
        ),
        (
            config.PretrainingExperiment,
            {
                "model": ModelConfig(
                    hidden_size=96, num_attention_heads=12, generator_hidden_size=0.3
                )
            },
            "impossible generator: its hidden_size 29 is not divisible by num_attention_heads 3.",
        ),
        (config.TrainingConfig, {"on_nonfinite": "go"}, "must be 'stop' or 'skip', got 'go'."),
        (config.TrainingConfig, {"init_optimizer": True}, "init_optimizer needs an init_from."),
        (
            config.TrainingConfig,
            {"batch_size": 6, "gradient_accumulation_steps": 4},
            "batch_size 6 is not divisible by gradient_accumulation_steps 4.",
        ),
        (config.DataConfig, {"on_corrupt_record": ""}, "must be 'stop' or 'skip', got ''."),
        (config.PretrainingConfig, {"disc_weight": -1}, "disc_weight must not be negative, got"),
        (
            config.PretrainingConfig,
            {"objective": "mlm", "uniform_generator": True},
            "are options of objective 'electra'.",
        ),
        (
            config.PretrainingConfig,
            {"untied_generator": False, "uniform_generator": True},
            "has no generator that untied_generator=False could tie.",
        ),
    ],
)
def test_impossible_values_are_refused_in_one_line(cls, values, message):
    with pytest.raises(UserError) as caught:
        cls(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_goes_by_one_name_however_it_is_spelled():
    names = {"STS-B": "stsb", "SST-2": "sst2", "SQuAD_v1": "squad_v1", "RTE": "rte", "no": "no"}
    for given, name in names.items():
        assert config.TaskConfig(name=given).name == name


def test_settings_that_are_lists():
    for values in (["a"], ["a", "b c"], ["a, b", 'say "c"', "d"]):
        assert config.split_list(config.join_list(values)) == values
    assert config.split_list(" a ,b") == ["a", "b"] and config.split_list("") == []


def test_finetuning_has_its_own_place_to_start_from():
    with pytest.raises(UserError, match=r"fine-tuning starts from task\.init_from"):
        config.FinetuningExperiment(training=config.TrainingConfig(init_from="runs/x"))


@pytest.mark.parametrize("length", [7, 513])
def test_a_length_that_the_model_has_no_positions_for_is_refused(length):
    data = config.DataConfig(max_seq_length=length)
    with pytest.raises(UserError, match=f"max_seq_length {length} must be between 8 and .* 512"):
        config.PretrainingExperiment(data=data)


def test_the_shortest_and_longest_lengths_are_taken():
    for length in (8, 512):
        config.PretrainingExperiment(data=config.DataConfig(max_seq_length=length))


def test_whole_numbers_become_integers_and_nothing_changes_afterwards():
    model = ModelConfig(hidden_size=512.0)
    assert model.hidden_size == 512 and isinstance(model.hidden_size, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.hidden_size = 256


@pytest.mark.parametrize(
    ("model", "sizes", "generator_sizes"),
    [
        (ModelConfig.small(), (256, 12, 1024, 4, 128, 1), (64, 12, 256, 1, 128, 1)),
        (ModelConfig.medium_small(), (384, 12, 1536, 8, 128, 2), (96, 12, 384, 2, 128, 2)),
        (ModelConfig.base(), (768, 12, 3072, 12, 768, 1), (256, 12, 1024, 4, 768, 1)),
    ],
)
def test_the_published_sizes_and_their_generators(model, sizes, generator_sizes):
    for one, expected in ((model, sizes), (model.generator(), generator_sizes)):
        found = (one.hidden_size, one.num_hidden_layers, one.intermediate_size)
        found += (one.num_attention_heads, one.embedding_size, one.linear_groups)
        assert found == expected
        assert (one.vocab_size, one.max_position_embeddings) == (30522, 512)
        assert (one.conv_kernel_size, one.head_ratio) == (9, 2)


def test_sizes_take_overrides_and_generators_keep_a_layer():
    model = ModelConfig.base(vocab_size=8000, hidden_size=384, generator_layers=0.01)
    assert (model.vocab_size, model.hidden_size, model.intermediate_size) == (8000, 384, 3072)
    assert (model.generator().num_hidden_layers, model.generator().vocab_size) == (1, 8000)


@pytest.mark.parametrize(("length", "slots"), [(8, 1), (128, 19), (512, 79)])
def test_slots_for_masked_positions(length, slots):
    assert config.PretrainingConfig().max_predictions_per_seq(length) == slots


def test_a_model_config_survives_its_dict_and_refuses_a_key_it_does_not_know():
    model = ModelConfig.medium_small(vocab_size=99, mask_convolution=True)
    assert ModelConfig.from_dict(model.to_dict()) == model
    with pytest.raises(UserError) as caught:
        ModelConfig.from_dict(model.to_dict() | {"hiden_size": 3})
    assert str(caught.value) == (
        "unknown key 'hiden_size' in the model config; did you mean 'hidden_size'?"
    )
    with pytest.raises(UserError, match="unknown key 'zzz' in the model config; there are att"):
        ModelConfig.from_dict({"zzz": 3})


def test_an_unknown_section_or_key_of_an_experiment_is_refused():
    with pytest.raises(UserError, match="unknown config section train; there are .*'training'"):
        config.from_config_dict(config.PretrainingExperiment, {"train": {}})
    with pytest.raises(UserError, match="'batchsize' in the training config; did you mean 'batch"):
        config.from_config_dict(config.FinetuningExperiment, {"training": {"batchsize": 3}})
    with pytest.raises(UserError, match="did you mean 'num_eval_steps' or 'num_train_steps'"):
        config.from_config_dict(config.PretrainingExperiment, {"training": {"num_steps": 3}})


def test_what_an_experiment_does_not_say_is_the_default():
    found = config.from_config_dict(config.PretrainingExperiment, {"training": {"seed": 7}})
    training = config.TrainingConfig(seed=7, num_train_steps=1_000_000)
    assert found == config.PretrainingExperiment(training=training)
    found = config.from_config_dict(config.FinetuningExperiment, {"training": {"seed": 7}})
    assert found == config.FinetuningExperiment(training=config.TrainingConfig(seed=7))


def test_a_path_takes_its_home_folder_and_any_kind_of_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    training = config.TrainingConfig(model_dir="~/runs/x", init_from=pathlib.Path("a", "b"))
    assert (training.model_dir, training.init_from) == ("/home/me/runs/x", "a/b")
    assert config.TaskConfig(init_from="hf://me/x~1").init_from == "hf://me/x~1"


def test_every_setting_says_what_it_means():
    for cls in (config.PretrainingExperiment, config.FinetuningExperiment):
        for section in vars(cls()).values():
            for field in dataclasses.fields(section):
                meaning = field.metadata["meaning"]
                assert len(meaning) > 10 and meaning.endswith("."), field.name


def load_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiment_class(values):
    return config.PretrainingExperiment if "pretraining" in values else config.FinetuningExperiment


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_every_file_of_configs_makes_an_experiment_and_says_what_it_is(path):
    module = load_file(path)
    values = module.get_config(*["cola"] * (path.stem == "finetune_glue"))
    experiment = config.from_config_dict(experiment_class(values), values)
    assert config.to_config_dict(experiment) == values
    assert len(module.__doc__.splitlines()[0]) > 20


def test_the_published_sizes_and_both_kinds_of_task_have_their_file():
    names = {path.stem for path in CONFIG_FILES}
    sizes = {f"pretrain_{size}" for size in ("small", "medium_small", "base", "tiny")}
    assert names >= sizes | {"finetune_glue", "finetune_squad"}


BASELINES = [
    f"{kind}_{size}" for kind in ("electra", "bert", "convbert_mlm") for size in ("small", "base")
]


def parameters(experiment):
    """Counted from the shapes of a model whose weights are not initialised."""
    with keras.StatelessScope():
        model = pretraining.ConvBertPretrainer(experiment.model, experiment.pretraining)
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(f"pretrain_{size}", None) for size in ("tiny", "small", "medium_small", "base")]
    + [("pretrain_baseline", name) for name in BASELINES],
)
def test_a_pretraining_config_tells_its_parameters_source_and_command(name, argument):
    module = load_file(ROOT / "configs" / f"{name}.py")
    values = module.get_config(argument) if argument else module.get_config()
    experiment = config.from_config_dict(config.PretrainingExperiment, values)
    told = re.search(rf"{argument or ':'} +([\d,]+) parameters", module.__doc__)[1]
    assert parameters(experiment) == int(told.replace(",", ""))
    assert f"python tools/pretrain.py --config=configs/{name}.py" in module.__doc__
    assert "section 5.1" in module.__doc__ or "is ours" in module.__doc__


def test_baselines_keep_all_heads_and_differ_in_nothing_else():
    module = load_file(ROOT / "configs" / "pretrain_baseline.py")
    for size in ("small", "base"):
        values = load_file(ROOT / "configs" / f"pretrain_{size}.py").get_config()
        ours = config.from_config_dict(config.PretrainingExperiment, values)
        for kind, expected in {
            "electra": ["conv_type", "head_ratio"],
            "bert": ["conv_type", "head_ratio", "objective"],
            "convbert_mlm": ["objective"],
        }.items():
            values = module.get_config(f"{kind}_{size}")
            other = config.from_config_dict(config.PretrainingExperiment, values)
            lines = config.differences(ours, other)
            assert [line.split(":")[0].split(".")[1] for line in lines] == expected
    with pytest.raises(ValueError, match="no baseline 'gpt_small': electra, bert"):
        module.get_config("gpt_small")


@pytest.mark.parametrize(
    ("size", "batch_size", "learning_rate"),
    [("small", 128, 3e-4), ("medium_small", 128, 5e-4), ("base", 256, 2e-4)],
)
def test_the_published_runs_have_the_settings_of_the_paper(size, batch_size, learning_rate):
    values = load_file(ROOT / "configs" / f"pretrain_{size}.py").get_config()
    # But for the padding, which the original's convolution sees.
    expected = getattr(ModelConfig, size)(mask_convolution=True)
    assert ModelConfig.from_dict(values.model.to_dict()) == expected
    training = values.training
    assert (training.batch_size, training.learning_rate) == (batch_size, learning_rate)
    assert (training.num_train_steps, training.warmup_steps) == (1_000_000, 10_000)
    assert (training.weight_decay_rate, training.clip_norm) == (0.01, 1.0)
    assert (values.data.max_seq_length, values.pretraining.disc_weight) == (128, 50)


@pytest.fixture
def parse(monkeypatch):
    """What a binary gets of `--config=... --config.a.b=...`."""

    def parse(*arguments, cls=None):
        argv = ["binary", *arguments]
        monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for the overrides
        if cls is None:
            tasks = "finetune" in arguments[0]
            cls = config.FinetuningExperiment if tasks else config.PretrainingExperiment
        values = flags.FlagValues()
        flag = config.ConfigFlag(cls(), "A file.", values)
        values(argv)
        return flag.experiment()

    return parse


def test_the_command_line_overrides_values_and_nothing_else(parse):
    path = ROOT / "configs" / "pretrain_small.py"
    given = parse(f"--config={path}")
    changed = parse(
        f"--config={path}",
        "--config.training.batch_size=64",
        "--config.model.conv_type=noconv",
        "--config.pretraining.disallow_correct=true",
        "--config.data.train_dir=records",
    )
    assert config.differences(given, changed) == [
        "model.conv_type: 'sdconv' -> 'noconv'",
        "pretraining.disallow_correct: False -> True",
        "data.train_dir: '' -> 'records'",
        "training.batch_size: 128 -> 64",
    ]
    assert config.differences(given, given) == []


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("--config.training.batchsize=64", flags.Error),
        ("--config.trainings.batch_size=64", KeyError),
        ("--config.training.batch_size=many", flags.Error),
        ("--config.model.conv_kernel_size=8", UserError),
        ("--config.data.max_seq_length=1024", UserError),
    ],
)
def test_a_wrong_override_is_refused(parse, argument, error):
    with pytest.raises(error):
        parse(f"--config={ROOT / 'configs' / 'pretrain_small.py'}", argument)


@pytest.mark.parametrize(
    ("argument", "name", "epochs", "length"),
    [
        ("finetune_glue.py:cola", "cola", 3, 128),
        ("finetune_glue.py:mnli", "mnli", 3, 128),
        ("finetune_glue.py:rte", "rte", 10, 128),
        ("finetune_glue.py:stsb", "stsb", 10, 128),
        ("finetune_glue.py:sts-b", "stsb", 10, 128),
        ("finetune_glue.py:STS-B", "stsb", 10, 128),
        ("finetune_glue.py:RTE", "rte", 10, 128),
        ("finetune_own.py", "own", 3, 128),
        ("finetune_squad.py", "squad_v1", 2, 512),
        ("finetune_squad.py:v2", "squad_v2", 2, 512),
    ],
)
def test_the_task_follows_the_file_name(parse, argument, name, epochs, length):
    experiment = parse(f"--config={ROOT / 'configs' / argument}")
    task, training = experiment.task, experiment.training
    assert (task.name, task.num_train_epochs, task.max_seq_length) == (name, epochs, length)
    assert (task.doc_stride, task.max_query_length, task.max_answer_length) == (128, 64, 30)
    assert (training.batch_size, training.learning_rate) == (32, 3e-4)
    assert (training.warmup_proportion, training.layerwise_lr_decay) == (0.1, 0.8)


def test_finetuning_defaults_take_overrides():
    training = config.finetuning_defaults(learning_rate=1e-4)
    assert (training.learning_rate, training.batch_size) == (1e-4, 32)


def test_a_saved_experiment_is_read_back_the_same(tmp_path):
    experiment = config.PretrainingExperiment(
        model=ModelConfig.base(), data=config.DataConfig(train_dir="Sätze")
    )
    path = tmp_path / "new" / "config.json"
    config.save(experiment, path)
    values = files.read_json(path, "a config")
    assert config.from_config_dict(config.PretrainingExperiment, values) == experiment
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_saving_leaves_the_old_file_whole_where_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": 2, "b": object()})
    assert files.read_json(path, "a config") == {"a": 1}

    def disk_is_full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", disk_is_full)
    with pytest.raises(OSError, match="no space left"):
        config.save(config.FinetuningExperiment(), path)
    assert files.read_json(path, "a config") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there: a config is expected."),
        (b'{"a": 1', "is no JSON (Expecting ',' delimiter: line 1 column 8 (char 7)): a config"),
        (b"\xff\xfe", "is no JSON ('utf-8' codec can't decode"),
        (b"", "is no JSON (Expecting value: line 1 column 1"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path, "a config")
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
