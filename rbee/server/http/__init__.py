"""HTTP itself: the ASGI application's outermost layer, request bodies, and the way of frames to a socket.

Knows neither protocols nor streams nor the engine.
"""
