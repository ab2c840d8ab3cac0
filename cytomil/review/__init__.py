"""Review: a person looks at a ranked folder in the browser, and what is decided there is kept in an append-only log."""
