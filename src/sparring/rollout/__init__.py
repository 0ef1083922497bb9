"""Engines below the sampler: vLLM behind a server or in this process, its weights exchanged while a run goes on."""
