"""Ray: sessions, resources, streams of decoded clips, jobs, and the launch of training."""
