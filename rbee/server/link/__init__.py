"""The server's end of the engine: its process, its control channel, and the one drain loop.

Knows neither HTTP nor what a token means.
"""
