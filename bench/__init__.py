"""Measurements: quality of the results; each row says what ran, with which settings, on which versions."""
