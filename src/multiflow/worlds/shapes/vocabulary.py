"""All words of the Shapes language, collected from the lexicon and from the frames of the questions."""

from __future__ import annotations

from multiflow.worlds.shapes.lexicon import PHRASES
from multiflow.worlds.shapes.questions import FRAMES

#: Every word that captions, region captions, questions and answers can hold, sorted; punctuation is "," and "?".
VOCABULARY = tuple(sorted({word for phrase in (*PHRASES, *FRAMES, "and") for word in phrase.split()}))
