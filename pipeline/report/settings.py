"""Settings of section ``report``."""

from __future__ import annotations

from pipeline.settings import Count, section


@section
class ReportConfig:
    """Section ``report``."""

    gallery_rows: Count
    """Pictures shown side by side."""
    bootstrap_samples: Count
    """Resamplings of the test pictures for the confidence intervals."""
