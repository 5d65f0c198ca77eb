"""What is done with tasks: pre-training, fine-tuning, trials, predicting, all of GLUE."""
