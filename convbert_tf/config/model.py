"""What a model is, and what pre-training computes with it."""

import dataclasses
import math

from convbert_tf.config.checks import (
    check_types,
    require,
    require_not_negative,
    require_one_of,
    section_from_dict,
    setting,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of an encoder and of its generator; names as in the original.

    `ModelConfig.small()`, `.medium_small()` and `.base()` are the published sizes; each takes
    overrides, e.g. `ModelConfig.small(vocab_size=8000)`.
    """

    vocab_size: int = setting(30522, "Pieces of the vocabulary.")
    hidden_size: int = setting(256, "H: width of the layers; a multiple of num_attention_heads.")
    num_hidden_layers: int = setting(12, "L: number of layers.")
    num_attention_heads: int = setting(4, "Attention heads, before they are divided by head_ratio.")
    intermediate_size: int = setting(1024, "I: width of the feed-forward layers.")
    embedding_size: int = setting(128, "E: width of the embeddings; projected to H if different.")
    hidden_act: str = setting("gelu", "Activation, one of Keras's; gelu: its exact (erf) form.")
    hidden_dropout_prob: float = setting(0.1, "Dropout of embeddings and of the layers' outputs.")
    attention_probs_dropout_prob: float = setting(0.1, "Dropout of the attention probabilities.")
    max_position_embeddings: int = setting(512, "Longest input, in tokens.")
    type_vocab_size: int = setting(2, "Number of segment ids.")
    initializer_range: float = setting(0.02, "Standard deviation of the initial weights.")
    conv_type: str = setting(
        "sdconv",
        "sdconv: span-based dynamic convolution beside self-attention; dconv: dynamic convolution, "
        "whose kernel comes from the token alone; noconv: self-attention alone, as in BERT and "
        "ELECTRA.",
    )
    conv_kernel_size: int = setting(9, "K: tokens that the convolution covers; odd.")
    head_ratio: float = setting(2, "Gamma in the paper: attention keeps one head in so many.")
    linear_groups: int = setting(1, "G: groups of the feed-forward layers; divides H and I.")
    mask_convolution: bool = setting(
        False,
        "False is the original: padding leaks into the convolution's last (K-1)/2 tokens. True "
        "makes outputs independent of the amount of padding, but published weights were not "
        "trained so.",
    )
    generator_hidden_size: float = setting(0.25, "Of the generator, as a fraction of hidden_size.")
    generator_layers: float = setting(1.0, "Of the generator, as a fraction of num_hidden_layers.")
    untied_generator_embeddings: bool = setting(
        False, "The generator has embeddings of its own, of its own hidden size."
    )
    pad_token_id: int = setting(
        0, "Only kept for Hugging Face's config.json; batches here are padded with 0."
    )

    @classmethod
    def small(cls, **overrides):
        """ConvBERT small: 14.0 M parameters with its generator."""
        return cls(**overrides)

    @classmethod
    def medium_small(cls, **overrides):
        """ConvBERT medium-small, with grouped linear layers: 18.5 M parameters with generator."""
        sizes = {"hidden_size": 384, "num_attention_heads": 8, "intermediate_size": 1536}
        sizes["linear_groups"] = 2
        return cls(**(sizes | overrides))

    @classmethod
    def base(cls, **overrides):
        """ConvBERT base: 115.8 M parameters with its generator."""
        sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
        sizes |= {"embedding_size": 768, "generator_hidden_size": 1 / 3}
        return cls(**(sizes | overrides))

    def __post_init__(self):
        check_types(self)
        self._check_sizes()
        heads, groups = self.num_attention_heads, self.linear_groups
        require(
            self.hidden_size % heads == 0,
            f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}.",
        )
        require(
            self.conv_kernel_size % 2 == 1,
            f"conv_kernel_size must be odd, got {self.conv_kernel_size}.",
        )
        require(
            self.hidden_size % groups == 0 and self.intermediate_size % groups == 0,
            f"linear_groups {groups} must divide hidden_size {self.hidden_size} and "
            f"intermediate_size {self.intermediate_size}.",
        )
        require_one_of(self, "conv_type", "sdconv", "dconv", "noconv")
        require(
            0 < self.initializer_range < math.inf,
            f"initializer_range must be positive, got {self.initializer_range}.",
        )
        require(
            1 <= self.head_ratio < math.inf,
            f"head_ratio must be at least 1, got {self.head_ratio}.",
        )
        for name in ("generator_hidden_size", "generator_layers"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name} is a fraction above 0, at most 1; got {value}.")

    def _check_sizes(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                least = 0 if field.name == "pad_token_id" else 1
                require(
                    value >= least,
                    f"{field.name} must be a whole number above {least - 1}, got {value!r}.",
                )
            if field.name.endswith("dropout_prob"):
                require(0 <= value < 1, f"{field.name} must be in [0, 1), got {value}.")

    @property
    def padding_reach(self):
        """How many tokens of padding behind a text its outputs depend on, through the convolution.

        (K - 1) / 2 a layer; 0 without a convolution, or if it is masked. More padding than that
        changes nothing.
        """
        if self.conv_type == "noconv" or self.mask_convolution:
            return 0
        return (self.conv_kernel_size - 1) // 2 * self.num_hidden_layers

    def generator(self):
        """The generator's own ModelConfig: thinner, all else inherited.

        Embeddings of its own are of its hidden size, as in the original.
        """
        hidden_size = round(self.hidden_size * self.generator_hidden_size)
        untied = self.untied_generator_embeddings
        return dataclasses.replace(
            self,
            hidden_size=hidden_size,
            embedding_size=hidden_size if untied else self.embedding_size,
            num_hidden_layers=max(1, round(self.num_hidden_layers * self.generator_layers)),
            intermediate_size=4 * hidden_size,
            num_attention_heads=max(1, int(self.num_attention_heads * self.generator_hidden_size)),
        )

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The config of `values`; a key that is no field is refused by name."""
        return section_from_dict(cls(), values, "model")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """What the pre-training step computes."""

    objective: str = setting(
        "electra",
        "electra: generator and discriminator; mlm: BERT's objective on the full-size encoder "
        "alone.",
    )
    mask_prob: float = setting(0.15, "Share of an input's tokens that are masked.")
    masking_with_replacement: bool = setting(
        False,
        "True is the original: positions are drawn with replacement, so a few fewer are masked.",
    )
    whole_word_masking: bool = setting(
        False,
        "A word's pieces are masked together, all or none; the number of masked tokens stays the "
        "most.",
    )
    gen_weight: float = setting(1.0, "Weight of the generator's loss.")
    disc_weight: float = setting(50.0, "Weight of the discriminator's loss.")
    untied_generator: bool = setting(
        True,
        "False: one full-size encoder is generator and discriminator, each with its own head.",
    )
    uniform_generator: bool = setting(
        False, "No generator: samples are uniform over the vocabulary."
    )
    temperature: float = setting(1.0, "Of sampling from the generator.")
    disallow_correct: bool = setting(False, "Never sample the token that was masked.")

    def __post_init__(self):
        check_types(self)
        require_one_of(self, "objective", "electra", "mlm")
        require(0 < self.mask_prob < 1, f"mask_prob must be in (0, 1), got {self.mask_prob}.")
        require(
            0 < self.temperature < math.inf,
            f"temperature must be positive, got {self.temperature}.",
        )
        require_not_negative(self, "gen_weight disc_weight")
        require(
            not (self.whole_word_masking and self.masking_with_replacement),
            "whole_word_masking draws words without replacement: not with "
            "masking_with_replacement.",
        )
        require(
            self.objective == "electra" or (self.untied_generator and not self.uniform_generator),
            "untied_generator and uniform_generator are options of objective 'electra'.",
        )
        require(
            self.untied_generator or not self.uniform_generator,
            "uniform_generator has no generator that untied_generator=False could tie.",
        )

    @property
    def has_own_generator(self):
        """Whether the generator is a second, smaller encoder."""
        return self.objective == "electra" and self.untied_generator and not self.uniform_generator

    def max_predictions_per_seq(self, max_seq_length):
        """M: the slots for masked positions in an input of `max_seq_length` tokens."""
        return min(max_seq_length, max(1, int((self.mask_prob + 0.005) * max_seq_length)))
