"""Families of tasks: what differs between sentences, questions and tokens in fine-tuning.

A family has

    config              TaskConfig, with what its data tell of it
    schema              of its records (data/records.py)
    metric_names        of its scores, the one that counts first
    main_metric         the one by which the best step and the best run are chosen
    loss_options        for the model's `example_losses`
    files(split)        paths of the files that are read for a split
    evaluation_splits() names of the splits that a run is scored on, the one that counts first
    check(batch_size)   refuses files that cannot be read, or that do not fill a batch to train on
    make_model(model)   a model with the family's head on the encoder of `model`
    misfit(model)       why the head of `model` is not the task's, or ""
    serving(metrics)    options of serving.export, to answer as the task is scored with `metrics`
    write_training_records(path)    writes the records; returns their number
    evaluation(split, work_dir)     what of a split is to be predicted, with
        serialized          its records, numbered by their `example_id`
        num_examples        how many it predicts
        labelled            whether it has labels; without them there is no score and no report
        score(outputs)      metrics of a model's outputs for them
        report(outputs)     what a report has beside the metrics: classes, confusion, mistakes
        views(outputs)      of questions: what each is answered, for pages; missing elsewhere
        write(outputs, directory)   predictions in the family's own form of a file
        ensemble(outputs)   one model's outputs from a list of several's; missing where they have
                            no mean
    baseline(split)     metrics that need no model, to compare with
"""

from convbert_tf.config import OWN_TASK
from convbert_tf.tasks import glue, own, questions, tokens
from convbert_tf.tasks.sentences import Sentences


def make(config, tokenizer):
    """The family of the task that `config` (TaskConfig) names."""
    if config.name in questions.TASKS:
        return questions.Questions(config, tokenizer)
    if config.name in tokens.TASKS:
        return tokens.Tokens(config, tokenizer)
    if config.name == OWN_TASK:
        source = own.Tables(config)
        return Sentences(source.config, source, tokenizer)
    return Sentences(config, glue.source(config.name, config.data_dir), tokenizer)
