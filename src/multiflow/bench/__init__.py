"""The benchmark: a grid of models, pruners, sparsities, tasks and seeds, computed cell by cell.

Here live the records, the config and its checks, the work on one cell, the folder of results, the engines that
distribute cells, and the demo, a grid without training. How results are shown is no business of this package.
"""
