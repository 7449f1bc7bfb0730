"""Inference engine for vision-language models whose stages (encoder, prefill, decode) run apart or together."""
