"""Protocols that judge encoders, and what they share: features and where they are stored, predictions, results."""
