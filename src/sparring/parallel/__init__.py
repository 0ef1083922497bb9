"""Several processes, one run.

Every rank plays the same game: games, payoffs, advantages and token weights are computed everywhere, on all turns, and
only work is shared out: prompts to sample, conversations to score, examples to learn from. One process is the case of
one rank, without process group or launcher.
"""

from sparring.parallel.launch import connected, speaks
from sparring.parallel.ranks import ALONE, RankError, Ranks, deal

__all__ = ["ALONE", "RankError", "Ranks", "connected", "deal", "speaks"]
