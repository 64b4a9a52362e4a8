"""The report of a benchmark: pure functions from its records to tables, words, charts and one page."""

from multiflow.report.bench.page import write_report

__all__ = ["write_report"]
