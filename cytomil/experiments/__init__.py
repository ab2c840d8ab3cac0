"""Many runs: their records in tables and figures like the paper's."""
