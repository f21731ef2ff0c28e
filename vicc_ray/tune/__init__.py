"""Sweeps: Optuna proposes settings and keeps the history, Ray Tune runs each trial as a Ray Train run, recall judges."""
