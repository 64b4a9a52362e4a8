"""Tasks: what a task is, and one folder for each with its batches, its evaluation and its metric.

Here live the records that `evaluate` and fine-tuning know a task by. What trains a model does not live here, nor what
belongs to one family of models.
"""
