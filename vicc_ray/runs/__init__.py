"""A run on disk: its folder, checkpoints, records, encoders and metrics sinks."""
