"""The benchmark's workers that run Hugging Face's implementations, on PyTorch and TensorFlow.

They may run in another environment than ours, one with Hugging Face's libraries; so at its head
this module imports nothing but the standard library and what needs no more. What a worker is and
how it is talked to stands in benchmark_workers.py.
"""

import contextlib
import itertools
import os
import tempfile

from tools.benchmark.workers import Ready, make_batch, repeat, serve


def _config(work):
    """Hugging Face's config of the same model."""
    import transformers

    ours = work["config"]
    same = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "embedding_size hidden_act hidden_dropout_prob attention_probs_dropout_prob "
        "max_position_embeddings type_vocab_size initializer_range conv_kernel_size head_ratio"
    )
    values = {name: ours[name] for name in same.split()}
    # Left to be found out in the first step, the kind of problem would have torch compile twice.
    values |= {"num_groups": ours["linear_groups"], "problem_type": "single_label_classification"}
    values["head_ratio"] = int(values["head_ratio"])  # transformers takes no 2.0
    return transformers.ConvBertConfig(**values)


def _inputs(work, convert):
    """The benchmark's batch by Hugging Face's names."""
    names = {"input_ids": "input_ids", "input_mask": "attention_mask"}
    names["segment_ids"] = "token_type_ids"
    batch = make_batch(work["config"]["vocab_size"], work["batch"], work["length"])
    return {names[name]: convert(value) for name, value in batch.items()}


# --- PyTorch ---


def _set_up_torch(work):
    import torch

    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _torch_batch(work, device):
    import torch

    return _inputs(work, lambda value: torch.from_numpy(value).long().to(device))


def _wait(device):
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _torch_peak():
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _compiled(model, work):
    """`model` under torch.compile if the work says so; for the one shape there is."""
    import torch

    return torch.compile(model, dynamic=False) if work["compile"] else model


def _num_weights(model):
    return sum(weight.numel() for weight in model.parameters())


def torch_forward(work):
    """The encoder's output; with weights of the precision's type."""
    import torch
    import transformers

    device = _set_up_torch(work)
    model = transformers.ConvBertModel(_config(work)).eval()
    model = model.to(device, getattr(torch, work["precision"]))
    function, inputs = _compiled(model, work), _torch_batch(work, device)

    def step():
        with torch.inference_mode():
            function(**inputs)
        _wait(device)

    return Ready(repeat(step), _num_weights(model), device_peak=_torch_peak)


