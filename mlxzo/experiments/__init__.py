"""Many runs: sweeps, comparisons, the queue and reports."""
