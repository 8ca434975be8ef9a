"""The engine process: takes submissions, runs the model step by step, publishes tokens. Never sees HTTP or text."""
