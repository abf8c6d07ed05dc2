"""One module a claim: the check, and the mutants it rejects."""
