"""Looking at data before it is used: a first spec for a folder, and the data doctor."""
