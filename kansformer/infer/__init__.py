"""Classifies pictures with a weights file."""

from kansformer.infer.predictor import (
    Predictor,
    answer_as_row,
    answer_as_text,
    find_pictures,
)

__all__ = ["Predictor", "answer_as_row", "answer_as_text", "find_pictures"]
