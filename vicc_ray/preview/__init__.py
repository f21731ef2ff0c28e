"""`vicc preview`: a contact sheet of what the network sees."""

from vicc_ray.preview.page import write_preview

__all__ = ["write_preview"]
