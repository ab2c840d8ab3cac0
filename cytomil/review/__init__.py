"""Review: a person looks at a ranked folder in the browser. The verdicts are kept in an append-only log."""
