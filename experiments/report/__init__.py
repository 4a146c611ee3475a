"""One report of all results: a page, its Markdown, and the tables of README.md."""
