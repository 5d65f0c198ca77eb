"""Grids: what they are read from, and what is refused before anything is run."""

import pytest

from convbert_tf import config
from convbert_tf.config import grid
from convbert_tf.console import UserError

EXPERIMENT = config.FinetuningExperiment()


def test_every_combination_has_its_values_and_a_telling_name():
    values = grid.parse(
        ["training.learning_rate=1e-4, 3e-5", "task.num_train_epochs=3,0.5"], EXPERIMENT
    )
    assert values == {
        "training.learning_rate": [1e-4, 3e-5],
        "task.num_train_epochs": [3.0, 0.5],
    }
    made = grid.combinations(values, EXPERIMENT)
    assert [each.name for each in made] == [
        "learning_rate=0.0001,num_train_epochs=3",
        "learning_rate=0.0001,num_train_epochs=0.5",
        "learning_rate=3e-05,num_train_epochs=3",
        "learning_rate=3e-05,num_train_epochs=0.5",
    ]
    last = made[-1]
    assert last.values == {"training.learning_rate": 3e-5, "task.num_train_epochs": 0.5}
    assert last.experiment.training.learning_rate == 3e-5
    assert last.experiment.task.num_train_epochs == 0.5
    assert last.experiment.training.batch_size == EXPERIMENT.training.batch_size


def test_values_have_the_types_of_their_keys():
    arguments = ["task.from_scratch=true,False", "training.batch_size=16", "task.init_from=a/b,c d"]
    values = grid.parse(arguments, EXPERIMENT)
    assert list(values.values()) == [[True, False], [16], ["a/b", "c d"]]
    assert type(values["training.batch_size"][0]) is int
    names = [each.name for each in grid.combinations(values, EXPERIMENT)]
    assert names[:2] == [
        "from_scratch=True,batch_size=16,init_from=a_b",
        "from_scratch=True,batch_size=16,init_from=c_d",
    ]
    close = {"training.learning_rate": [0.1234567, 0.12345671]}
    assert len({each.name for each in grid.combinations(close, EXPERIMENT)}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.lerning_rate=1"], "'lerning_rate' in the training.*mean 'learning_rate'"),
        (["learning_rate=1"], "'learning_rate' is no value of the config, which has task and"),
        (["model.hidden_size=1"], "'model.hidden_size' is no value of the config"),
        (["training=1"], "'training' is no value of the config"),
        ([""], "'' is no value of the config"),
        (["training.learning_rate"], "learning_rate has a value too few"),
        (["training.learning_rate=1e-4,"], "learning_rate has a value too few"),
        (["training.learning_rate=1e-4,fast"], "learning_rate: 'fast' is no number"),
        (["training.batch_size=1.5"], "batch_size: '1.5' is no whole number"),
        (["task.from_scratch=1"], "from_scratch: '1' is neither true nor false"),
        (["training.seed=1", "training.seed=2"], "training.seed is given twice"),
        (["training.model_dir=a,b"], "model_dir cannot be in it: each combination has a folder"),
        (["task.num_trials=1,2"], "num_trials cannot be in it"),
    ],
)
def test_what_is_no_grid_is_told(arguments, message):
    with pytest.raises(UserError, match=message):
        grid.parse(arguments, EXPERIMENT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training.learning_rate": [1e-4, -1.0]}, "learning_rate=-1: learning_rate must be posi"),
        ({"training.learning_rate": ["x"]}, "learning_rate=x: learning_rate must be a number"),
        ({"training.learning_rate": [1e-4, 0.0001]}, "learning_rate=0.0001 is in it twice"),
        ({"training.learning_rate": []}, "training.learning_rate has no values"),
        ({"training.rate": [1]}, "unknown key 'rate' in the training config"),
    ],
)
def test_an_impossible_combination_is_told(values, message):
    with pytest.raises(UserError, match=message):
        grid.combinations(values, EXPERIMENT)
