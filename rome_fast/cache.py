"""Where what is made once for a model is kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """``$ROME_FAST_CACHE``, else ``rome_fast`` in the platform's cache folder."""
    chosen = os.environ.get("ROME_FAST_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("rome_fast", appauthor=False)
