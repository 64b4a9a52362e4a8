"""The benchmark: a grid of models, pruners, sparsities, tasks and seeds, computed cell by cell."""
