"""Training: settings, the one loop, checkpoints, several processes, tracking, and fine-tuning.

Here lives whatever changes the weights of a whole model by gradient steps. No task, no family of models and no data
have a name here: a task brings its batches and its loss, a family its presets.
"""
