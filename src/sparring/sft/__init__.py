"""Supervised fine-tuning: the likelihood of given answers, on the engine of self-play.

`run.train` is the command `sparring sft`: rows of any usual form (`formats.py`) become lessons (`spans.py`,
`lessons.py`), of which the learner (`learner.py`) takes a batch each step (`trainer.py`).
"""
