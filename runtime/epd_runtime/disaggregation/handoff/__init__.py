"""The KV handoff from prefill to decode: contract.py for the schedulers, wire.py between the processes, both sides."""
