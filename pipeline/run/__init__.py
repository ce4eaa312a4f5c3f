"""The run folder: what stages were made from, whether they are complete, what their files hold."""
