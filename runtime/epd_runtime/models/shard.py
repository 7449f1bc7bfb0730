"""Which part of a language model one of several ranks holds (tensor parallelism, Shoeybi et al. 2019).

Heads and MLP columns are divided; the vocabulary is divided in runs of rows whose last may be shorter. With fewer KV
heads than ranks, neighbouring ranks hold copies of the same head. Norms, routers, biases behind a sum over
ranks, and vision towers are whole on every rank.
"""

from __future__ import annotations

import dataclasses

from epd_runtime.json_fields import ModelConfigError
from epd_runtime.text_config import TextConfig

Run = tuple[int, int]  # first, count


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rank `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def divide(self, total: int, what: str) -> Run:
        """This rank's equal part of `total`; raises ModelConfigError when there is none."""
        if total % self.size:
            raise ModelConfigError(f"{what} {total} cannot be divided among {self.size} ranks")
        count = total // self.size
        return self.rank * count, count

    def kv_heads(self, total: int) -> Run:
        """This rank's KV heads, copies where ranks are more."""
        if total >= self.size:
            return self.divide(total, "num_key_value_heads")
        if self.size % total:
            raise ModelConfigError(f"num_key_value_heads {total} cannot be shared by {self.size} ranks")
        return self.rank * total // self.size, 1

    def vocabulary(self, total: int) -> Run:
        """This rank's rows of embedding and head."""
        share = -(-total // self.size)
        first = min(self.rank * share, total)
        return first, min(share, total - first)

    def part_of(self, config: TextConfig) -> TextConfig:
        """The sizes of this rank's layers; raises ModelConfigError when the model cannot be divided so."""
        experts = config.experts
        if experts is not None:
            _, columns = self.divide(experts.intermediate_size, "moe_intermediate_size")
            experts = dataclasses.replace(experts, intermediate_size=columns)
        return dataclasses.replace(
            config,
            vocab_size=self.vocabulary(config.vocab_size)[1],
            num_heads=self.divide(config.num_heads, "num_attention_heads")[1],
            num_kv_heads=self.kv_heads(config.num_kv_heads)[1],
            intermediate_size=self.divide(config.intermediate_size, "intermediate_size")[1],
            experts=experts,
        )


WHOLE = Shard()
