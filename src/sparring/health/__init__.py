"""Whether a run is still well: figures of its turns and updates, rules that judge them, a match against its start."""
