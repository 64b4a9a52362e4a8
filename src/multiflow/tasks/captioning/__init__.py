"""Captioning: a sentence about an image, written by beam search and compared with the sentences people wrote."""
