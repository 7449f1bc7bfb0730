"""Tool calls out of a model's text, as it arrives: what a call is (json_call), and where families put it (formats)."""
