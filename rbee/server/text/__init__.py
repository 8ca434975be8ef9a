"""From text to token ids and back: tokenizer, chat template, detokenizer, stop strings.

Knows neither HTTP nor streams nor the engine.
"""
