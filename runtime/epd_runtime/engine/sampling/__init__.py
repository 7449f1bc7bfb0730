"""From logits to the next token of every row: processors, cuts, draw, logprobs, grammars."""
