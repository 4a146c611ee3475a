"""One report of all results: a page, its Markdown, and what is generated in README.md and docs/."""
