"""The worker protocol of rbee's queens and hives: jobs that run from their POST on and are read once, line by line."""
