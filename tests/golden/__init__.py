"""Small recordings of other libraries' results, and the scripts that made them."""

from pathlib import Path

FOLDER = Path(__file__).parent
