"""The benchmark's workers that answer questions by Hugging Face's implementation, on PyTorch.

Transformers 5 has no pipeline for it any more; what its documentation has instead is its example
run_qa: a tokenizer that cuts windows, `ConvBertForQuestionAnswering`, and a search for the best
spans in Python. `example` does the same. `pipeline` is that of transformers 4.
"""

import json

import numpy as np

from tools.benchmark.peers import _compiled, _num_weights, _set_up_torch, _torch_peak
from tools.benchmark.workers import Ready, repeat, serve

N_BEST, MAX_ANSWER_LENGTH = 20, 30


def _questions(work):
    """(question, context) of each question, in the file's order."""
    with open(work["squad"], encoding="utf-8") as file:
        articles = json.load(file)["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [(qa["question"], each["context"]) for each in paragraphs for qa in each["qas"]]


def _tokenizer(work):
    import transformers

    return transformers.BertTokenizerFast(work["vocab_file"], do_lower_case=True)


def load_model(work):
    """(Hugging Face's model in `model`, its device); `task` "sentences" for a classifier."""
    import transformers

    device = _set_up_torch(work)
    name = "SequenceClassification" if work.get("task") == "sentences" else "QuestionAnswering"
    model = getattr(transformers, f"ConvBertFor{name}").from_pretrained(work["model"])
    return model.to(device).eval(), device


def example(work):
    """From questions and contexts to n-best lists, as run_qa does it."""
    asked, tokenizer = _questions(work), _tokenizer(work)
    model, device = load_model(work)
    function = _compiled(model, {"compile": False} | work)

    def answer(asked):
        features, inputs = _windows(asked, tokenizer, work)
        return _best_spans(asked, features, *_logits(function, inputs, device, work, tokenizer))

    answer(asked[: 2 * work["batch"]])
    windows = len(_windows(asked, tokenizer, work)[1])
    run = repeat(lambda: answer(asked))
    return Ready(run, _num_weights(model), 0, windows=windows, device_peak=_torch_peak)


def _windows(asked, tokenizer, work):
    """A (question's number, offsets of its context's tokens) a window, and a dict of ids each."""
    encoded = tokenizer(
        [question.lstrip() for question, _ in asked],
        [context for _, context in asked],
        truncation="only_second",
        max_length=work["length"],
        stride=work["doc_stride"],
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if work["padding"] == "max_length" else False,
    )
    owners, offsets = (
        encoded.pop(name) for name in ("overflow_to_sample_mapping", "offset_mapping")
    )
    features = []
    for number, owner in enumerate(owners):
        of_context = encoded.sequence_ids(number)
        places = [
            place if which == 1 else None
            for place, which in zip(offsets[number], of_context, strict=True)
        ]
        features.append((owner, places))
    inputs = [{name: values[i] for name, values in encoded.items()} for i in range(len(owners))]
    return features, inputs


def _logits(function, inputs, device, work, tokenizer):
    """Start and end logits of the windows, lists of arrays [T], computed in batches."""
    import torch

    order = list(range(len(inputs)))
    if work.get("sort"):
        order.sort(key=lambda i: -len(inputs[i]["input_ids"]))
    starts, ends = [None] * len(order), [None] * len(order)
    for first in range(0, len(order), work["batch"]):
        chosen = order[first : first + work["batch"]]
        # Filled up, since another shape would be compiled anew.
        rows = [inputs[i] for i in chosen + chosen[-1:] * (work["batch"] - len(chosen))]
        batch = tokenizer.pad(rows, padding=work["padding"], return_tensors="pt").to(device)
        with torch.inference_mode():
            outputs = function(**batch)
        both = (outputs.start_logits.cpu().numpy(), outputs.end_logits.cpu().numpy())
        for row, i in enumerate(chosen):
            starts[i], ends[i] = (logits[row] for logits in both)
    return starts, ends


def _best_spans(asked, features, starts, ends):
    """The n-best list of each question: of the best starts and ends, all pairs that may be."""
    candidates = [[] for _ in asked]
    for (owner, places), start_logits, end_logits in zip(features, starts, ends, strict=True):
        best_ends = np.argsort(end_logits)[-1 : -N_BEST - 1 : -1].tolist()
        for start in np.argsort(start_logits)[-1 : -N_BEST - 1 : -1].tolist():
            for end in best_ends:
                if start >= len(places) or end >= len(places):
                    continue
                if not places[start] or not places[end]:
                    continue
                if end < start or end - start + 1 > MAX_ANSWER_LENGTH:
                    continue
                score = start_logits[start] + end_logits[end]
                candidates[owner].append((score, places[start][0], places[end][1]))
    return [_n_best(context, found) for (_, context), found in zip(asked, candidates, strict=True)]


def _n_best(context, candidates):
    best = sorted(candidates, key=lambda found: found[0], reverse=True)[:N_BEST]
    if not best:
        return [{"text": "", "probability": 1.0}]
    scores = np.array([score for score, _, _ in best])
    weights = np.exp(scores - scores.max())
    return [
        {"text": context[start:end], "probability": weight, "start": start, "end": end}
        for (_, start, end), weight in zip(best, weights / weights.sum(), strict=True)
    ]


def pipeline_of(work, **options):
    """A function of rows (question, context) by `pipeline("question-answering")`, and its model."""
    import transformers

    model, device = load_model(work)
    pipe = transformers.pipeline(
        "question-answering", model=model, tokenizer=_tokenizer(work), device=device
    )
    options |= {"max_seq_len": work["length"], "doc_stride": work["doc_stride"]}

    def answer(rows, **more):
        asked = [{"question": question, "context": context} for question, context in rows]
        return list(pipe(asked, **options, **more))

    return answer, model


def pipeline(work):
    """From questions and contexts to n-best lists by `pipeline("question-answering")`."""
    answer, model = pipeline_of(work, max_answer_len=MAX_ANSWER_LENGTH, top_k=N_BEST)
    asked = _questions(work)
    answer(asked[: 2 * work["batch"]])
    run = repeat(lambda: answer(asked))
    return Ready(run, _num_weights(model), warm_up=0, device_peak=_torch_peak)


if __name__ == "__main__":
    serve({"example": example, "pipeline": pipeline})
