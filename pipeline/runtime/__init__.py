"""What training loops run on: a device, threads, reading processes, checkpoints and a log."""
