"""IFEval's 25 instructions, checked by program. Source: Zhou et al. 2023, arXiv 2311.07911.

Written from the behaviour of google-research's `instruction_following_eval`, whose verdicts these are meant to repeat,
odd ones too. Where they can differ:

- Sentences (number_sentences) and tokens (capital_word_frequency): the original has NLTK's trained Punkt model; here
  its rules stand with a short list of abbreviations (`counting`), so a text with rare abbreviations may count one
  sentence more or less.
- Languages: the original leaves langdetect's random seed open; here it is fixed, so that a verdict is repeatable.
- Arguments that a row lacks are an error here; the original draws random ones.
- A text that can't be checked in reasonable time or depth (JSON nested a thousand times) does not follow; the original
  raises or hangs.
"""
