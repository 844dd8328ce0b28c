"""Run a bundle on images and video, without torch."""
