"""Measurements: quality, speed, memory and parity; each row says what ran, with which settings, on which versions."""
