"""Reports: one self-contained HTML page, built by pure functions from frozen values."""
