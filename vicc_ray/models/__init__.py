"""Backbones, encoders and classifiers, and their files."""
