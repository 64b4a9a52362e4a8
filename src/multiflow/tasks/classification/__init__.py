"""Classification: which class an image shows, by top-1 accuracy."""
