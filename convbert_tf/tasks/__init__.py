"""A module a family of tasks: training, scoring, predicting."""
