"""Small records of what other libraries compute, and the scripts that made them."""

from pathlib import Path

FOLDER = Path(__file__).parent
