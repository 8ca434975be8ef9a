"""The engine process: takes submissions, runs the model step by step, publishes tokens. Does not know HTTP or text."""
