"""Visual question answering: the likeliest of a list of answers, by the official accuracy."""
