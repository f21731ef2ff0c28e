"""Stages, the loop that trains them, and what is learnt in it; no Ray."""
