"""The packed store: videos decoded once, kept as short H.264 stretches in shards, and read again at random."""
