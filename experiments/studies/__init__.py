"""One folder per question: its study, and what it measures and draws."""