def torch_step(work):
    """A step of a classifier: forward, backward, clipping, fused AdamW."""
    import torch
    import transformers

    device = _set_up_torch(work)
    model = transformers.ConvBertForSequenceClassification(_config(work)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    function, inputs = _compiled(model, work), _torch_batch(work, device)
    inputs["labels"] = torch.arange(work["batch"], device=device) % 2
    half = work["precision"] != "float32"
    dtype = getattr(torch, work["precision"])

    def step():
        context = torch.autocast(device.type, dtype) if half else contextlib.nullcontext()
        with context:
            loss = function(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)

    return Ready(repeat(step), _num_weights(model), device_peak=_torch_peak)


def torch_matrix_product(work):
    """A product of two square matrices of `size`, by which the machine's rate is known."""
    import torch

    device = _set_up_torch(work)
    dtype = getattr(torch, work["precision"])
    a, b = (torch.randn(work["size"], work["size"]).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)

    def step():
        torch.matmul(a, b, out=out)
        _wait(device)

    return Ready(repeat(step))


# --- TensorFlow ---


def _set_up_tensorflow(work):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(work["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(work["threads"])
    tf.random.set_seed(0)
    return _inputs(work, tf.constant)


def _tensorflow_peak():
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else 0


def _in_graph(function, inputs):
    """function(inputs), traced once for their shapes."""
    import tensorflow as tf

    signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in inputs.items()}
    graph = tf.function(function, input_signature=[signature])

    def step():
        graph(inputs)
        tf.test.experimental.sync_devices()

    return step


def tensorflow_forward(work):
    """The encoder's output, by tf.function with a static signature."""
    inputs = _set_up_tensorflow(work)
    import transformers

    model = transformers.TFConvBertModel(_config(work))
    step = _in_graph(lambda batch: model(batch, training=False).last_hidden_state, inputs)
    step()
    return Ready(repeat(step), model.count_params(), device_peak=_tensorflow_peak)


def tensorflow_step(work):
    """A step of a classifier: forward, backward, clipping, AdamW, in one tf.function."""
    inputs = _set_up_tensorflow(work)
    import tensorflow as tf
    import tf_keras
    import transformers

    model = transformers.TFConvBertForSequenceClassification(_config(work))
    optimizer = tf_keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0)
    inputs["labels"] = tf.range(work["batch"]) % 2
    model(inputs)
    optimizer.build(model.trainable_variables)

    def train(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(batch, training=True).loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    step = _in_graph(train, inputs)
    return Ready(repeat(step), model.count_params(), device_peak=_tensorflow_peak)


# --- from files to a result ---


def _read_cola(path):
    """(sentence, label) of each line of a file in CoLA's format: source, label, mark, sentence."""
    with open(path, encoding="utf-8") as file:
        rows = [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
    return [(row[3], int(row[1])) for row in rows]


def _correlation(predictions, labels):
    """Matthews' correlation coefficient."""
    import numpy as np

    matrix = np.corrcoef(predictions, labels)
    return float(np.nan_to_num(matrix[0, 1]))


def _tokenized(path, tokenizer, work):
    """Examples for Trainer; padded to `length` where `padding` is "max_length"."""
    rows = _read_cola(path)
    encoded = tokenizer(
        [sentence for sentence, _ in rows],
        truncation=True,
        max_length=work["length"],
        padding=work["padding"] == "max_length" and "max_length",
    )
    return [
        {name: values[i] for name, values in encoded.items()} | {"labels": label}
        for i, (_, label) in enumerate(rows)
    ]


def trainer_epoch(work):
    """From the files of a CoLA-format task to its score by Trainer: one epoch, then the dev set."""
    device = _set_up_torch(work)
    import transformers

    folder = tempfile.TemporaryDirectory()
    model = transformers.ConvBertForSequenceClassification(_config(work))
    model.save_pretrained(folder.name)

    def run(n):
        for _ in range(n):
            _train_and_score(work, folder.name, device)

    return Ready(run, _num_weights(model), warm_up=0, device_peak=_torch_peak)


def _train_and_score(work, directory, device):
    import transformers

    tokenizer = transformers.BertTokenizerFast(work["vocab_file"], do_lower_case=True)
    train, dev = (
        _tokenized(os.path.join(work["cola_dir"], f"{split}.tsv"), tokenizer, work)
        for split in ("train", "dev")
    )
    dynamic = transformers.DataCollatorWithPadding(tokenizer)
    collate = transformers.default_data_collator if work["padding"] == "max_length" else dynamic
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = transformers.Trainer(
            transformers.ConvBertForSequenceClassification.from_pretrained(directory),
            _training_arguments(work, output_dir, device),
            data_collator=collate,
            train_dataset=train,
            eval_dataset=dev,
            compute_metrics=lambda result: {
                "mcc": _correlation(result.predictions.argmax(-1), result.label_ids)
            },
        )
        trainer.train()
        print(trainer.evaluate())
        trainer.save_model()


def _training_arguments(work, output_dir, device):
    import transformers

    values = {
        "output_dir": output_dir,
        "per_device_train_batch_size": work["batch"],
        "per_device_eval_batch_size": work["batch"],
        "num_train_epochs": 1,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
    }
    return transformers.TrainingArguments(**values)


def records(work):
    """Pre-training records of a text file: Hugging Face's tokeniser, our packing, one process."""
    import numpy as np
    import tokenizers

    from convbert_tf.data import corpus

    tokenizer = tokenizers.BertWordPieceTokenizer(work["vocab_file"], lowercase=True)

    class Builder(corpus.ShardBuilder):
        def _tokenize(self, lines):
            encoded = tokenizer.encode_batch(lines, add_special_tokens=False)
            ids = [encoding.ids for encoding in encoded]
            edges = list(itertools.accumulate(map(len, ids), initial=0))
            return np.fromiter(itertools.chain.from_iterable(ids), np.int32, edges[-1]), edges

    def build(sources, settings, output_dir, finished):
        chunks = corpus._chunks(sources, settings["chunk_bytes"], settings["deduplicate"])
        return itertools.starmap(Builder(settings, output_dir), chunks)

    def run(n):
        for _ in range(n):
            with tempfile.TemporaryDirectory() as output_dir:
                corpus.build([work["text"]], output_dir, work["vocab_file"], run=build)

    return Ready(run, warm_up=1)


if __name__ == "__main__":
    serve(
        {
            "torch_forward": torch_forward,
            "torch_step": torch_step,
            "torch_matrix_product": torch_matrix_product,
            "tensorflow_forward": tensorflow_forward,
            "tensorflow_step": tensorflow_step,
            "trainer_epoch": trainer_epoch,
            "records": records,
        }
    )
