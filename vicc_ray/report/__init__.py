"""Run folders -> one self-contained HTML page; reads files, runs nothing."""

from __future__ import annotations

from vicc_ray.report.page import write_report

__all__ = ["write_report"]
