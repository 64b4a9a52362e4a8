"""Retrieval: find the captions of an image, and the image of a caption."""
