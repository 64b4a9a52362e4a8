"""Models larger than memory: walked block by block, the activations of the calibration data carried on a disk."""

from multiflow.pruning.stream.run import BEGUN, WORK, check_request, prune_streamed, stream

__all__ = ["BEGUN", "WORK", "check_request", "prune_streamed", "stream"]
