"""Small worlds that need no download: their data, and the factories of the bundled models.

Here live Shapes, images with texts, and Digits, images with classes. What a model learns from other data does not live
here, nor the commands that call these factories.
"""
