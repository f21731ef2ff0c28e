"""Figures of features and predictions: arrays in, numbers out."""
