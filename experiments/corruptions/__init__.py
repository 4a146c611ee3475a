"""The errors of a finished run on corrupted test images."""
