"""Tables and figures of many runs, as in the paper."""
