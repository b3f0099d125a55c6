"""Where what is made once for a model is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$ROME_FAST_CACHE``, else ``rome_fast`` in the platform's cache folder."""
    if chosen := os.environ.get("ROME_FAST_CACHE"):
        return Path(chosen)
    import platformdirs  # here, so that the package can be imported without it

    return platformdirs.user_cache_path("rome_fast", appauthor=False)
