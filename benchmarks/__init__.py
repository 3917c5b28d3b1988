"""What the project measures about itself: `python -m benchmarks.demo` trains on real text."""
