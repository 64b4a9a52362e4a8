"""What everything else rests on: values, errors, registries, files, folders of runs, order statistics, processes.

No methods, no models, no data: nothing here knows what is pruned.
"""
