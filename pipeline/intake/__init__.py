"""Looking at data before it is used: a first spec for a folder, what headers show, the check."""
