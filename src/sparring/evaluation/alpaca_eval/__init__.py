"""AlpacaEval 1 and 2: its instructions, files and figures, as published (github.com/tatsu-lab/alpaca_eval).

records.py reads JSON and JSONL with errors that name file and line; data.py has the instructions and AlpacaEval's own
files; verdicts.py the stored verdicts and how a weighted judge's log-probabilities become one; figures.py win rate and
standard error; length.py the length-controlled win rate, published or refitted.
"""
