"""The plan's figures by hand, its remedies by planning again, and what it holds against tensors that are there."""

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import GPT2Config, LlamaConfig, MambaConfig, MixtralConfig, PreTrainedConfig, Qwen3Config

from sparring.batching import Example
from sparring.build import build_game, build_learner
from sparring.config import resolve
from sparring.models import build_models
from sparring.plan import GPU, GPUS, gpu_named, plan, render, to_json
from sparring.plan.activations import Fast, Generic, Pass, prompts_pass, scoring_pass
from sparring.plan.hardware import GIB
from sparring.plan.memory import adapter_copies, head_workspace, held, phases, rewarding, sampling, updating
from sparring.plan.model import language_model
from sparring.plan.setup import Setup, read_shapes, set_up
from sparring.plan.time import decode_bytes, decode_flops, optimiser_bytes, prefill_flops, step_seconds, update_flops
from sparring.plan.workload import Call, Workload, workload
from sparring.settings import RunConfig
from tiny_models import save_tiny_llama, save_tiny_qwen3, save_tiny_reward

H100 = GPUS["h100"]
CORE = GPU("a core", 16, 1, 0.02, "cpu")


@dataclass(frozen=True)
class Sizes:
    """One published model: sizes from its config.json, parameters (billions) from its model card."""

    layers: int
    hidden: int
    heads: int
    keys: int
    head: int
    wide: int
    vocab: int
    tied: bool
    billions: float
    family: type[PreTrainedConfig] = LlamaConfig

    def config(self) -> PreTrainedConfig:
        return self.family(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.keys,
            head_dim=self.head,
            intermediate_size=self.wide,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
        )

    @property
    def query(self) -> int:
        return self.heads * self.head

    @property
    def key(self) -> int:
        return self.keys * self.head

    @property
    def body(self) -> int:
        attention = self.hidden * (self.query + 2 * self.key) + self.query * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.wide)


