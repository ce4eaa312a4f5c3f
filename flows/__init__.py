"""The command line, the plan of a run's stages, and the Prefect flow that walks it."""
