"""Reports: what was found, as a document of sections, tables and drawings, written as HTML, Markdown, LaTeX and CSV.

Here live the document, the one model of a table, the charts, the template of the page, and the reports of the demo and
of the benchmark. Nothing is computed on models here, and nothing but the command line imports this package.
"""