SIZES = {
    "llama-1b": Sizes(16, 2048, 32, 8, 64, 8192, 128_256, True, 1.24),
    "llama-3b": Sizes(28, 3072, 24, 8, 128, 8192, 128_256, True, 3.21),
    "llama-8b": Sizes(32, 4096, 32, 8, 128, 14336, 128_256, False, 8.03),
    "llama-70b": Sizes(80, 8192, 64, 8, 128, 28672, 128_256, False, 70.6),
    "qwen3-8b": Sizes(36, 4096, 32, 8, 128, 12288, 151_936, False, 8.19, Qwen3Config),
}
# By hand from the sizes above: bytes of keys and values a token in bfloat16, LoRA's parameters at rank 32.
CACHE = {"llama-1b": 32_768, "llama-3b": 114_688, "llama-8b": 131_072, "llama-70b": 327_680, "qwen3-8b": 147_456}
ADAPTER = {
    "llama-1b": 22_544_384,
    "llama-3b": 48_627_712,
    "llama-8b": 83_886_080,
    "llama-70b": 414_187_520,
    "qwen3-8b": 87_293_952,
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of config.json for each model, and for a reward model."""
    root = tmp_path_factory.mktemp("configs")
    for name, sizes in SIZES.items():
        config = sizes.config()
        config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
        config.save_pretrained(root / name)
    reward = SIZES["llama-3b"].config()
    reward.architectures, reward.num_labels = ["LlamaForSequenceClassification"], 1
    reward.save_pretrained(root / "reward")
    return root


def run_of(configs: Path, name: str, *overrides: str) -> RunConfig:
    """LSP on text with this model, 8 queries of 8 answers, without a reward model unless one is asked for."""
    given = (f"model.path={configs / name}", "game.domain=text", "model.cache_tokens=65536", *overrides)
    return resolve(RunConfig(), None, given)


def setup_of(configs: Path, name: str, *overrides: str, gpu: GPU = H100, gpus: int = 1, server: bool = False) -> Setup:
    config = run_of(configs, name, *overrides)
    return set_up(config, read_shapes(config), gpu, gpus, "server" if server else "local")


@pytest.mark.parametrize("name", SIZES)
class TestPublishedModels:
    def test_parameters_are_the_published_ones(self, configs: Path, name: str) -> None:
        shape = language_model(configs / name)
        assert shape.parameters / 1e9 == pytest.approx(SIZES[name].billions, rel=0.01)
        assert shape.body == SIZES[name].body
        assert shape.head == SIZES[name].vocab * SIZES[name].hidden
        assert shape.tied == SIZES[name].tied and shape.fast

    def test_full_tuning_holds_twenty_bytes_a_parameter(self, configs: Path, name: str) -> None:
        parameters = language_model(configs / name).parameters
        assert held(setup_of(configs, name)) == {
            "masters": 4 * parameters,
            "compute copies": 2 * parameters,
            "moments": 8 * parameters,
            "reference": 2 * parameters,
        }

    def test_lora_holds_one_base_and_the_adapter(self, configs: Path, name: str) -> None:
        sizes, setup = SIZES[name], setup_of(configs, name, "model.tuning=lora", "model.lora.rank=32")
        assert setup.trained == ADAPTER[name]
        into = 3 * sizes.hidden + sizes.query + 2 * sizes.hidden + sizes.wide
        assert setup.trained == 32 * sizes.layers * (
            into + sizes.query + 2 * sizes.key + 2 * sizes.wide + 2 * sizes.hidden
        )
        # B of q, k, v is a block of three on a diagonal, that of gate and up one of two.
        blocks = 3 * (sizes.query + 2 * sizes.key) + 2 * 2 * sizes.wide + 2 * sizes.hidden
        assert adapter_copies(setup) == 32 * sizes.layers * (into + blocks)
        assert held(setup) == {
            "frozen base": 2 * language_model(configs / name).parameters,
            "masters": 4 * ADAPTER[name],
            "compute copies": 2 * adapter_copies(setup),
            "moments": 8 * ADAPTER[name],
        }

    def test_qlora_packs_the_layers_only(self, configs: Path, name: str) -> None:
        sizes, parameters = SIZES[name], language_model(configs / name).parameters
        parts = held(setup_of(configs, name, "model.tuning=qlora"))
        packed = 0.5 + 1 / 64 + 4 / 16_384  # a byte of scale for 64 weights, four more for 256 of those
        assert parts["frozen base"] == pytest.approx(packed * sizes.body + 2 * (parameters - sizes.body), rel=1e-6)
        assert "compute copies" not in parts and "reference" not in parts

    def test_the_cache_of_a_token(self, configs: Path, name: str) -> None:
        # 17 completions after one prompt: 16 slots once and for each row, in the first growth.
        call = Call("solver", 1, 17, 1, 17, 1)
        moment, parts = sampling(setup_of(configs, name), Fast(), call)
        assert moment == "writing the solver's turns"
        assert parts["cache"] == CACHE[name] * (1 + 17 * 16)
        assert parts["logits"] == 17 * SIZES[name].vocab * (12 + 2)

    def test_what_a_layer_keeps_of_a_token(self, configs: Path, name: str) -> None:
        sizes, batch = SIZES[name], Pass(1, 4096, 0, 0, 4096, 1)
        numbers = 4 * sizes.hidden + 2 * sizes.query + 2 * sizes.key + 4 * sizes.wide
        if sizes.family is Qwen3Config:
            numbers += sizes.query + 2 * sizes.key  # queries, keys and values before the heads' norms
        # 4096² weights of every head of every layer are beyond what is kept; two norms keep a float32 each.
        assert Fast().kept(setup_of(configs, name), batch) == 4096 * (2 * numbers + 8)

    def test_update_takes_four_forward_equivalents(self, configs: Path, name: str) -> None:
        sizes = SIZES[name]
        work = Workload((Call("solver", 2, 3, 10, 20, 2), Call("grader", 6, 1, 30, 5, 6, trained=False)), 0, 0)
        forward = 2 * sizes.body * (2 * 10 + 6 * 20) + 2 * sizes.vocab * sizes.hidden * 6 * 20
        assert update_flops(setup_of(configs, name), work) == 4 * forward
        again = setup_of(configs, name, "model.gradient_checkpointing=true")
        assert update_flops(again, work) == 4 * forward + 2 * sizes.body * 140
        lora = setup_of(configs, name, "model.tuning=lora")
        assert update_flops(lora, work) == 3 * forward + 6 * ADAPTER[name] * 140
        unpenalised = setup_of(configs, name, "learner.beta=0")
        assert update_flops(unpenalised, work) == 3 * forward
        generic = setup_of(configs, name, "model.engine=generic")
        assert update_flops(generic, work) - 4 * forward == 4 * 2 * sizes.body * 4 * 10  # each prompt twice more

    def test_sampling_reads_weights_and_cache(self, configs: Path, name: str) -> None:
        sizes, setup, call = SIZES[name], setup_of(configs, name), Call("solver", 2, 3, 10, 21, 2)
        matrices = sizes.body + sizes.vocab * sizes.hidden
        assert prefill_flops(setup, call) == 2 * 2 * (10 * sizes.body + sizes.vocab * sizes.hidden)
        assert decode_flops(setup, call) == 2 * matrices * 6 * 20
        # 20 steps read the weights, two prompts of 10 tokens, and 1 + 2 + ... + 20 tokens of each completion.
        assert decode_bytes(setup, call, 1) == 20 * 2 * matrices + CACHE[name] * (2 * 10 * 20 + 6 * 210)
        assert decode_bytes(setup, call, 3) - decode_bytes(setup, call, 1) == 2 * 20 * 2 * matrices

    def test_optimiser_traffic(self, configs: Path, name: str) -> None:
        assert optimiser_bytes(setup_of(configs, name)) == 30 * language_model(configs / name).parameters
        assert optimiser_bytes(setup_of(configs, name, gpus=4)) == 7.5 * language_model(configs / name).parameters


class TestUpdateMemory:
    """Llama-3.1-8B, whose update is worked out by hand."""

    def moments(self, configs: Path, *overrides: str, gpus: int = 1) -> dict[str, dict[str, int]]:
        setup = setup_of(configs, "llama-8b", *overrides, gpus=gpus)
        work = Workload((Call("solver", 1, 2, 1000, 501, 1),), 0, 0)
        return dict(updating(setup, Fast(), work))

    def test_activations_of_a_micro_batch(self, configs: Path) -> None:
        tokens, scored = 1000 + 2 * 500, 2 * 501
        weights = 32 * (1000**2 + 2 * 500 * 1500)  # a layer's attention weights: below 2^29 in 32 layers only with ...
        assert 32 * weights > 2**29  # ... a shorter text: none are kept
        layer = tokens * (2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336) + 8)
        indices = 8 * tokens * (48 + 48 + 32)
        kept = 32 * layer + indices
        found = self.moments(configs)
        assert found["backward through the head"]["activations"] == kept + 2 * 2 * scored * 4096
        # In the MLP's middle: two of its width and two of the hidden width, and the layer's incoming gradient.
        working = 2 * tokens * (2 * 14336 + 2 * 4096) + 2 * tokens * 4096
        assert found["backward through the last layer"]["activations"] == kept + working
        assert found["backward through the first layer"]["activations"] == indices + layer + working

    def test_checkpointing_keeps_a_layers_input(self, configs: Path) -> None:
        tokens, scored = 2000, 1002
        layer = tokens * (2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336) + 8)
        weights = 2 * 32 * (1000**2 + 2 * 500 * 1500)  # of the one layer computed again: few enough
        kept = 32 * tokens * 2 * 4096 + 8 * tokens * 128
        found = self.moments(configs, "model.gradient_checkpointing=true")
        assert found["backward through the head"]["activations"] == kept + 2 * 2 * scored * 4096
        working = 2 * tokens * (2 * 14336 + 3 * 4096)
        assert found["backward through the last layer"]["activations"] == kept + layer + weights + working

    def test_gradients_grow_to_the_copies_and_then_the_masters(self, configs: Path) -> None:
        parameters, head = 8_030_261_248, 128_256 * 4096
        found = self.moments(configs)
        assert found["scoring by the reference"]["gradients"] == 0
        assert found["backward through the head"]["gradients"] == 2 * head
        assert found["backward through the first layer"]["gradients"] == 2 * parameters - 2 * head
        assert found["backward through the embedding"]["gradients"] == 2 * parameters
        assert found["handing the gradients over"]["gradients"] == 4 * parameters + 2 * head
        assert found["stepping"] == {"gradients": 4 * parameters}

    def test_a_tied_embedding_has_its_gradient_three_times(self, configs: Path) -> None:
        setup = setup_of(configs, "llama-1b")
        found = dict(updating(setup, Fast(), Workload((Call("solver", 1, 2, 100, 50, 1),), 0, 0)))
        embedding = 2 * 128_256 * 2048
        assert found["backward through the first layer"]["gradients"] == 2 * 1_235_814_400
        assert found["backward through the embedding"]["gradients"] == 2 * 1_235_814_400 + 2 * embedding
        assert found["handing the gradients over"]["gradients"] == 4 * 1_235_814_400

    def test_a_second_micro_batch_finds_the_masters_gradients(self, configs: Path) -> None:
        found = self.moments(configs, "learner.token_budget=1600")
        assert found["scoring by the reference"]["gradients"] == 4 * 8_030_261_248
        assert found["backward through the embedding"]["gradients"] == 6 * 8_030_261_248
        minibatches = self.moments(configs, "learner.token_budget=1600", "learner.minibatches=2")
        assert minibatches["scoring by the reference"]["gradients"] == 0  # one micro-batch each

    def test_lora_has_gradients_of_the_adapter_alone(self, configs: Path) -> None:
        found = self.moments(configs, "model.tuning=lora")
        assert found["backward through the head"]["gradients"] == 0
        assert found["stepping"]["gradients"] == 4 * 83_886_080

    def test_shards_on_eight_gpus(self, configs: Path) -> None:
        parameters, layer = 8_030_261_248, 218_112_000
        setup = setup_of(configs, "llama-8b", gpus=8)
        gathered = 2 * (2 * layer + 2 * 128_256 * 4096 + 4096 // 32)  # the final norm is counted with the layers
        assert held(setup) == {
            "masters": parameters // 2,
            "compute copies": parameters // 4,
            "moments": parameters,
            "reference": parameters // 4,
            "gathered layers": pytest.approx(gathered, rel=1e-6),
        }
        found = self.moments(configs, gpus=8)
        assert found["stepping"]["gradients"] == parameters // 2
        assert found["backward through the first layer"]["gradients"] == pytest.approx(gathered, rel=1e-6)

    def test_the_head_works_in_chunks(self, configs: Path) -> None:
        setup = setup_of(configs, "llama-8b")
        hidden = 1000 * 4096 * (4 + 4)
        assert head_workspace(setup, 1000) == 2**24 * (2 * 4 + 2) + hidden
        assert head_workspace(setup, 1) == 128_256 * 10 + 4096 * 8
        exact = setup_of(configs, "llama-8b", "learner.kl=exact")
        assert head_workspace(exact, 1000) == 2**24 * (4 * 4 + 2) + hidden

    def test_frozen_matrices_without_an_adapter_keep_no_input(self, configs: Path) -> None:
        batch = Pass(1, 4096, 0, 0, 4096, 1)
        every = Fast().kept(setup_of(configs, "llama-8b", "model.tuning=lora"), batch)
        some = Fast().kept(
            setup_of(configs, "llama-8b", "model.tuning=lora", "model.lora.targets=q_proj,v_proj"), batch
        )
        # o_proj's, gate_up's and down_proj's inputs, and five adapters' inner products of rank 32.
        assert every - some == 4096 * 2 * (4096 + 4096 + 14336 + 5 * 32)


class TestSamplingMemory:
    def test_prompts_of_many_conversations_are_the_worst_of_grading(self, configs: Path) -> None:
        call = Call("grader", 64, 1, 1000, 16, 64, trained=False)
        moment, parts = sampling(setup_of(configs, "llama-8b"), Fast(), call)
        assert moment == "reading the grader's prompts"
        assert parts["cache"] == 64 * 1000 * 131_072
        mlp = 2 * 64_000 * (3 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336)
        assert parts["activations"] == mlp + 8 * 64_000 * (48 + 48 + 32)

    def test_cache_tokens_bounds_a_batch(self, configs: Path) -> None:
        call = Call("solver", 64, 8, 100, 200, 64)
        all_of_it, half = (
            sampling(setup_of(configs, "llama-8b", f"model.cache_tokens={tokens}"), Fast(), call)[1]["cache"]
            for tokens in (64 * 1700, 32 * 1700)
        )
        assert half == all_of_it // 2
        least = sampling(setup_of(configs, "llama-8b", "model.cache_tokens=1"), Fast(), call)[1]["cache"]
        assert least == all_of_it // 64

    def test_old_and_new_slots_lie_side_by_side(self, configs: Path) -> None:
        # 255 slots: 16, 32, 48, 64, 80, 100, 125, 156, 195, 243, 255; the last growth holds 243 and 255.
        call = Call("solver", 64, 8, 10, 256, 64)
        _, parts = sampling(setup_of(configs, "llama-8b", "model.cache_tokens=1000000"), Fast(), call)
        assert parts["cache"] == 131_072 * (64 * 10 + 512 * (243 + 255))
        assert parts["logits"] == 512 * 128_256 * 6

    def test_the_generic_path_repeats_prompts(self, configs: Path) -> None:
        setup = setup_of(configs, "llama-8b", "model.engine=generic")
        _, parts = sampling(setup, Generic(), Call("solver", 2, 4, 100, 50, 2))
        assert parts["cache"] == 8 * 150 * 131_072 * 33 // 32  # and a layer's twice, as it grows

    def test_filters_hold_more(self, configs: Path) -> None:
        call = Call("solver", 1, 17, 1, 17, 1)
        filtered = setup_of(configs, "llama-8b", "game.solver.top_p=0.9")
        assert sampling(filtered, Fast(), call)[1]["logits"] == 17 * 128_256 * 34


class TestPhases:
    def test_where_the_reward_model_is(self, configs: Path) -> None:
        reward = f"game.reward.model={configs / 'reward'}"
        here = setup_of(configs, "llama-1b", reward)
        parameters = 3_212_749_824 + 3_072  # with the score's row
        assert held(here)["reward model"] == 2 * parameters
        assert held(setup_of(configs, "llama-1b", reward, gpus=4))["reward model"] == 2 * parameters
        # 8 N · 8 G conversations, 6 of 5000 tokens at a time.
        work = Workload((), 64, 5000)
        assert rewarding(here, work)["activations"] == 30_000 * (2 * (3 * 3072 + 3 * 8192) + 5000)
        for elsewhere in ("game.reward.url=http://host:8000", "game.reward.device=cuda:1"):
            assert setup_of(configs, "llama-1b", reward, elsewhere).reward is None
        together = setup_of(configs, "llama-1b", reward, "model.device=cuda", "game.reward.device=cuda:0")
        assert together.reward is not None

    def test_a_rollout_server_takes_the_sampling(self, configs: Path) -> None:
        def names(*overrides: str) -> dict[str, str]:
            setup = setup_of(configs, "llama-1b", *overrides, server=True)
            return {phase.name: phase.moment for phase in phases(setup, workload(run_of(configs, "llama-1b"), 8))}

        # The frozen copy in this process grades, unless it has a server too or is the base under the adapter.
        assert names()["sampling"].endswith("the grader's prompts")
        vllm = ("rollout.engine=vllm", "rollout.url=http://host:8000")
        assert names(*vllm).keys() == {"sampling", "update"}
        assert names(*vllm, "rollout.reference_url=http://host:8001").keys() == {"update"}
        assert names(*vllm, "model.tuning=lora").keys() == {"update"}

    def test_vllm_in_this_process(self, configs: Path) -> None:
        setup = setup_of(configs, "llama-1b", "rollout.engine=vllm", "rollout.memory=3", server=True)
        assert held(setup)["vLLM"] == 2 * 1_235_814_400 + 3 * GIB
        config = run_of(configs, "llama-1b", "rollout.engine=vllm")
        made = plan(config, H100, rollout="server")
        assert (made.served, made.server_gpus) == ((), 0)
        assert made.seconds["solver"] == pytest.approx(plan(run_of(configs, "llama-1b"), H100).seconds["solver"])

    def test_the_reference_is_held_where_anything_asks_it(self, configs: Path) -> None:
        graded, program = "learner.beta=0", "game.quality.source=program"
        assert setup_of(configs, "llama-1b", graded).reference is not None
        assert setup_of(configs, "llama-1b", graded, program).reference is None

    def test_adapters_are_replicated_unless_they_are_to_be_sharded(self, configs: Path) -> None:
        whole = held(setup_of(configs, "llama-8b", "model.tuning=lora", gpus=8))
        assert whole == held(setup_of(configs, "llama-8b", "model.tuning=lora"))
        cut = held(setup_of(configs, "llama-8b", "model.tuning=lora", "parallel.strategy=shard", gpus=8))
        assert cut["frozen base"] == whole["frozen base"] // 8
        full = held(setup_of(configs, "llama-8b", "parallel.strategy=replicate", gpus=8))
        assert full == held(setup_of(configs, "llama-8b"))

    def test_a_reference_of_its_own_is_held_under_lora_too(self, configs: Path) -> None:
        setup = setup_of(configs, "llama-1b", "model.tuning=lora", f"model.reference={configs / 'llama-3b'}")
        assert held(setup)["reference"] == 2 * 3_212_749_824

    def test_precision(self, configs: Path) -> None:
        wide = held(setup_of(configs, "llama-1b", "model.dtype=float32"))
        assert wide["compute copies"] == wide["reference"] == wide["masters"]
        assert "compute copies" not in held(
            setup_of(configs, "llama-1b", "model.dtype=float32", "model.engine=generic")
        )


class TestWorkload:
    def test_lsp(self, configs: Path) -> None:
        config = run_of(configs, "llama-1b", "game.n_queries=6", "game.n_answers=4", "game.solver.max_new_tokens=100")
        challenger, solver, grader = workload(config, 6).calls
        assert (challenger.prompts, challenger.distinct, challenger.answers, challenger.tokens) == (6, 1, 1, 256)
        assert (solver.prompts, solver.answers, solver.rows, solver.tokens) == (6, 4, 24, 100)
        assert solver.prompt_tokens == 32 + 256
        assert (grader.prompts, grader.distinct, grader.answers, grader.trained) == (24, 24, 1, False)
        assert grader.prompt_tokens > 32 + 256 + 100 + 1200 // 4
        work = workload(config, 6)
        assert (work.scored, work.scored_tokens) == (24, 32 + 256 + 100)

    def test_a_share_of_the_length(self, configs: Path) -> None:
        config = run_of(configs, "llama-1b")
        whole, half = workload(config, 8).calls, workload(config, 8, 0.5).calls
        assert [call.tokens for call in half] == [128, 128, 128]
        assert [a.prompt_tokens - b.prompt_tokens for a, b in zip(whole, half, strict=True)] == [0, 128, 256]
        for share in (0.0, 1.5):
            with pytest.raises(ValueError, match="mean_length"):
                workload(config, 8, share)

    def test_other_games(self, configs: Path, tmp_path: Path) -> None:
        zero = run_of(configs, "llama-1b", "game.kind=lsp_zero")
        assert [call.role for call in workload(zero, 8).calls] == ["challenger", "solver"]
        data = run_of(configs, "llama-1b", "game.kind=grpo", "game.prompts=file.jsonl")
        assert [(call.role, call.prompt_tokens) for call in workload(data, 8).calls] == [("solver", 32 + 256)]
        arena = run_of(configs, "llama-1b", "game.domain=arena", "game.quality.source=program")
        assert [(call.role, call.distinct) for call in workload(arena, 40).calls] == [("challenger", 9), ("solver", 40)]
        tasks = tmp_path / "tasks.yaml"
        tasks.write_text("[a short one, a very much longer one than the first]")
        config = run_of(configs, "llama-1b", f"game.challenge.tasks={tasks}")
        assert workload(config, 8).calls[0].distinct == 2
        prompt = tmp_path / "solver.txt"
        prompt.write_text("x" * 400 + "{{ query }}")
        config = run_of(configs, "llama-1b", f"game.solver.prompt={prompt}")
        assert workload(config, 8).calls[1].prompt_tokens == 32 + 100 + 256

    def test_micro_batches_are_the_learners(self) -> None:
        work = Workload((Call("challenger", 4, 1, 30, 20, 1), Call("solver", 4, 3, 25, 40, 4)), 0, 0)
        (whole,) = work.micro_batches(10_000, shared_prompts=True)
        assert scoring_pass(whole, shared_prompts=True) == Pass(5, 30, 4, 39, 30 + 4 * 25 + 4 * 19 + 12 * 39, 80 + 480)
        rows = work.micro_batches(10_000, shared_prompts=False)
        assert [scoring_pass(batch, shared_prompts=False).tokens for batch in rows] == [16 * 69]
        assert len(work.micro_batches(200, shared_prompts=True)) > 1
        assert prompts_pass(3, 10) == Pass(3, 10, 0, 0, 30, 3)

    def test_one_token_answers_feed_no_token(self) -> None:
        (batch,) = Workload((Call("solver", 1, 2, 7, 1, 1),), 0, 0).micro_batches(100, shared_prompts=True)
        assert scoring_pass(batch, shared_prompts=True) == Pass(1, 7, 0, 0, 7, 2)


class TestTime:
    def test_a_step_of_llama_8b_by_hand(self, configs: Path) -> None:
        gpu = GPU("round", 80, 1000, 2)
        body, head, cache = 6_979_321_856, 525_336_576, 131_072
        work = Workload((Call("solver", 8, 8, 100, 201, 8),), 64, 301)
        setup = setup_of(configs, "llama-8b", f"game.reward.model={configs / 'reward'}")
        seconds = step_seconds(setup, work, gpu, None)
        prefill = 2 * 8 * (100 * body + head) / 1e15
        read = (200 * 2 * (body + head) + cache * (8 * 100 * 200 + 64 * 200 * 201 / 2)) / 2e12
        computed = 2 * (body + head) * 64 * 200 / 1e15
        assert read > computed
        assert seconds["solver"] == pytest.approx(prefill + read)
        forward = 2 * body * (800 + 64 * 201) + 2 * head * 64 * 201
        assert seconds["update"] == pytest.approx(4 * forward / 1e15)
        assert seconds["reward model"] == pytest.approx(2 * SIZES["llama-3b"].body * 64 * 301 / 1e15)
        assert seconds["optimiser"] == pytest.approx(30 * 8_030_261_248 / 2e12)

    def test_many_rows_are_bound_by_the_matrix_rate(self, configs: Path) -> None:
        call = Call("solver", 100, 100, 10, 11, 100)
        setup = setup_of(configs, "llama-8b", "model.cache_tokens=1000000")
        seconds = step_seconds(setup, Workload((call,), 0, 0), H100, None)
        computed = (prefill_flops(setup, call) + decode_flops(setup, call)) / 989e12
        assert seconds["solver"] == pytest.approx(computed)

    def test_clipping_needs_the_old_log_probabilities(self, configs: Path) -> None:
        work = Workload((Call("solver", 1, 1, 10, 20, 1),), 0, 0)
        once = update_flops(setup_of(configs, "llama-1b"), work)
        twice = update_flops(setup_of(configs, "llama-1b", "learner.epochs=2"), work)
        assert twice == 2 * once + once / 4

    def test_a_server_has_room_for_its_cache(self, configs: Path) -> None:
        made = {name: plan(run_of(configs, name), H100, gpus=8, rollout="server") for name in SIZES}
        gpus = {name: one.server_gpus for name, one in made.items()}
        assert gpus == {"llama-1b": 1, "llama-3b": 1, "llama-8b": 1, "llama-70b": 4, "qwen3-8b": 1}
        assert made["llama-8b"].served == ("challenger", "solver")
        lora = plan(run_of(configs, "llama-70b", "model.tuning=lora"), H100, gpus=8, rollout="server")
        assert (lora.served, lora.server_gpus) == (("challenger", "solver", "grader"), 4)
        both = ("rollout.engine=vllm", "rollout.url=http://a:1", "rollout.reference_url=http://b:1")
        assert plan(run_of(configs, "llama-8b", *both), H100, rollout="server").server_gpus == 2
        assert plan(run_of(configs, "llama-1b"), H100).server_gpus == 0

    def test_a_server_writes_the_whole_step(self, configs: Path) -> None:
        made = plan(run_of(configs, "llama-8b"), H100, gpus=8, rollout="server")
        call = workload(run_of(configs, "llama-8b"), 8).calls[1]
        setup = setup_of(configs, "llama-8b")
        read = decode_bytes(setup, call, 1) / 3.35e12
        assert made.seconds["solver"] == pytest.approx(prefill_flops(setup, call) / 989e12 + read)

    def test_ranks_share_the_queries(self, configs: Path) -> None:
        one, four, many = (plan(run_of(configs, "llama-1b"), H100, gpus=gpus) for gpus in (1, 4, 16))
        assert four.seconds["update"] == pytest.approx(one.seconds["update"] / 4, rel=0.1)
        assert not any("nothing to do" in note for note in four.notes)
        assert any("16 GPUs and 8 queries" in note for note in many.notes)


class TestPlan:
    def test_the_paper_fits_one_h100_only_with_changes(self, configs: Path) -> None:
        config = run_of(configs, "llama-3b", f"game.reward.model={configs / 'reward'}")
        made = plan(config, H100)
        assert not made.fits and made.peak > H100.usable
        assert [phase.name for phase in made.phases] == ["sampling", "reward", "update"]
        same_gpus, same_tuning = made.remedies
        assert [remedy.setting for remedy in same_gpus][-1] == "model.tuning=lora"
        assert [remedy.setting for remedy in same_tuning] == ["2 GPUs"]

    def test_a_larger_gpu_needs_none(self, configs: Path) -> None:
        made = plan(run_of(configs, "llama-3b"), GPUS["b200"])
        assert made.fits and made.remedies == ()

    @pytest.mark.parametrize("name", ["llama-1b", "llama-3b", "llama-8b", "llama-70b"])
    @pytest.mark.parametrize("gpu", ["rtx4090", "h100"])
    def test_remedies_are_what_they_say(self, configs: Path, name: str, gpu: str) -> None:
        config = run_of(configs, name, f"game.reward.model={configs / 'reward'}")
        for route in plan(config, GPUS[gpu]).remedies:
            gpus, given = 1, []
            for remedy in route:
                for setting in remedy.setting.removesuffix(" or more").split(", "):
                    if setting.endswith(" GPUs"):
                        gpus = int(setting.split()[0])
                    else:
                        given.append(setting)
                again = plan(resolve(config, None, tuple(given)), GPUS[gpu], gpus=gpus)
                assert (again.peak, again.fits) == (remedy.peak, remedy.fits)
            # 64 GPUs hold a 70B model, but not on cards this small beside the layers they gather.
            assert route[-1].fits == (name != "llama-70b" or gpu == "h100")

    def test_a_needless_change_is_not_proposed(self, configs: Path) -> None:
        config = run_of(configs, "llama-1b", f"game.reward.model={configs / 'reward'}")
        for route in plan(config, GPUS["rtx4090"]).remedies:
            for left_out in route:
                settings = [r.setting for r in route if r is not left_out and "GPUs" not in r.setting]
                gpus = next((int(r.setting.split()[0]) for r in route if "GPUs" in r.setting and r is not left_out), 1)
                assert not plan(resolve(config, None, tuple(settings)), GPUS["rtx4090"], gpus=gpus).fits

    def test_where_nothing_is_enough_the_most_is_said(self, configs: Path) -> None:
        small = GPU("small", 1, 10, 0.1)
        (route,) = plan(run_of(configs, "llama-70b"), small).remedies
        assert not route[-1].fits
        assert [r.peak for r in route] == sorted((r.peak for r in route), reverse=True)

    def test_memory_is_for_the_longest_whatever_the_mean(self, configs: Path) -> None:
        config = run_of(configs, "llama-1b")
        whole, half = plan(config, H100), plan(config, H100, mean_length=0.5)
        assert half.peak == whole.peak and half.total_seconds < whole.total_seconds

    def test_an_adapter_folder_and_the_shipped_model(self, configs: Path, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(configs / "llama-1b")})
        )
        assert language_model(tmp_path).parameters == language_model(configs / "llama-1b").parameters
        made = plan(RunConfig(), GPUS["rtx3090"])
        assert made.fits and made.parameters < 10e6

    def test_what_can_not_be_planned(self, configs: Path, tmp_path: Path) -> None:
        MixtralConfig(architectures=["MixtralForCausalLM"]).save_pretrained(tmp_path / "experts")
        MambaConfig(architectures=["MambaForCausalLM"], num_hidden_layers=2).save_pretrained(tmp_path / "mamba")
        with pytest.raises(ValueError, match="mixture of experts"):
            language_model(tmp_path / "experts")
        with pytest.raises(ValueError, match="num_attention_heads"):
            language_model(tmp_path / "mamba")
        with pytest.raises(ValueError, match="no such folder"):
            language_model(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="not a causal language model"):
            language_model(configs / "reward")
        with pytest.raises(ValueError, match=r"model\.lora\.targets: .* nothing_proj"):
            plan(run_of(configs, "llama-1b", "model.tuning=lora", "model.lora.targets=nothing_proj"), H100)
        with pytest.raises(ValueError, match="gpus must be at least 1"):
            plan(run_of(configs, "llama-1b"), H100, gpus=0)

    def test_a_model_of_another_family_takes_the_generic_path(self, tmp_path: Path) -> None:
        GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
        shape = language_model(tmp_path)
        assert not shape.fast
        assert shape.parameters == 124_439_808  # published: 124 M
        assert shape.body == 12 * 12 * 768**2


class TestHardware:
    def test_names(self) -> None:
        assert gpu_named("H100 SXM") is gpu_named("h100") is GPUS["h100"]
        assert gpu_named("A100-40GB") is GPUS["a100-40"]
        assert gpu_named("rtx 4090") is GPUS["rtx4090"]
        with pytest.raises(ValueError, match=r"did you mean H200\?; there are h100, h200"):
            gpu_named("H2000")

    def test_margin(self) -> None:
        assert GPU("ten", 10, 1, 1).usable == int(9 * GIB)


class TestReport:
    @pytest.mark.parametrize(("name", "gpus", "server"), [("llama-70b", 8, True), ("llama-1b", 1, False)])
    def test_tables(self, configs: Path, name: str, gpus: int, server: bool) -> None:
        made = plan(run_of(configs, name), H100, gpus=gpus, rollout="server" if server else "local")
        out = StringIO()
        render(made, Console(file=out, width=100))
        text = out.getvalue()
        for word in ("masters", "moments", "update", "Seconds per step", "peak", f"{made.peak / GIB:.1f}"):
            assert word in text
        assert ("It fits" in text) == made.fits
        assert ("What makes it fit" in text) == bool(made.remedies)
        assert ("rollout servers, 4 GPUs in all" in text) == server

    def test_json_holds_the_same(self, configs: Path) -> None:
        made = plan(run_of(configs, "llama-70b", "model.tuning=lora"), H100, gpus=2)
        told = json.loads(json.dumps(to_json(made)))
        assert told["memory"]["peak"] == max(phase["peak"] for phase in told["memory"]["phases"].values())
        for phase in told["memory"]["phases"].values():
            assert sum(phase["parts"].values()) == phase["peak"]
        total = told["seconds"].pop("total")
        assert sum(told["seconds"].values()) == pytest.approx(total)
        assert told["remedies"][0][-1].keys() == {"setting", "peak", "fits"}


def tensors_held() -> dict[int, int]:
    """Bytes of every storage that a tensor holds, by its address."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}


class TestAgainstTensors:
    """What a real learner holds between two steps, against what the plan says."""

    @pytest.mark.parametrize(
        ("family", "overrides"),
        [
            ("llama", ()),
            ("qwen3", ()),
            ("llama", ("model.dtype=float32",)),
            ("llama", ("model.tuning=lora", "model.lora.targets=q_proj,gate_proj,down_proj")),
            ("qwen3", ("model.tuning=lora", "model.lora.rank=16")),
            ("qwen3", ("model.engine=generic",)),
            ("llama", ("model.engine=generic", "model.dtype=float32")),
            ("llama", ("model.engine=generic", "model.tuning=lora")),
        ],
    )
    def test_held(self, tmp_path: Path, family: str, overrides: tuple[str, ...]) -> None:
        pytest.importorskip("peft", reason="adapters are an extra: pip install 'sparring[lora]'")
        save = {"llama": save_tiny_llama, "qwen3": save_tiny_qwen3}[family]
        save(tmp_path / "model", hidden_size=128, intermediate_size=512, num_hidden_layers=4)
        save_tiny_reward(tmp_path / "reward", hidden_size=128)
        given = (f"model.path={tmp_path / 'model'}", f"game.reward.model={tmp_path / 'reward'}", "model.dtype=bfloat16")
        config = resolve(RunConfig(), None, (*given, "game.domain=text", "model.device=cpu", *overrides))
        before = tensors_held()
        built = build_models(config)
        game = build_game(config)
        learner = build_learner(built, config, game)
        nothing = np.zeros(3, np.float32)
        learner.update([Example((5, 6, 7), (8, 9, 10), 1.0, 1.0, nothing, "solver")], 1e-6)
        measured = sum(size for address, size in tensors_held().items() if address not in before)
        setup = set_up(config, read_shapes(config), CORE, 1, "local")
        assert sum(held(setup).values()) == pytest.approx(measured, rel=0.03)


@pytest.mark.slow
def test_peaks_of_real_steps(tmp_path: Path) -> None:
    """Whole LSP steps of a small model: every phase within 15 % of what torch allocates."""
    pytest.importorskip("peft", reason="adapters are an extra: pip install 'sparring[lora]'")
    script = Path(__file__).parent.parent / "benchmarks" / "plan_check.py"
    command = [sys.executable, str(script), "--quick", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"]["name"] for row in rows] == ["full", "lora"]
    for row in rows:
        for phase in row["phases"].values():
            assert phase["planned"] == pytest.approx(phase["measured"], rel=0.15)
