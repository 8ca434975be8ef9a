"""What is said of each request when it is over: a line in the log, and spans for a collector.

Knows neither HTTP servers, nor protocols, nor the engine.
"""
