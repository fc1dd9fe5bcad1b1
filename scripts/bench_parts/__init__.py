"""What scripts/bench, scripts/bench-loop, scripts/bench-suite and scripts/soak are made of."""
