"""The benchmarks: the product beside what one would use instead, and beside the limit; see docs/benchmarks.md."""
