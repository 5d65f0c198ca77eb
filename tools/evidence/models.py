"""Models that are compared: each a set of changes of one experiment; no TensorFlow.

A change is "section.key" of the config -> value.
"""

from convbert_tf.config import changed_values, with_values
from convbert_tf.modeling.pretraining import ConvBertPretrainer

# ELECTRA's encoder: self-attention alone, with all its heads (Clark et al., 2020).
ATTENTION = {"model.conv_type": "noconv", "model.head_ratio": 1, "model.linear_groups": 1}
# The ablations of the paper's tables, a change each; what is not named is as in the config.
ABLATIONS = {
    "kernel 1": {"model.conv_kernel_size": 1},
    "kernel 3": {"model.conv_kernel_size": 3},
    "kernel 5": {"model.conv_kernel_size": 5},
    "kernel 9": {},
    "kernel 17": {"model.conv_kernel_size": 17},
    "kernel 33": {"model.conv_kernel_size": 33},
    "head_ratio 1": {"model.head_ratio": 1},
    "head_ratio 4": {"model.head_ratio": 4},
    "2 groups": {"model.linear_groups": 2},
    "dynamic convolution": {"model.conv_type": "dconv"},
    "padding in the convolution": {"model.mask_convolution": False},
    "attention alone": ATTENTION,
}
_STEP = 8  # of intermediate sizes


def parameters(experiment):
    """Number of parameters of the pre-trained model, its generator included."""
    return ConvBertPretrainer(experiment.model, experiment.pretraining).count_params()


def with_parameters(experiment, changes, wanted):
    """`changes` with the intermediate size by which the model has about `wanted` parameters."""
    base = with_values(experiment, changes)
    name, size = "model.intermediate_size", base.model.intermediate_size
    here = parameters(base)
    per_unit = (parameters(with_values(base, {name: size + _STEP})) - here) / _STEP
    fitting = size + _STEP * round((wanted - here) / per_unit / _STEP)
    return changes | {name: max(fitting, _STEP)}


def size_of(experiment, other):
    """Changes that give `experiment` the model of `other`, but for its vocabulary."""
    found = changed_values(experiment, other).items()
    return {
        name: value
        for name, (_, value) in found
        if name.startswith("model.") and name != "model.vocab_size"
    }


def arguments(changes):
    """`changes` as arguments of tools/pretrain.py."""
    return [f"--config.{name}={value}" for name, value in changes.items()]
