"""Judges: who says which of two answers to one instruction is the better one."""
