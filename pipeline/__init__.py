"""What every stage shares: data sets, settings, the run folder, runtime, scoring and intake."""
