"""From files of videos to decoded clips and augmented network inputs; no Ray."""
