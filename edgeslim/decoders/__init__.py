"""Llama-shaped decoders: read from checkpoints tensor by tensor, written as graphs with a KV cache, and run."""
