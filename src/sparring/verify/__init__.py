"""Answers matched against references: what is an answer's final result, and is it the same."""
