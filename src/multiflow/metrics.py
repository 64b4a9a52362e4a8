"""Metrics of the tasks, in percent, equal to those of the official tools: reached as ``mf.metrics``."""

from multiflow.tasks.captioning.metrics import CAPTION_METRICS, caption_scores, missing_caption_metrics
from multiflow.tasks.classification.task import top1
from multiflow.tasks.retrieval.rerank import recall
from multiflow.tasks.task import Figures, loyalty
from multiflow.tasks.vqa.metric import vqa_accuracy, write_vqa_results

__all__ = [
    "CAPTION_METRICS",
    "Figures",
    "caption_scores",
    "loyalty",
    "missing_caption_metrics",
    "recall",
    "top1",
    "vqa_accuracy",
    "write_vqa_results",
]
